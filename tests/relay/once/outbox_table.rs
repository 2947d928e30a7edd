//! What is odd about an outbox table is said in words, and what the words say helps.

use std::time::Duration;

use rig::{Isolation, Rig};
use stack::{eventually, eventually_ok};

use crate::relay::tampering::{metric, wait_until_confirmed};

const DEADLINE: Duration = Duration::from_secs(60);
const BY_DAY: &str = "drop table outbox; create table outbox (
    id uuid not null default gen_random_uuid(), aggregatetype text not null, aggregateid text not null,
    type text not null, payload jsonb, created_at timestamptz not null default clock_timestamp(), primary key (id, created_at)
    ) partition by range (created_at);
    create table outbox_default partition of outbox default";

/// Runs a command, which must end with this code and say this.
async fn assert_says(rig: &Rig, command: &str, exit_code: i32, says: &[&str]) {
    let logged = rig.relay.log_text().len();
    let status = rig.relay.run_for_status(&[command]).await.expect("it ends");
    let log = rig.relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(exit_code), "{command}: {log}");
    for words in says {
        assert!(log.contains(words), "{command} says `{words}`: {log}");
    }
}

async fn said(rig: &Rig, words: &str) {
    let said = eventually_ok(DEADLINE, words, || async {
        anyhow::ensure!(rig.relay.log_text().contains(words), "{}", rig.relay.log_tail(10));
        Ok(())
    });
    said.await.unwrap_or_else(|err| panic!("{err:#}"));
}

async fn published(rig: &Rig, count: usize) {
    let published = eventually_ok(DEADLINE, "records", || async {
        let records = rig.records(Isolation::Committed).await?.len();
        anyhow::ensure!(records >= count, "{records}\n{}", rig.relay.log_tail(10));
        Ok(records)
    });
    let records = published.await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(records, count);
}

