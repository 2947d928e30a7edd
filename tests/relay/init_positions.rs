//! The positions of a relay's records are unique and ascend. This holds for rows that were there before a slot, and for rows that the slot sends.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rig::rig::READY_DEADLINE;
use rig::servers::{kafka_options, postgres_options};
use rig::{Isolation, Record, Rig, Servers};
use stack::eventually;
use tokio_postgres::Client;

const DEADLINE: Duration = Duration::from_secs(60);
/// A test tries again at most so often, because the server may write a record of its own between the consistent point and the commit that is to
/// follow it.
const ATTEMPTS_MAX: u32 = 10;

/// LSN and index from the header `position`.
fn position(record: &Record) -> (u64, u64) {
    let text = record.header("position").expect("a position");
    rig::ledger::parse_position(text).unwrap_or_else(|| panic!("`{text}` is no position"))
}

/// Lists what is wrong with the positions of `records`. The records of each partition must be in their order.
pub(super) fn position_mistakes(records: &[Record]) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut seen = HashSet::new();
    for pair in records.windows(2) {
        if pair[0].partition == pair[1].partition && position(&pair[0]) >= position(&pair[1]) {
            mistakes.push(format!("{:X?} before {:X?}", position(&pair[0]), position(&pair[1])));
        }
    }
    for record in records {
        if !seen.insert(position(record)) {
            mistakes.push(format!("{:X?} twice", position(record)));
        }
    }
    mistakes
}

/// Runs `command`, which makes a slot. Meanwhile transactions begin and end in such a way that the commit record of the last one is the first record
/// after the slot's consistent point. Returns false if the server wrote something in between.
///
/// A slot becomes consistent in two steps. Each step waits for the transactions that run when it begins. The third transaction begins after the
/// second step did, so it still runs in the slot's snapshot.
async fn make_slot_before_a_commit(rig: &Rig, command: &[&str]) -> bool {
    let (first, second, third) = (rig.connect().await, rig.connect().await, rig.connect().await);
    begin(rig, &first).await;
    let init = rig.relay.command_of("init", command);
    init.start().expect("a start");
    slot_waits_for(rig, &first).await;
    begin(rig, &second).await;
    first.batch_execute("commit").await.expect("a commit");
    slot_waits_for(rig, &second).await;
    begin(rig, &third).await;
    second.batch_execute("commit").await.expect("a commit");
    let name = rig.name();
    let sql = format!(
        "select confirmed_flush_lsn, confirmed_flush_lsn = pg_current_wal_insert_lsn() from pg_replication_slots
         where slot_name = '{name}' and confirmed_flush_lsn is not null"
    );
    let is_next = eventually(DEADLINE, "the slot is consistent", || async {
        let rows = rig.sql(&sql).await;
        rows.first().map(|row| row[1].as_deref() == Some("t"))
    })
    .await;
    third.batch_execute("commit").await.expect("a commit");
    let status = init.exited(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(status.code(), Some(0), "{}", init.log_tail(20));
    is_next
}

/// Begins a transaction that has written a row.
async fn begin(rig: &Rig, client: &Client) {
    let insert = rig.insert_statement(1, 7);
    client
        .batch_execute(&format!("begin; {insert}"))
        .await
        .expect("a transaction");
}

/// Waits until the command that makes the slot waits for this client's transaction.
async fn slot_waits_for(rig: &Rig, client: &Client) {
    let row = client.query_one("select pg_backend_pid()", &[]).await.expect("a row");
    let pid: i32 = row.get(0);
    let sql = format!("select 1 from pg_stat_activity where {pid} = any (pg_blocking_pids(pid))");
    eventually(DEADLINE, "the slot waits for a transaction", || async {
        (!rig.sql(&sql).await.is_empty()).then_some(())
    })
    .await;
}

async fn servers() -> Arc<Servers> {
    // Nothing but the test writes WAL: there is no other database, no vacuum and no checkpoint.
    let postgres = postgres_options()
        .setting("autovacuum", "off")
        .setting("checkpoint_timeout", "1h")
        .setting("bgwriter_delay", "10000");
    Arc::new(Servers::start(postgres, kafka_options()).await.expect("servers"))
}

/// A rig on `servers` whose slot was made directly before a commit, and whose relay has streamed the row of that commit. Returns the records, too.
async fn streamed_right_behind_a_slot(servers: &Arc<Servers>, name: &str, bug: &str) -> (Rig, Vec<Record>) {
    for attempt in 1..=ATTEMPTS_MAX {
        let mut rig = Rig::on(Arc::clone(servers), &format!("{name}_{attempt}")).await;
        rig.relay = rig
            .relay
            .with_binary("outbox-relay-faults")
            .with_env("OUTBOX_RELAY_BUG", bug);
        rig.insert_each(5).await;
        let hit = make_slot_before_a_commit(&rig, &["init"]).await;
        rig.start().await;
        rig.wait_until_published(DEADLINE)
            .await
            .expect("everything is published");
        if hit {
            let records = rig.records(Isolation::Committed).await.expect("records");
            return (rig, records);
        }
        rig.finish().await.expect("an end");
    }
    panic!("no commit came right behind a slot in {ATTEMPTS_MAX} attempts");
}

#[tokio::test]
async fn a_commit_at_the_consistent_point_has_another_position_than_the_rows_before_it() {
    let servers = servers().await;
    let (rig, records) =
        streamed_right_behind_a_slot(&servers, "positions_wrong", "ExistingRowsAtConsistentPoint").await;
    let mistakes = position_mistakes(&records);
    assert!(!mistakes.is_empty(), "the planted bug goes unnoticed");
    rig.finish().await.expect("an end");

    let (rig, records) = streamed_right_behind_a_slot(&servers, "positions", "").await;
    assert_eq!(position_mistakes(&records), Vec::<String>::new());
    // The slot is made again several times. What was published before has lower positions, also when the same rows come again.
    rig.relay.stop().await.expect("a clean end");
    rig.drop_slot().await;
    make_slot_before_a_commit(&rig, &["init", "--accept-new-slot"]).await;
    start_and_publish_more(&rig).await;
    rig.relay.kill_hard().await;
    rig.insert_each(10).await;
    rig.drop_slot().await;
    make_slot_before_a_commit(&rig, &["recover", "--yes"]).await;
    start_and_publish_more(&rig).await;
    let records = rig.records(Isolation::Committed).await.expect("records");
    assert!(records.len() > rig.rows().await.len(), "rows were published again");
    assert_eq!(position_mistakes(&records), Vec::<String>::new());
    rig.finish().await.expect("an end");
}

/// Starts the relay, and waits until all rows and five more are published.
async fn start_and_publish_more(rig: &Rig) {
    rig.start().await;
    rig.insert_each(5).await;
    rig.wait_until_published(READY_DEADLINE)
        .await
        .expect("everything is published");
}
