//! Whoever goes on after a relay knows what it had parked: a standby, `check`, and `recover`.

use super::{
    assert_command, assert_published_in_order, assert_retry_of_all, insert_row, limit_record_bytes, read_parked,
    running_with_two_parked, stop_relay, stopped_with_two_parked, wait_until_parked,
};
use crate::relay::load::wait_until_standby;
use crate::relay::tampering::{wait_until_confirmed, write_checkpoint};
use rig::relay_exit;

/// The phases share one relay with parked rows, because it takes long to get there.
#[tokio::test]
async fn a_standby_that_takes_over_check_and_recover_know_what_is_parked() {
    let rig = running_with_two_parked("parking_known").await;

    // A standby that takes over parks the next row of the key.
    let standby = rig.another_relay("standby");
    standby.start().expect("a start");
    wait_until_standby(&standby).await;
    rig.relay.kill_hard().await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 12).await;
    assert_eq!(wait_until_parked(&rig, 3).await.len(), 3, "the standby knows the key");
    wait_until_confirmed(&rig).await;
    standby.stop().await.expect("a clean end");

    // `check` counts the parked rows.
    assert_command(&rig.relay, &["check"], 0, &["3 rows are parked and not published"]).await;

    // `recover` leaves the parked rows where they are.
    rig.wait_until_slot_is_free().await;
    rig.drop_slot().await;
    insert_row(&rig, "another", 10).await;
    rig.assert_stops(relay_exit::SLOT_GONE, &["outbox-relay recover"]).await;
    assert_command(&rig.relay, &["recover", "--yes"], 0, &[]).await;
    assert_published_in_order(&rig, 13).await;
    assert_eq!(read_parked(&rig).await.len(), 3, "recover leaves them");

    // A retry publishes them all the same, and the relay goes on.
    limit_record_bytes(&rig, 60_000).await;
    assert_retry_of_all(&rig.relay, 0, &["3 rows are published, 0 stay parked"]).await;
    rig.start().await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 23).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_recover_after_a_lost_checkpoint_knows_what_is_parked() {
    let rig = stopped_with_two_parked("parking_lost").await;
    write_checkpoint(&rig, None).await;
    rig.assert_stops(relay_exit::CHECKPOINT_MISSING, &["outbox-relay recover"])
        .await;
    assert_command(&rig.relay, &["recover", "--yes"], 0, &[]).await;
    rig.start().await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 12).await;
    wait_until_parked(&rig, 3).await;
    stop_relay(&rig).await;
    limit_record_bytes(&rig, 60_000).await;
    assert_retry_of_all(&rig.relay, 0, &["3 rows are published, 0 stay parked"]).await;
    assert_published_in_order(&rig, 15).await;
    rig.finish().await.expect("a clean end");
}