#[tokio::test]
async fn a_table_that_inherits_the_outbox_is_told_and_its_rows_are_not_taken_for_the_outbox_own() {
    let rig = Rig::new("table_heir").await;
    rig.sql("create table archive () inherits (outbox)").await;
    assert_says(
        &rig,
        "init",
        20,
        &["public.archive inherits public.outbox", "no inherit"],
    )
    .await;
    assert_says(
        &rig,
        "check",
        1,
        &["PROBLEM  table public.archive inherits public.outbox"],
    )
    .await;
    rig.sql("alter table archive no inherit outbox").await;
    rig.insert_each(3).await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    rig.relay.stop().await.expect("a clean end");
    // Rows that are moved there were published, and are nobody's loss.
    rig.sql("alter table archive inherit outbox").await;
    rig.sql("with moved as (delete from only outbox returning *) insert into archive select * from moved")
        .await;
    rig.start().await;
    said(&rig, "public.archive inherits public.outbox").await;
    rig.insert_each(3).await;
    published(&rig, 9).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn without_the_look_at_heirs_a_row_is_in_select_and_never_published() {
    let mut rig = Rig::new("table_heir_planted").await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "OverlookHeirs");
    rig.sql("create table archive () inherits (outbox)").await;
    rig.init(&[]).await;
    rig.start().await;
    rig.sql(&rig.insert_statement(1, 7).replace("into outbox", "into archive"))
        .await;
    rig.insert_each(2).await;
    published(&rig, 2).await;
    assert_eq!(rig.rows().await.len(), 3);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_generated_column_that_the_router_needs_is_told_before_anything_is_made() {
    let mut rig = Rig::new("table_generated").await;
    rig.relay = rig.relay.env(
        "ROUTER_OPTIONS",
        "route.topic.replacement=${routedByValue}\ntable.fields.additional.placement=shown:header",
    );
    rig.sql("alter table outbox add shown text generated always as (upper(type)) stored")
        .await;
    let words = ["column `shown` of table public.outbox is generated", "drop expression"];
    assert_says(&rig, "init", 2, &words).await;
    assert_says(&rig, "check", 1, &words).await;
    // Both ways out work: the publication's, which an altered publication has to be accepted for, and the table's.
    rig.sql("alter publication outbox set (publish_generated_columns = stored)")
        .await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(1).await;
    published(&rig, 1).await;
    rig.relay.stop().await.expect("a clean end");
    rig.sql("alter publication outbox set (publish_generated_columns = none)")
        .await;
    rig.sql("alter table outbox alter shown drop expression").await;
    rig.sql("alter table outbox alter shown set default 'CHANGED'").await;
    rig.init(&["--accept-publication"]).await;
    rig.start().await;
    rig.insert_each(1).await;
    published(&rig, 2).await;
    for record in rig.records(Isolation::Committed).await.expect("records") {
        assert_eq!(record.header("shown"), Some("CHANGED"));
    }
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn an_outbox_whose_rows_the_application_may_not_change_is_told() {
    let rig = Rig::new("table_identity").await;
    let words = "has no replica identity";
    rig.sql("alter table outbox drop constraint outbox_pkey; create publication outbox for table outbox")
        .await;
    rig.init(&[]).await;
    assert_says(
        &rig,
        "check",
        0,
        &["warning  the publication has updates or deletes", words],
    )
    .await;
    rig.insert_each(1).await;
    let postgres = &rig.servers.postgres;
    let refused = postgres.query(rig.name(), "delete from outbox").await;
    assert!(refused.is_err(), "it is true");
    rig.sql("alter table outbox replica identity full").await;
    rig.sql("delete from outbox").await;
    let logged = rig.relay.log_text().len();
    rig.relay.run(&["check"]).await.expect("check");
    assert!(!rig.relay.log_text()[logged..].contains(words), "it helps");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn what_a_truncation_means_is_said_once() {
    let rig = Rig::new("table_truncated").await;
    rig.sql("create publication outbox for table outbox").await;
    rig.init(&[]).await;
    rig.insert_each(3).await;
    rig.sql("truncate outbox").await;
    rig.insert_each(2).await;
    rig.sql("truncate outbox").await;
    rig.start().await;
    published(&rig, 5).await;
    rig.insert_each(1).await;
    published(&rig, 6).await;
    let lines = rig.relay.log_text().matches("the outbox was truncated").count();
    assert_eq!(lines, 1, "{}", rig.relay.log_tail(10));
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_partition_that_comes_with_rows_is_told_and_its_rows_can_be_published() {
    let mut rig = Rig::new("table_attached").await;
    rig.sql(BY_DAY).await;
    rig.relay = rig.relay.env("OUTBOX_MAINTENANCE_INTERVAL", "1");
    rig.init(&[]).await;
    rig.start().await;
    eventually(DEADLINE, "maintenance has looked", || async {
        metric(&rig, "relay_outbox_maintenance_success_timestamp_seconds").await
    })
    .await;
    // One that is filled once it belongs to the outbox is none of them.
    rig.sql(
        "create table later partition of outbox for values from ('2031-01-01 00:00+00') to ('2031-01-02 00:00+00')",
    )
    .await;
    rig.sql(&insert_into(&rig, "outbox", "2031-01-01")).await;
    rig.sql("create table filled (like outbox including all)").await;
    rig.sql(&insert_into(&rig, "filled", "2032-01-01")).await;
    rig.sql(
        "alter table outbox attach partition filled for values from ('2032-01-01 00:00+00') to ('2032-01-02 00:00+00')",
    )
    .await;
    said(&rig, "attached with rows in it").await;
    assert!(
        !rig.relay.log_text().contains("public.later"),
        "{}",
        rig.relay.log_tail(10)
    );
    published(&rig, 2).await;
    rig.sql("alter table outbox detach partition filled; insert into outbox select * from filled; drop table filled")
        .await;
    published(&rig, 4).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

/// Two rows of `day` for `table`.
fn insert_into(rig: &Rig, table: &str, day: &str) -> String {
    rig.insert_statement(2, 7)
        .replace("insert into outbox (", &format!("insert into {table} (created_at, "))
        .replace("select '", &format!("select '{day} 12:00+00'::timestamptz, '"))
}

/// A table with two rows of `day`, and the statement that makes it a partition of the outbox.
async fn fill(rig: &Rig, table: &str, day: &str, next_day: &str) -> String {
    rig.sql(&format!("create table {table} (like outbox including all)"))
        .await;
    rig.sql(&insert_into(rig, table, day)).await;
    format!("alter table outbox attach partition {table} for values from ('{day} 00:00+00') to ('{next_day} 00:00+00')")
}

/// A partition that comes after `init` and before the start of a relay.
async fn start_behind_an_attachment(rig: &mut Rig) {
    rig.sql(BY_DAY).await;
    rig.relay = rig
        .relay
        .with_env("OUTBOX_MAINTENANCE_INTERVAL", "1")
        .with_env("LOG", "outbox_relay=debug");
    rig.init(&[]).await;
    let attach = fill(rig, "meanwhile", "2032-01-01", "2032-01-02").await;
    rig.sql(&attach).await;
    rig.start().await;
}

#[tokio::test]
async fn a_partition_that_comes_with_rows_while_no_relay_runs_is_told_at_the_start_and_a_locked_one_later() {
    let mut rig = Rig::new("table_meanwhile").await;
    start_behind_an_attachment(&mut rig).await;
    said(&rig, "rows in it: no stream has them").await;
    assert!(
        rig.relay.log_text().contains("public.meanwhile"),
        "{}",
        rig.relay.log_tail(10)
    );

    let attach = fill(&rig, "locked", "2033-01-01", "2033-01-02").await;
    let (attaching, holding) = (rig.connect().await, rig.connect().await);
    attaching
        .batch_execute(&format!("begin; {attach}"))
        .await
        .expect("attached");
    // It gets the lock as soon as the partition is there, before anybody can look.
    let held = tokio::spawn(async move {
        holding
            .batch_execute("begin; lock table locked")
            .await
            .map(|()| holding)
    });
    eventually(DEADLINE, "a session waits for the partition", || async {
        let waits = "select count(*) from pg_locks where relation = 'locked'::regclass and not granted";
        (rig.value(waits).await != "0").then_some(())
    })
    .await;
    attaching.batch_execute("commit").await.expect("a commit");
    let holding = held.await.expect("no panic").expect("the lock");
    said(&rig, "the outbox is busy; its partitions are looked after later").await;
    assert!(
        !rig.relay.log_text().contains("public.locked"),
        "{}",
        rig.relay.log_tail(10)
    );
    holding.batch_execute("rollback").await.expect("an end");
    eventually(DEADLINE, "the second partition is told", || {
        let told = rig.relay.log_text().matches("rows in it: no stream has them").count();
        std::future::ready((told == 2).then_some(()))
    })
    .await;
    rig.insert_each(3).await;
    published(&rig, 3).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn without_the_look_at_the_start_rows_that_no_stream_has_are_not_told() {
    let mut rig = Rig::new("table_meanwhile_planted").await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "OverlookPartitionsAtStart");
    start_behind_an_attachment(&mut rig).await;
    rig.insert_each(3).await;
    published(&rig, 3).await;
    let success = "relay_outbox_maintenance_success_timestamp_seconds";
    eventually(DEADLINE, "maintenance has looked", || metric(&rig, success)).await;
    assert_eq!(rig.rows().await.len(), 5);
    assert!(
        !rig.relay.log_text().contains("no stream has them"),
        "{}",
        rig.relay.log_tail(10)
    );
    rig.finish().await.expect("a clean end");
}

/// Partitions of before, one that came with rows after `init`, and a relay that has found that one locked in its first two rounds. It is first in
/// the order of the oids.
async fn start_beside_a_locked_one(rig: &mut Rig, bug: &str) -> tokio_postgres::Client {
    rig.sql(BY_DAY).await;
    let (go_on, hits) = (rig.logs().join("go_on"), rig.logs().join("hits"));
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .with_env("OUTBOX_RELAY_BUG", bug)
        .with_env(
            "OUTBOX_RELAY_FAILPOINT",
            &format!("maintenance.round=until:{}@1", go_on.display()),
        )
        .with_env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy())
        .with_env("OUTBOX_MAINTENANCE_INTERVAL", "1")
        .with_env("LOG", "outbox_relay=debug");
    let attach = fill(rig, "fresh", "2032-01-01", "2032-01-02").await;
    for (table, day, next_day) in [
        ("old_one", "2033-01-01", "2033-01-02"),
        ("old_two", "2034-01-01", "2034-01-02"),
    ] {
        let attach = fill(rig, table, day, next_day).await;
        rig.sql(&attach).await;
    }
    rig.init(&[]).await;
    rig.sql(&attach).await;
    rig.start().await;
    // A start waits for such a lock.
    let holding = rig.connect().await;
    holding
        .batch_execute("begin; lock table fresh")
        .await
        .expect("the lock");
    std::fs::write(&go_on, "").expect("a file");
    times_said(rig, "the outbox is busy; its partitions are looked after later", 2).await;
    holding
}

const TOLD: &str = "rows in it: no stream has them";

async fn times_said(rig: &Rig, words: &str, times: usize) {
    eventually(DEADLINE, words, || {
        let said = rig.relay.log_text().matches(words).count();
        std::future::ready((said >= times).then_some(()))
    })
    .await;
}

#[tokio::test]
async fn a_partition_that_is_locked_at_the_start_is_told_later_and_none_of_those_of_before() {
    let mut rig = Rig::new("table_locked").await;
    let holding = start_beside_a_locked_one(&mut rig, "").await;
    assert!(!rig.relay.log_text().contains(TOLD), "{}", rig.relay.log_tail(10));
    holding.batch_execute("rollback").await.expect("an end");
    said(&rig, TOLD).await;
    assert!(
        rig.relay.log_text().contains("public.fresh"),
        "{}",
        rig.relay.log_tail(10)
    );
    let success = "relay_outbox_maintenance_success_timestamp_seconds";
    eventually(DEADLINE, "a round without an error", || metric(&rig, success)).await;
    assert_eq!(
        rig.relay.log_text().matches(TOLD).count(),
        1,
        "{}",
        rig.relay.log_tail(10)
    );
    rig.insert_each(3).await;
    published(&rig, 7).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn without_a_first_pass_partitions_of_before_are_told_falsely() {
    let mut rig = Rig::new("table_locked_planted").await;
    let holding = start_beside_a_locked_one(&mut rig, "ForgetPartitionsBehindANewOne").await;
    said(&rig, TOLD).await;
    assert!(
        rig.relay.log_text().contains("public.old_one"),
        "{}",
        rig.relay.log_tail(10)
    );
    holding.batch_execute("rollback").await.expect("an end");
    rig.finish().await.expect("a clean end");
}

/// Takes the partition `meanwhile` away, gives it other rows and attaches it again, where nobody can see it in between.
async fn attach_again(rig: &Rig) {
    let rows = insert_into(rig, "meanwhile", "2032-01-01");
    rig.sql(&format!(
        "begin; alter table outbox detach partition meanwhile; truncate meanwhile; {rows};
         alter table outbox attach partition meanwhile for values from ('2032-01-01 00:00+00') to ('2032-01-02 00:00+00');
         commit"
    ))
    .await;
}

#[tokio::test]
async fn a_partition_that_is_attached_again_is_told_again_also_beside_trouble_with_the_table() {
    let mut rig = Rig::new("table_again").await;
    start_behind_an_attachment(&mut rig).await;
    said(&rig, TOLD).await;
    // Nor is a partition of a partition overlooked that came with it.
    rig.sql(
        "create table branch (like outbox including all) partition by range (created_at);
         create table leaf partition of branch for values from ('2036-01-01 00:00+00') to ('2036-01-02 00:00+00')",
    )
    .await;
    rig.sql(&insert_into(&rig, "branch", "2036-01-01")).await;
    rig.sql(
        "alter table outbox attach partition branch for values from ('2036-01-01 00:00+00') to ('2037-01-01 00:00+00')",
    )
    .await;
    times_said(&rig, TOLD, 2).await;
    assert!(
        rig.relay.log_text().contains("public.leaf"),
        "{}",
        rig.relay.log_tail(10)
    );

    rig.sql(
        "create function refuse() returns event_trigger language plpgsql as $$ begin raise exception 'no tables'; end $$;
         create event trigger refuse on ddl_command_start when tag in ('CREATE TABLE') execute function refuse();
         do $$ declare day text; begin
             for day in select inhrelid::regclass from pg_inherits where inhparent = 'outbox'::regclass
                 and inhrelid::regclass::text not in ('outbox_default', 'meanwhile', 'branch')
             loop execute 'drop table ' || day; end loop;
         end $$",
    )
    .await;
    said(&rig, "the outbox table could not be looked after; publishing goes on").await;
    attach_again(&rig).await;
    times_said(&rig, TOLD, 3).await;
    rig.insert_each(3).await;
    published(&rig, 3).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn without_the_attachments_transaction_a_partition_that_is_attached_again_is_not_told() {
    let mut rig = Rig::new("table_again_planted").await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "KnowPartitionsByOid");
    start_behind_an_attachment(&mut rig).await;
    said(&rig, TOLD).await;
    attach_again(&rig).await;
    // Another one shows that it has looked since.
    let attach = fill(&rig, "beside", "2035-01-01", "2035-01-02").await;
    rig.sql(&attach).await;
    times_said(&rig, TOLD, 2).await;
    assert_eq!(
        rig.relay.log_text().matches("public.meanwhile").count(),
        1,
        "{}",
        rig.relay.log_tail(10)
    );
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_locked_partition_holds_up_neither_a_start_nor_confirmations_nor_who_attaches_another() {
    let mut rig = Rig::new("table_partition_locked").await;
    rig.sql(BY_DAY).await;
    rig.sql(
        "create table locked partition of outbox for values from ('2032-01-01 00:00+00') to ('2032-01-02 00:00+00')",
    )
    .await;
    // Maintenance waits for locks, a moment at a time.
    rig.relay = rig.relay.with_env("OUTBOX_MAINTENANCE_INTERVAL", "86400");
    rig.init(&[]).await;
    let holding = rig.connect().await;
    // As VACUUM FULL has it.
    holding
        .batch_execute("begin; lock table locked")
        .await
        .expect("the lock");
    rig.start().await;
    rig.insert_each(5).await;
    published(&rig, 5).await;
    wait_until_confirmed(&rig).await;
    let attach = fill(&rig, "another", "2033-01-01", "2033-01-02").await;
    rig.sql(&format!("set lock_timeout = '5s'; {attach}")).await;
    holding.batch_execute("rollback").await.expect("an end");
    rig.finish().await.expect("a clean end");
}
