//! After a topic got more partitions.

use rig::{Rig, relay_exit};

use super::{assert_recover_stops, kill_recover_before_its_end};
use crate::relay::tampering::{assert_refused, checkpoints, ids, published_and_stopped, times_published};
use crate::relay::ways_out::{assert_goes_on, run_recover};

/// Two things are broken. `recover` alone mends the slot only, and `init --accept-partitions` alone the partitions only.
#[tokio::test]
async fn partitions_that_were_added_while_the_slot_was_lost_are_accepted_by_recover() {
    let rig = published_and_stopped("way_out_10_19").await;
    rig.insert_each(2).await;
    rig.drop_slot().await;
    add_partitions(&rig, &rig.topic(), 6).await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::SLOT_GONE, &["`outbox-relay recover`"])
        .await;
    let before = checkpoints(&rig).await.len();
    let says = "`outbox-relay recover --accept-partitions`";
    assert_recover_stops(&rig, &[], 19, says).await;
    assert_refused(
        &rig,
        &["--accept-partitions"],
        relay_exit::SLOT_GONE,
        "`outbox-relay recover`",
    )
    .await;
    assert_eq!(checkpoints(&rig).await.len(), before, "nothing was written");
    run_recover(&rig, &["--accept-partitions"]).await;
    let plan = rig.relay.log_text();
    let said = ["has 6 partitions and had 4", "4 rows that are in no topic"];
    assert!(said.iter().all(|words| plan.contains(words)), "{plan}");
    let nothing = "there is nothing of the kind to accept";
    assert_recover_stops(&rig, &["--accept-partitions", "--compare-anyway"], 2, nothing).await;
    assert_each_row_once(&rig, 12).await;
}

#[tokio::test]
async fn partitions_that_were_added_behind_a_killed_recover_are_accepted_by_the_next_one() {
    let rig = published_and_stopped("way_out_42_19").await;
    rig.insert_each(2).await;
    rig.drop_slot().await;
    kill_recover_before_its_end(&rig, "first", &[]).await;
    add_partitions(&rig, &rig.topic(), 6).await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::RECOVERY_UNFINISHED, &["`outbox-relay recover`"])
        .await;
    let says = "`outbox-relay recover --accept-partitions`";
    assert_recover_stops(&rig, &[], 19, says).await;
    kill_recover_before_its_end(&rig, "second", &["--accept-partitions"]).await;
    rig.assert_stops(relay_exit::RECOVERY_UNFINISHED, &["`outbox-relay recover`"])
        .await;
    // The second command has accepted the partitions before it was killed, so the third one need not. It may accept them again.
    kill_recover_before_its_end(&rig, "third", &[]).await;
    run_recover(&rig, &["--accept-partitions"]).await;
    assert_each_row_once(&rig, 12).await;
}

#[tokio::test]
async fn where_the_checkpoints_topic_has_more_partitions_recover_goes_on_with_another() {
    let mut rig = published_and_stopped("way_out_19_checkpoints").await;
    rig.insert_each(2).await;
    add_partitions(&rig, &rig.checkpoint_topic(), 2).await;
    let says = "`outbox-relay recover --checkpoint-topic OTHER_TOPIC`";
    rig.assert_stops(relay_exit::PARTITIONS_CHANGED, &[says]).await;
    assert_recover_stops(&rig, &[], 19, says).await;
    let other = format!("{}-too", rig.checkpoint_topic());
    run_recover(&rig, &["--checkpoint-topic", &other]).await;
    rig.relay = rig.relay.with_env("CHECKPOINT_TOPIC", &other);
    assert_goes_on(&rig).await;
}

async fn add_partitions(rig: &Rig, topic: &str, partitions: u32) {
    let partitions = partitions.to_string();
    let alter = ["--alter", "--topic", topic, "--partitions", &partitions];
    let altered = rig.servers.kafka.topic_tool(&alter).await;
    altered.expect("more partitions");
}

/// Starts the relay, and asserts that all rows and three new ones are published once. (A ledger would object to each key that has changed its
/// partition.)
async fn assert_each_row_once(rig: &Rig, rows: usize) {
    rig.start().await;
    rig.insert_each(3).await;
    let ids = ids(rig).await;
    assert_eq!(ids.len(), rows);
    assert_eq!(times_published(rig, &ids, &ids).await, vec![1; rows]);
    rig.finish().await.expect("a clean end");
}
