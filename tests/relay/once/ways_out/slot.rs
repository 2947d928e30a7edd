//! After the slot was lost, or another slot has its name.

use super::delete_checkpoint_topic;
use crate::relay::tampering::{published_and_stopped, recreate_slot};
use crate::relay::ways_out::{assert_goes_on, assert_recovers_after, run_recover, text_in_log_between};
use rig::relay_exit;

#[tokio::test]
async fn where_slot_and_checkpoint_are_both_lost_recover_publishes_only_what_no_topic_has() {
    let rig = published_and_stopped("way_out_3_lost").await;
    delete_checkpoint_topic(&rig).await;
    rig.drop_slot().await;
    rig.insert_each(2).await;
    assert_recovers_after(&rig, 3).await;
}

#[tokio::test]
async fn after_a_slot_of_another_kind_was_dropped_recover_makes_the_right_one() {
    let rig = published_and_stopped("way_out_12").await;
    rig.drop_slot().await;
    let name = rig.name();
    rig.sql(&format!("select pg_create_physical_replication_slot('{name}')"))
        .await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::SLOT_UNUSABLE, &["`outbox-relay recover`"])
        .await;
    let statement = text_in_log_between(&rig, "of no use to anybody, `", "`");
    rig.sql(&statement).await;
    run_recover(&rig, &[]).await;
    assert_goes_on(&rig).await;
}

#[tokio::test]
async fn where_another_database_has_the_slots_name_recover_goes_on_under_another() {
    let mut rig = published_and_stopped("way_out_12_other").await;
    rig.drop_slot().await;
    let name = rig.name().to_owned();
    let slot = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
    rig.servers.postgres.query("postgres", &slot).await.expect("a slot");
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::SLOT_UNUSABLE, &["`outbox-relay recover --slot OTHER_NAME`"])
        .await;
    let other = format!("{name}_too");
    run_recover(&rig, &["--slot", &other]).await;
    rig.relay = rig.relay.with_env("OUTBOX_SLOT", &other);
    assert_goes_on(&rig).await;
    let drop = format!("select pg_drop_replication_slot('{other}')");
    stack::eventually_ok(rig::rig::READY_DEADLINE, "the other slot is dropped", || async {
        rig.servers.postgres.query("postgres", &drop).await
    })
    .await
    .expect("a drop");
}

#[tokio::test]
async fn after_a_slot_was_made_again_recover_publishes_what_it_skipped() {
    let rig = published_and_stopped("way_out_13").await;
    rig.insert_each(2).await;
    recreate_slot(&rig).await;
    rig.insert_each(3).await;
    assert_recovers_after(&rig, 13).await;
}
