//! `replay`: chosen rows are published a second time, with a mark, and nothing else changes.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::Duration;

use rig::ledger::Row;
use rig::rig::ARRIVAL_DEADLINE;
use rig::{Isolation, Ledger, Record, Rig, relay_exit};
use stack::eventually_ok;

use super::topic_settings::limit_record_bytes;

const DEADLINE: Duration = Duration::from_secs(90);
const SIGKILL: i32 = 9;

/// A rig whose relay runs and has published so many rows.
pub(super) async fn rig_with_published_rows(name: &str, rows: u32) -> Rig {
    let mut rig = Rig::initialised(name).await;
    rig.relay = rig.relay.with_binary("outbox-relay-faults");
    rig.start().await;
    rig.insert_each(rows).await;
    rig.wait_until_published(ARRIVAL_DEADLINE)
        .await
        .expect("the rows are published");
    rig
}

async fn replay_code(rig: &Rig, arguments: &[&str]) -> i32 {
    let all: Vec<&str> = ["replay"].iter().chain(arguments).copied().collect();
    let status = rig.relay.run_for_status(&all).await.expect("replay runs");
    status.code().expect("replay ends by itself")
}

/// The records without the mark of a replay, and those with it. The records of each partition are in their order.
pub(super) async fn unmarked_and_marked(rig: &Rig) -> (Vec<Record>, Vec<Record>) {
    let records = rig.records(Isolation::Committed).await.expect("records");
    records
        .into_iter()
        .partition(|record| record.header("replay").is_none())
}

/// Asserts that each of `chosen` has one marked record, which comes after its first record and in the order of its key, and that there are no other
/// marked records.
pub(super) async fn assert_replayed(rig: &Rig, chosen: &[Row]) {
    let (unmarked, marked) = unmarked_and_marked(rig).await;
    let ledger = Ledger::compare(chosen, &marked);
    assert!(ledger.is_exact(), "{}: {ledger}", rig.name());
    let first: HashMap<&str, &Record> = unmarked
        .iter()
        .map(|record| (record.header("id").unwrap_or_default(), record))
        .collect();
    for record in &marked {
        assert_eq!(record.header("position"), None, "a replayed record has no position");
        let first = first[record.header("id").expect("an id")];
        assert!(first.partition == record.partition && first.offset < record.offset);
        assert!(first.key == record.key && first.value == record.value);
    }
}

