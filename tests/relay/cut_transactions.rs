//! A transaction that is published in part when a setting changes by which its rows are counted.

use rig::rig::READY_DEADLINE;
use rig::{Rig, relay_exit};

use super::messages::{assert_exactly_once, rig_with_messages};
use super::tampering::last_checkpoint;
use super::ways_out::{assert_goes_on, run_recover};

const PREFIX: &str = "OUTBOX_MESSAGE_PREFIX";
const ROWS_TOO: &str = "union all select id, aggregateid, (payload ->> 'n')::bigint, payload::text from outbox";

/// Writes a transaction that has a message before each row. The relay is killed when it has published a part of it.
async fn publish_a_part(rig: &Rig) {
    let insert = rig.insert_statement(1, 7);
    rig.sql(&format!(
        "do $$ begin for i in 1..1200 loop perform emit(1); {insert}; end loop; end $$"
    ))
    .await;
    let hits = rig.logs().join("hits");
    let dies = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("TRANSACTION_BYTES", "65536")
        .env("OUTBOX_RELAY_FAILPOINT", "commit.before=kill@3")
        .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy());
    dies.start().expect("a relay");
    dies.exited(READY_DEADLINE).await.expect("it dies");
    let checkpoint = last_checkpoint(rig).await;
    let rows = checkpoint["partial"]["rows"].as_u64();
    assert!(rows.is_some_and(|rows| rows > 0), "{checkpoint}");
}

/// Messages counted, and do not count any more: as many rows behind the published ones would be skipped.
#[tokio::test]
async fn a_cut_transaction_goes_on_only_with_the_messages_with_which_it_was_counted() {
    let mut rig = rig_with_messages("cut_with_messages", true).await;
    publish_a_part(&rig).await;
    rig.relay = rig.relay.with_env(PREFIX, "");
    let says = ["--message-prefix outbox", "former settings"];
    rig.assert_stops(relay_exit::WRONG_SETTING, &says).await;
    rig.relay = rig.relay.with_env(PREFIX, "outbox");
    rig.start().await;
    assert_exactly_once(&rig, ROWS_TOO).await;
    rig.relay.stop().await.expect("a clean end");
    // The transaction is published, so nothing is counted any more.
    rig.relay = rig.relay.with_env(PREFIX, "");
    rig.start().await;
    rig.finish().await.expect("a clean end");
}

/// Messages did not count, and now they do: published rows would be published again.
#[tokio::test]
async fn where_messages_begin_to_count_in_a_cut_transaction_recover_goes_on() {
    let mut rig = rig_with_messages("cut_without_messages", true).await;
    rig.relay = rig.relay.with_env(PREFIX, "");
    publish_a_part(&rig).await;
    rig.relay = rig.relay.with_env(PREFIX, "outbox");
    let says = ["--message-prefix outbox", "`outbox-relay recover`"];
    rig.assert_stops(relay_exit::WRONG_SETTING, &says).await;
    run_recover(&rig, &[]).await;
    let ledger = assert_goes_on(&rig).await;
    assert_eq!(ledger.rows, 1_203);
}
