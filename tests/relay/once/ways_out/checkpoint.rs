//! After the checkpoint was lost, or says something that cannot be.

use super::delete_checkpoint_topic;
use crate::relay::tampering::{
    accept, checkpoints, last_checkpoint, publish_and_stop, published_and_stopped, write_checkpoint,
};
use crate::relay::ways_out::assert_recovers_after;
use rig::relay_exit;

#[tokio::test]
async fn after_the_checkpoint_topic_was_deleted_recover_makes_it_and_repeats_nothing() {
    let rig = published_and_stopped("way_out_14").await;
    rig.insert_each(2).await;
    delete_checkpoint_topic(&rig).await;
    let ledger = assert_recovers_after(&rig, 14).await;
    assert_eq!(ledger.rows, 10);
}

#[tokio::test]
async fn after_the_checkpoint_was_deleted_by_a_tombstone_recover_repeats_nothing() {
    let rig = published_and_stopped("way_out_14_tombstone").await;
    write_checkpoint(&rig, None).await;
    rig.insert_each(2).await;
    assert_recovers_after(&rig, 14).await;
}

#[tokio::test]
async fn after_a_checkpoint_that_cannot_be_read_recover_writes_one_of_a_later_generation() {
    let rig = published_and_stopped("way_out_15").await;
    write_checkpoint(&rig, Some(b"garbage".to_vec())).await;
    rig.insert_each(2).await;
    assert_recovers_after(&rig, 15).await;
    let last = last_checkpoint(&rig).await;
    assert_eq!(last["generation"], 2, "{last}");
}

#[tokio::test]
async fn after_a_checkpoint_that_went_back_recover_repeats_nothing() {
    let rig = published_and_stopped("way_out_21").await;
    let old = checkpoints(&rig).await.pop().and_then(|record| record.value);
    publish_and_stop(&rig).await;
    write_checkpoint(&rig, old).await;
    rig.insert_each(2).await;
    assert_recovers_after(&rig, 21).await;
}

#[tokio::test]
async fn after_another_timeline_recover_compares_and_goes_on() {
    let rig = published_and_stopped("way_out_17").await;
    let mut elsewhere = last_checkpoint(&rig).await;
    elsewhere["lineage"]["timeline"] = 7.into();
    write_checkpoint(&rig, Some(elsewhere.to_string().into_bytes())).await;
    rig.insert_each(2).await;
    assert_recovers_after(&rig, 17).await;
}

/// For an outbox without a table, of which `recover` can compare nothing.
#[tokio::test]
async fn where_nothing_can_be_compared_a_recovery_that_is_needed_is_accepted() {
    let rig = published_and_stopped("way_out_42_accepted").await;
    let mut last = last_checkpoint(&rig).await;
    last["state"] = "recovering".into();
    last["generation"] = 1.into();
    write_checkpoint(&rig, Some(last.to_string().into_bytes())).await;
    rig.insert_each(2).await;
    rig.assert_stops(
        relay_exit::RECOVERY_UNFINISHED,
        &["outbox-relay recover", "--accept-unfinished-recovery"],
    )
    .await;
    accept(&rig, &["--accept-unfinished-recovery"]).await;
    rig.start().await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}