/// Asserts that the rows that the relay publishes are there once and in order, whatever is replayed.
async fn assert_relay_is_undisturbed(rig: &Rig) {
    rig.insert_each(10).await;
    eventually_ok(ARRIVAL_DEADLINE, "the relay publishes each row once", || async {
        let (unmarked, _) = unmarked_and_marked(rig).await;
        let ledger = Ledger::compare(&rig.rows().await, &unmarked);
        anyhow::ensure!(ledger.is_exact(), "{ledger}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", rig.relay.log_tail(20)));
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_topic_that_takes_only_small_batches_is_replayed_into() {
    let rig = rig_with_published_rows("replay_small", 14).await;
    limit_record_bytes(&rig, 20_000).await;
    let end = "select confirmed_flush_lsn >= pg_current_wal_flush_lsn() from pg_replication_slots where slot_name = 'replay_small'";
    stack::eventually(DEADLINE, "all is confirmed", || async {
        (rig.value(end).await == "t").then_some(())
    })
    .await;
    assert_eq!(
        replay_code(&rig, &["--key", "k1", "--yes"]).await,
        0,
        "{}",
        rig.relay.log_tail(5)
    );
    let chosen: Vec<Row> = rig.rows().await.into_iter().filter(|row| row.key == "k1").collect();
    assert!(!chosen.is_empty());
    assert_replayed(&rig, &chosen).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn rows_of_a_key_are_replayed_beside_a_running_relay() {
    let rig = Arc::new(rig_with_published_rows("replay_key", 700).await);
    let chosen: Vec<Row> = rig.rows().await.into_iter().filter(|row| row.key == "k3").collect();
    let topic = rig.topic();
    let writer = Arc::clone(&rig);
    let writing = tokio::spawn(async move {
        let insert = format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             select '{topic}', 'other', 'Changed', jsonb_build_object('n', nextval('numbers'))"
        );
        writer
            .sql(&format!(
                "do $$ begin for i in 1..500 loop {insert}; commit; end loop; end $$"
            ))
            .await;
    });
    assert_eq!(
        replay_code(&rig, &["--key", "k3", "--yes"]).await,
        0,
        "{}",
        rig.relay.log_tail(20)
    );
    let said = rig.relay.log_text();
    assert!(said.contains("100 rows of 1 keys"), "{said}");
    writing.await.expect("the writer ends");
    assert_replayed(&rig, &chosen).await;
    assert_relay_is_undisturbed(&rig).await;
}

#[tokio::test]
async fn rows_are_chosen_by_time_and_by_id() {
    const OTHER_ROWS: u32 = 30;
    const CHOSEN_ROWS: u32 = 3_000;
    let rig = rig_with_published_rows("replay_time", OTHER_ROWS).await;
    let from = rig.value("select clock_timestamp()").await;
    rig.insert_each(CHOSEN_ROWS).await;
    let to = rig.value("select clock_timestamp()").await;
    rig.insert_each(OTHER_ROWS).await;
    let mut rows = rig.rows().await;
    rows.sort_by_key(|row| row.n);
    assert_eq!(
        replay_code(&rig, &["--from", &from, "--to", &to, "--yes"]).await,
        0,
        "{}",
        rig.relay.log_tail(20)
    );
    let chosen_by_time = &rows[OTHER_ROWS as usize..(OTHER_ROWS + CHOSEN_ROWS) as usize];
    assert_replayed(&rig, chosen_by_time).await;
    assert_eq!(replay_code(&rig, &["--id", &rows[0].id, "--yes"]).await, 0);
    let (_, marked) = unmarked_and_marked(&rig).await;
    assert_eq!(
        marked.len(),
        CHOSEN_ROWS as usize + 1,
        "those of the time, and the one of the id"
    );
    let replays: std::collections::HashSet<&str> = marked.iter().filter_map(|record| record.header("replay")).collect();
    assert_eq!(replays.len(), 2, "each replay has an id of its own");
    assert_relay_is_undisturbed(&rig).await;
}

#[tokio::test]
async fn nothing_is_replayed_without_a_choice_or_an_answer() {
    let rig = rig_with_published_rows("replay_asks", 20).await;
    assert_eq!(replay_code(&rig, &["--yes"]).await, relay_exit::WRONG_SETTING);
    assert_eq!(replay_code(&rig, &["--key", "k1"]).await, relay_exit::NOT_CONFIRMED);
    let answered = rig.relay.run_on_a_terminal(&["replay", "--key", "k1"], "no\n").await;
    let (status, screen) = answered.expect("replay runs");
    assert_eq!(status.code(), Some(relay_exit::NOT_CONFIRMED), "{screen}");
    assert!(screen.contains("carry this out?"), "{screen}");
    let (_, marked) = unmarked_and_marked(&rig).await;
    assert_eq!(marked.len(), 0);
    assert_relay_is_undisturbed(&rig).await;
}

#[tokio::test]
async fn a_row_is_not_replayed_before_it_is_published() {
    let rig = rig_with_published_rows("replay_waits", 20).await;
    rig.relay.kill_hard().await;
    rig.insert_each(50).await;
    let rows = rig.rows().await;
    let replay = rig
        .relay
        .command_of("replay", &["replay", "--from", "2000-01-01", "--yes"]);
    replay.start().expect("a start");
    eventually_ok(DEADLINE, "the replay waits", || async {
        anyhow::ensure!(replay.log_text().contains("waiting until the relay"), "not yet");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", replay.log_tail(10)));
    rig.start().await;
    let status = replay.exited(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(status.code(), Some(0), "{}", replay.log_tail(10));
    assert_replayed(&rig, &rows).await;
    assert_relay_is_undisturbed(&rig).await;
}

#[tokio::test]
async fn a_killed_replay_leaves_whole_transactions_and_does_not_hold_up_the_relay() {
    const ROWS: u32 = 5_000;
    /// Two transactions of the replay have so many rows at least.
    const ROWS_OF_TWO_TRANSACTIONS: u32 = 2_000;
    let rig = rig_with_published_rows("replay_killed", ROWS).await;
    let hits = rig.logs().join("replay-hits");
    let replay = rig
        .relay
        .command_of("replay", &["replay", "--from", "2000-01-01", "--yes"])
        .env("OUTBOX_RELAY_FAILPOINT", "replay.before-commit=kill@3")
        .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy());
    replay.start().expect("a start");
    let status = replay.exited(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(status.signal(), Some(SIGKILL), "{}", replay.log_tail(10));
    // The next replay ends what the killed one has left open.
    assert_eq!(replay_code(&rig, &["--key", "k0", "--yes"]).await, 0);
    let (_, marked) = unmarked_and_marked(&rig).await;
    let of_key = rig.rows().await.iter().filter(|row| row.key == "k0").count();
    let rows_of_killed_replay = marked.len() - of_key;
    assert!(
        (ROWS_OF_TWO_TRANSACTIONS as usize..ROWS as usize).contains(&rows_of_killed_replay),
        "two transactions of it are there, and no part of the third: {rows_of_killed_replay}"
    );
    assert_relay_is_undisturbed(&rig).await;
}

#[tokio::test]
async fn a_terminal_shows_a_bar_while_rows_are_replayed_and_a_file_gets_nothing_of_it() {
    let rig = rig_with_published_rows("replay_bar", 5_000).await;
    let arguments = ["replay", "--from", "2000-01-01", "--yes"];
    let shown = rig.relay.run_on_a_terminal(&arguments, "").await;
    let (status, screen) = shown.expect("replay runs");
    assert!(status.success(), "{screen}");
    for part in ["replaying rows ", " of 5,000 rows, ", "/s, ", " left"] {
        assert!(screen.contains(part), "`{part}` is missing: {screen}");
    }
    let (_, behind) = screen.rsplit_once(" left").expect("a bar");
    assert!(behind.contains("5000 rows are published again"), "{behind}");
    assert!(behind.contains("\u{1b}[2K"), "the bar is wiped away: {behind:?}");
    let logged = rig.relay.log_text().len();
    assert_eq!(replay_code(&rig, &arguments[1..]).await, 0);
    let said = rig.relay.log_text()[logged..].to_owned();
    assert!(said.contains("5000 rows are published again"), "{said}");
    assert!(!said.contains("of 5,000 rows") && !said.contains('\r'), "{said:?}");
    rig.finish().await.expect("a clean end");
}
