//! How many poison rows the relay parks in a minute: `--poison-limit`.

use super::{
    LARGE_BYTES, assert_published_in_order, assert_retry_of_all, insert_row, limit_record_bytes, read_parked,
    rig_that_parks, stop_relay, wait_until_parked,
};
use crate::relay::once::topic_settings::assert_stops;
use rig::relay_exit;

#[tokio::test]
async fn more_poison_rows_than_the_limit_in_a_minute_stop_the_relay() {
    let mut rig = rig_that_parks("parking_limit").await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON_LIMIT", "2");
    for key in ["a", "b", "a", "c"] {
        insert_row(&rig, key, LARGE_BYTES).await;
    }
    // The second row of `a` stands behind the first, and does not count.
    let says = ["more than 2 poison rows", "--poison-limit", "outbox-relay park "];
    assert_stops(&rig.relay, relay_exit::TOO_MANY_PARKED, &says).await;
    assert_stops(&rig.relay, relay_exit::TOO_MANY_PARKED, &says).await;
    assert_eq!(
        read_parked(&rig).await.len(),
        3,
        "a restart does not begin to count anew"
    );

    // With a larger limit the relay goes on, and a retry publishes every row.
    rig.relay.kill_hard().await;
    rig.wait_until_slot_is_free().await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON_LIMIT", "1000");
    rig.start().await;
    wait_until_parked(&rig, 4).await;
    rig.insert_each(3).await;
    assert_published_in_order(&rig, 3).await;
    stop_relay(&rig).await;
    limit_record_bytes(&rig, 60_000).await;
    assert_retry_of_all(&rig.relay, 0, &[]).await;
    assert_published_in_order(&rig, 7).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn parking_without_a_limit_is_caught() {
    let mut rig = rig_that_parks("parking_bug_limit").await;
    rig.relay = rig
        .relay
        .with_env("OUTBOX_POISON_LIMIT", "2")
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "ParkWithoutLimit");
    for key in ["a", "b", "c"] {
        insert_row(&rig, key, LARGE_BYTES).await;
    }
    rig.start().await;
    assert_eq!(
        wait_until_parked(&rig, 3).await.len(),
        3,
        "more rows than the limit allows"
    );
    rig.finish().await.expect("a clean end");
}
