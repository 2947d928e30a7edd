//! An `init` did not finish, and something changes before the next one.

use rdkafka::admin::{AdminOptions, NewPartitions};
use rig::rig::ARRIVAL_DEADLINE;
use rig::{Isolation, Rig, relay_exit};

use super::super::tampering::{accept, assert_refused, ids, times_published};
use super::init_pieces::{ROWS, assert_each_row_once, init_with_trouble, kill_init_at, rig_with_rows};
use super::topic_identity::{admin, delete};

#[tokio::test]
async fn rows_that_the_first_init_was_to_skip_are_not_published_by_the_next() {
    let rig = rig_with_rows("unfinished_skip", "", 3).await;
    let dying = init_with_trouble(&rig, "init.slot-made", "exit", 1, "");
    let status = dying.run_for_status(&["init", "--existing-rows", "skip"]).await;
    assert_eq!(
        status.expect("an end").code(),
        Some(relay_exit::FAILPOINT),
        "{}",
        dying.log_tail(5)
    );
    let says = "an earlier init began with `skip` and did not finish";
    assert_refused(&rig, &[], relay_exit::WRONG_SETTING, says).await;
    rig.relay
        .run(&["init", "--existing-rows", "skip"])
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    rig.start().await;
    rig.insert_each(2).await;
    let ids = ids(&rig).await;
    assert_eq!(times_published(&rig, &ids, &ids[3..]).await, [0, 0, 0, 1, 1]);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_topic_that_is_made_anew_before_the_next_init_gets_what_it_lost() {
    let rig = rig_with_rows("unfinished_anew", "", ROWS).await;
    kill_init_at(&rig, "init.piece-committed", 3).await;
    let topic = rig.topic();
    delete(&rig, &topic).await;
    // The topic is not compacted. So if it lacks a record, the record was never in it.
    let create = ["--create", "--topic", &topic, "--partitions", "4"];
    rig.servers.kafka.topic_tool(&create).await.expect("a topic");
    // The next `init` is killed as well, after it has published some rows again.
    kill_init_at(&rig, "init.piece-committed", 2).await;
    assert_each_row_once(&rig).await;
}

#[tokio::test]
async fn partitions_that_are_added_before_the_next_init_are_accepted_by_it() {
    let rig = rig_with_rows("unfinished_partitions", "", ROWS).await;
    kill_init_at(&rig, "init.piece-committed", 1).await;
    let topic = rig.topic();
    let more = NewPartitions::new(&topic, 6);
    let added = admin(&rig).create_partitions([&more], &AdminOptions::new()).await;
    assert!(added.expect("an answer")[0].is_ok(), "partitions are added");
    let says = "`outbox-relay init --accept-partitions`";
    assert_refused(&rig, &[], relay_exit::PARTITIONS_CHANGED, says).await;
    accept(&rig, &["--accept-partitions"]).await;
    rig.start().await;
    rig.insert_each(5).await;
    assert_none_lost_or_doubled(&rig).await;
    rig.finish().await.expect("a clean end");
}

/// Asserts that each row is there exactly once. It does not check the order, because some rows belong to another partition now.
async fn assert_none_lost_or_doubled(rig: &Rig) {
    let ledger = stack::eventually_ok(ARRIVAL_DEADLINE, "all rows are published", || async {
        let ledger = rig.ledger(Isolation::Committed).await?;
        anyhow::ensure!(ledger.lost.is_empty(), "{ledger}");
        Ok(ledger)
    });
    let ledger = ledger.await.unwrap_or_else(|err| panic!("{err:#}"));
    assert!(ledger.duplicates.is_empty() && ledger.invented.is_empty(), "{ledger}");
}
