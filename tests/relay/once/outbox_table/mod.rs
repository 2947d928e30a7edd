//! An outbox table can be unusual in a way that hides rows from the relay or makes statements fail. The relay says what is unusual and what to
//! do. These tests also show that doing so helps.

mod attached_partitions;
mod definition;
mod heirs;
mod locked_partitions;

use std::time::Duration;

use rig::{Isolation, Rig};
use stack::{eventually, eventually_ok};

use crate::relay::tampering::metric;

const DEADLINE: Duration = Duration::from_secs(60);
/// Replaces the rig's outbox by one with a partition for each day.
const PARTITIONED_BY_DAY: &str = "drop table outbox; create table outbox (
    id uuid not null default gen_random_uuid(), aggregatetype text not null, aggregateid text not null,
    type text not null, payload jsonb, created_at timestamptz not null default clock_timestamp(), primary key (id, created_at)
    ) partition by range (created_at);
    create table outbox_default partition of outbox default";
/// What the relay logs about a partition that was attached with rows in it.
const ROWS_IN_NO_STREAM: &str = "rows in it: no stream has them";
/// What the relay logs when a partition is locked.
const OUTBOX_IS_BUSY: &str = "the outbox is busy; its partitions are looked after later";

/// Runs a command. Asserts that it ends with this exit code and says all of `says`.
async fn assert_command_says(rig: &Rig, command: &str, exit_code: i32, says: &[&str]) {
    let logged = rig.relay.log_text().len();
    let status = rig.relay.run_for_status(&[command]).await.expect("it ends");
    let log = rig.relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(exit_code), "{command}: {log}");
    for words in says {
        assert!(log.contains(words), "{command} says `{words}`: {log}");
    }
}

/// Waits until the log of the relay has these words.
async fn wait_until_log_says(rig: &Rig, words: &str) {
    let said = eventually_ok(DEADLINE, words, || async {
        anyhow::ensure!(rig.relay.log_text().contains(words), "{}", rig.relay.log_tail(10));
        Ok(())
    });
    said.await.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Waits until the log says this at least so many times.
async fn wait_until_log_says_often(rig: &Rig, words: &str, times: usize) {
    eventually(DEADLINE, words, || {
        let said = rig.relay.log_text().matches(words).count();
        std::future::ready((said >= times).then_some(()))
    })
    .await;
}

fn assert_log_names(rig: &Rig, table: &str) {
    assert!(rig.relay.log_text().contains(table), "{}", rig.relay.log_tail(10));
}

fn assert_log_does_not_say(rig: &Rig, words: &str) {
    assert!(!rig.relay.log_text().contains(words), "{}", rig.relay.log_tail(10));
}

/// Waits until the relay's maintenance has gone through the partitions once without an error.
async fn wait_for_a_round_of_maintenance(rig: &Rig) {
    let success = "relay_outbox_maintenance_success_timestamp_seconds";
    eventually(DEADLINE, "a round without an error", || metric(rig, success)).await;
}

/// Waits until the topic has `count` records. Asserts that it has no more.
async fn assert_published(rig: &Rig, count: usize) {
    let published = eventually_ok(DEADLINE, "records", || async {
        let records = rig.records(Isolation::Committed).await?.len();
        anyhow::ensure!(records >= count, "{records}\n{}", rig.relay.log_tail(10));
        Ok(records)
    });
    let records = published.await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(records, count);
}

/// The statement that writes two rows of `day` into `table`.
fn insert_statement_of_day(rig: &Rig, table: &str, day: &str) -> String {
    rig.insert_statement(2, 7)
        .replace("insert into outbox (", &format!("insert into {table} (created_at, "))
        .replace("select '", &format!("select '{day} 12:00+00'::timestamptz, '"))
}

/// Creates a table with two rows of `day`. Returns the statement that makes the table a partition of the outbox.
async fn create_table_with_rows(rig: &Rig, table: &str, day: &str, next_day: &str) -> String {
    rig.sql(&format!("create table {table} (like outbox including all)"))
        .await;
    rig.sql(&insert_statement_of_day(rig, table, day)).await;
    format!("alter table outbox attach partition {table} for values from ('{day} 00:00+00') to ('{next_day} 00:00+00')")
}
