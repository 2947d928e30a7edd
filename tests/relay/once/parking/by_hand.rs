//! Rows that an operator parks: `outbox-relay park POSITION`.

use std::collections::BTreeSet;

use rig::{Rig, relay_exit};

use super::{
    LARGE_BYTES, RECORD_BYTES_MAX, assert_command, assert_published_in_order, insert_row, limit_record_bytes,
    stop_relay, wait_until_parked,
};
use crate::relay::once::topic_settings::assert_stops;

/// No row of the outbox has these positions.
const BEFORE_ALL_ROWS: &str = "0/1:0";
const BEHIND_ALL_ROWS: &str = "FFFF/0:0";
/// So many good rows come before the poison, and as many after it.
const GOOD_ROWS: u32 = 3;

#[tokio::test]
async fn a_row_at_which_the_relay_stopped_is_parked_by_hand_and_no_other_is() {
    let rig = Rig::initialised("parking_by_hand").await;
    insert_two_poison_rows(&rig).await;
    let large_row = park_where_the_relay_stops(&rig, relay_exit::RECORD_TOO_LARGE, BEFORE_ALL_ROWS).await;
    let row_without_topic = park_where_the_relay_stops(&rig, relay_exit::ROW_REFUSED, BEHIND_ALL_ROWS).await;

    rig.start().await;
    assert_published_in_order(&rig, 2 * GOOD_ROWS as usize).await;
    let parked = wait_until_parked(&rig, 2).await;
    let by_operator: BTreeSet<String> = parked
        .into_values()
        .filter(|row| row.because == "operator")
        .map(|row| row.position)
        .collect();
    assert_eq!(by_operator, BTreeSet::from([large_row.clone(), row_without_topic]));

    stop_relay(&rig).await;
    assert_command(
        &rig.relay,
        &["park", &large_row],
        relay_exit::WRONG_SETTING,
        &["lies before the checkpoint"],
    )
    .await;
    rig.finish().await.expect("a clean end");
}

/// Writes a row that is too large and a row without a topic. As many good rows come before the two as after them.
async fn insert_two_poison_rows(rig: &Rig) {
    limit_record_bytes(rig, RECORD_BYTES_MAX).await;
    rig.sql("alter table outbox alter aggregatetype drop not null").await;
    rig.insert_each(GOOD_ROWS).await;
    insert_row(rig, "k1", LARGE_BYTES).await;
    rig.sql("insert into outbox (aggregateid, type, payload) values ('k2', 'Poison', '{}')")
        .await;
    rig.insert_each(GOOD_ROWS).await;
}

/// Starts the relay, which must stop with this exit code, and parks the row at the position that it names. Returns this position. No row can be
/// parked at `another_position`.
async fn park_where_the_relay_stops(rig: &Rig, exit_code: i32, another_position: &str) -> String {
    let said = assert_stops(&rig.relay, exit_code, &["`outbox-relay park "]).await;
    let (_, rest) = said.rsplit_once("`outbox-relay park ").expect("what to do");
    let position = rest.split('`').next().expect("a position").to_owned();
    rig.wait_until_slot_is_free().await;
    assert_command(
        &rig.relay,
        &["park", another_position],
        relay_exit::WRONG_SETTING,
        &["nothing was changed"],
    )
    .await;
    let says = ["parks the row at", &position];
    assert_command(&rig.relay, &["park", &position], 0, &says).await;
    position
}
