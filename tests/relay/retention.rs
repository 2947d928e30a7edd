//! The relay removes old rows from the outbox.

use std::time::Duration;

use anyhow::ensure;
use rig::{Isolation, Ledger, Rig};
use stack::{Program, eventually_ok};

/// Maintenance runs every second here, and a confirmation may take ten seconds.
const DEADLINE: Duration = Duration::from_secs(60);
const BY_DAY: &str = "drop table outbox; create table outbox (
    id uuid not null default gen_random_uuid(), aggregatetype text not null, aggregateid text not null,
    type text not null, payload jsonb, created_at timestamptz not null default clock_timestamp(), primary key (id, created_at)
    ) partition by range (created_at);
    create table outbox_default partition of outbox default";

/// A rig whose outbox is partitioned by day. `settings` are further settings of the relay.
pub(super) async fn rig_with_partitions_by_day(name: &str, settings: &[(&str, &str)]) -> Rig {
    let mut rig = Rig::new(name).await;
    rig.sql(BY_DAY).await;
    configure(&mut rig, settings);
    rig.init(&[]).await;
    rig
}

fn configure(rig: &mut Rig, settings: &[(&str, &str)]) {
    let all = [("OUTBOX_MAINTENANCE_INTERVAL", "1")]
        .into_iter()
        .chain(settings.iter().copied());
    let relay = all.fold(rig.relay.with_env("OUTBOX_RETAIN", "7"), |relay, (name, value)| {
        relay.env(name, value)
    });
    rig.relay = relay;
}

async fn add_day(rig: &Rig, name: &str, days_ago: i32) {
    rig.sql(&format!(
        "do $$ declare day timestamptz := (date_trunc('day', now() at time zone 'utc') - interval '{days_ago} days') at time zone 'utc'; begin
           execute format('create table {name} partition of outbox for values from (%L) to (%L)', day, day + interval '1 day'); end $$"
    ))
    .await;
}

/// The statement that inserts rows of so many days ago. They belong into the partition of that day.
pub(super) fn insert_old(rig: &Rig, count: u32, days_ago: i32) -> String {
    let topic = rig.topic();
    format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload, created_at)
         select '{topic}', 'old' || n % 3, 'Changed', jsonb_build_object('n', n),
                (date_trunc('day', now() at time zone 'utc') - interval '{days_ago} days' + interval '1 hour') at time zone 'utc'
         from (select nextval('numbers') as n from generate_series(1, {count})) as numbered"
    )
}

pub(super) async fn exists(rig: &Rig, table: &str) -> bool {
    rig.value(&format!("select to_regclass('{table}') is not null")).await == "t"
}

pub(super) async fn wait_until_table_is_gone(rig: &Rig, table: &str) {
    let dropped = eventually_ok(DEADLINE, "the partition is dropped", || async {
        ensure!(
            !exists(rig, table).await,
            "{table} is there\n{}",
            rig.relay.log_tail(10)
        );
        Ok(())
    });
    dropped.await.unwrap_or_else(|err| panic!("{err:#}"));
}

async fn query_count(rig: &Rig, sql: &str) -> usize {
    rig.value(sql).await.parse().expect("a count")
}

async fn wait_until_default_is_empty(rig: &Rig) {
    let deleted = eventually_ok(DEADLINE, "the old rows are deleted", || async {
        let left = query_count(rig, "select count(*) from outbox_default").await;
        ensure!(left == 0, "{left} rows are left");
        Ok(())
    });
    deleted.await.unwrap_or_else(|err| panic!("{err:#}"));
}

async fn wait_until_log_says(relay: &Program, words: &str) {
    let said = eventually_ok(DEADLINE, words, || async {
        ensure!(relay.log_text().contains(words), "{}", relay.log_tail(10));
        Ok(())
    });
    said.await.unwrap_or_else(|err| panic!("{err:#}"));
}

#[tokio::test]
async fn days_are_made_ahead_and_writers_never_need_the_default() {
    let rig = rig_with_partitions_by_day("retention_ahead", &[("OUTBOX_PARTITIONS_AHEAD", "3")]).await;
    rig.sql("alter table outbox alter payload set statistics 0, alter type set statistics 500")
        .await;
    rig.start().await;
    let made = eventually_ok(DEADLINE, "partitions", || async {
        let made = query_count(
            &rig,
            "select count(*) from pg_inherits where inhparent = 'outbox'::regclass",
        )
        .await;
        ensure!(made == 5, "{made} partitions");
        Ok(())
    });
    made.await.unwrap_or_else(|err| panic!("{err:#}"));
    let targets =
        "select string_agg(distinct attname || ' ' || attstattarget, ', ' order by attname || ' ' || attstattarget)
        from pg_inherits join pg_attribute on attrelid = inhrelid where attnum > 0 and attstattarget >= 0";
    assert_eq!(
        rig.value(targets).await,
        "payload 0, type 500",
        "what is sampled of the table is of its days"
    );
    rig.insert_each(100).await;
    rig.insert_together(1_000).await;
    assert_eq!(query_count(&rig, "select count(*) from outbox_default").await, 0);
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_day_that_is_made_under_its_writers_fails_no_insert() {
    let rig = rig_with_partitions_by_day("retention_today", &[]).await;
    rig.sql("create table stop (id int)").await;
    let insert = rig.insert_statement(1, 7);
    // Each row goes into the default partition and is deleted at once. So the partition of today can be made while rows are written.
    let write = format!(
        "do $$ begin while not exists (select from stop) loop {insert}; delete from outbox; commit; end loop; end $$"
    );
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (postgres, database, write) = (rig.servers.clone(), rig.name().to_owned(), write.clone());
            tokio::spawn(async move { postgres.postgres.query(&database, &write).await })
        })
        .collect();
    rig.start().await;
    wait_until_log_says(&rig.relay, "made a partition").await;
    let today = "select count(*) > 0 from pg_inherits where inhparent = 'outbox'::regclass";
    assert_eq!(rig.value(today).await, "t");
    rig.sql("insert into stop values (1)").await;
    for writer in writers {
        writer.await.expect("a writer").expect("no insert fails");
    }
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn an_old_day_goes_once_its_rows_are_confirmed_and_not_before() {
    let rig = rig_with_partitions_by_day("retention_drop", &[]).await;
    add_day(&rig, "day9", 9).await;
    add_day(&rig, "day3", 3).await;
    // A writer has not committed. Its row is not published, so its day has to stay.
    let client = rig.connect().await;
    client.batch_execute("begin").await.expect("begin");
    client.batch_execute(&insert_old(&rig, 10, 9)).await.expect("old rows");
    rig.start().await;
    rig.insert_each(20).await;
    rig.wait_until_published(DEADLINE)
        .await
        .expect("new rows are published");
    // The writer holds its lock, so maintenance is postponed.
    let postponed = eventually_ok(DEADLINE, "a round is postponed", || async {
        let metrics = reqwest::get(rig.relay.url("/metrics")).await?.text().await?;
        ensure!(metrics.contains("relay_outbox_maintenance_failing 1"), "{metrics}");
        Ok(())
    });
    postponed.await.unwrap_or_else(|err| panic!("{err:#}"));
    // Maintenance runs several times meanwhile.
    for _ in 0..30 {
        assert!(exists(&rig, "day9").await, "a day with unconfirmed rows stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let members = "select count(*) from pg_inherits where inhrelid = 'day9'::regclass";
    assert_eq!(query_count(&rig, members).await, 1, "it is still a partition");
    client.batch_execute("commit").await.expect("commit");
    wait_until_table_is_gone(&rig, "day9").await;
    assert!(exists(&rig, "day3").await, "a younger day stays");
    let old = rig.records(Isolation::Committed).await.expect("records");
    let old = old
        .iter()
        .filter(|record| record.key_text().is_some_and(|key| key.starts_with("old")));
    assert_eq!(old.count(), 10, "what was in it is published");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_day_that_a_killed_relay_had_detached_is_dropped_once_its_position_is_confirmed_and_not_before() {
    let rig = rig_with_partitions_by_day("retention_waits", &[]).await;
    add_day(&rig, "day9", 9).await;
    rig.sql(&insert_old(&rig, 10, 9)).await;
    // A relay was killed between detaching and dropping, and has left this table. Its position is far from being confirmed.
    rig.sql("create table leftover (like outbox)").await;
    rig.sql(
        "comment on table leftover is 'detached from \"public\".\"outbox\" by outbox-relay; to be dropped once the slot has confirmed FFFF/0'",
    )
    .await;
    // Once the relay has dropped day9, it has looked at the leftover, too.
    rig.start().await;
    wait_until_table_is_gone(&rig, "day9").await;
    assert!(exists(&rig, "leftover").await, "its position is not confirmed");
    rig.sql(
        "comment on table leftover is 'detached from \"public\".\"outbox\" by outbox-relay; to be dropped once the slot has confirmed 0/1'",
    )
    .await;
    wait_until_table_is_gone(&rig, "leftover").await;
    let records = rig.records(Isolation::Committed).await.expect("records");
    assert_eq!(records.len(), 10, "what was in the day was published once");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_partition_that_never_ends_stays_and_keeps_no_old_day_from_being_dropped() {
    let rig = rig_with_partitions_by_day("retention_infinite", &[]).await;
    rig.sql("create table future partition of outbox for values from ('2999-01-01 00:00+00') to ('infinity')")
        .await;
    rig.sql("create table past partition of outbox for values from ('-infinity') to ('1999-01-01 00:00+00')")
        .await;
    add_day(&rig, "day9", 9).await;
    rig.sql(&insert_old(&rig, 10, 9)).await;
    rig.start().await;
    wait_until_table_is_gone(&rig, "day9").await;
    wait_until_table_is_gone(&rig, "past").await;
    assert!(exists(&rig, "future").await, "it never ends");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn nothing_is_lost_or_repeated_while_days_come_and_go_under_load() {
    let rig = rig_with_partitions_by_day("retention_load", &[("OUTBOX_PARTITIONS_AHEAD", "2")]).await;
    rig.sql("create table written (like outbox)").await;
    rig.start().await;
    let client = rig.connect().await;
    for round in 0..6 {
        let days_ago = 9 + round;
        add_day(&rig, &format!("old{round}"), days_ago).await;
        for _ in 0..20 {
            for insert in [rig.insert_statement(5, 7), insert_old(&rig, 3, days_ago)] {
                let both = format!("with w as ({insert} returning *) insert into written select * from w");
                client.batch_execute(&both).await.expect("a write never fails");
            }
        }
    }
    for round in 0..6 {
        wait_until_table_is_gone(&rig, &format!("old{round}")).await;
    }
    let rows = rig
        .sql("select id, aggregateid, payload ->> 'n', payload from written")
        .await;
    let rows: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let text = |index: usize| row[index].clone().expect("no null");
            rig::ledger::Row {
                id: text(0),
                key: text(1),
                n: text(2).parse().expect("a number"),
                payload: text(3),
            }
        })
        .collect();
    let compared = eventually_ok(DEADLINE, "all are published", || async {
        let ledger = Ledger::compare(&rows, &rig.records(Isolation::Committed).await?);
        ensure!(ledger.lost.is_empty(), "{ledger}");
        Ok(ledger)
    });
    let ledger = compared.await.unwrap_or_else(|err| panic!("{err:#}"));
    // Six rounds of twenty transactions of both kinds.
    assert!(ledger.is_exact() && ledger.rows == 6 * 20 * (5 + 3), "{ledger}");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn rows_that_are_published_and_not_confirmed_stay() {
    let rig = rig_with_partitions_by_day("retention_unconfirmed", &[]).await;
    add_day(&rig, "day9", 9).await;
    rig.start().await;
    // While a change of the publication is open, the relay publishes, but confirms nothing.
    let client = rig.connect().await;
    let alter = "begin; alter publication outbox set (publish = 'insert, update')";
    client.batch_execute(alter).await.expect("an open transaction");
    rig.sql(&insert_old(&rig, 5, 9)).await;
    rig.sql(&insert_old(&rig, 20, 30)).await;
    rig.wait_until_published(DEADLINE).await.expect("they are published");
    // Maintenance runs several times meanwhile.
    for _ in 0..50 {
        assert_eq!(
            query_count(&rig, "select count(*) from outbox").await,
            25,
            "all rows stay, in sight"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.batch_execute("rollback").await.expect("a rollback");
    wait_until_table_is_gone(&rig, "day9").await;
    wait_until_default_is_empty(&rig).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_row_without_a_day_lands_in_the_default_is_published_and_deleted_in_its_time() {
    let rig = rig_with_partitions_by_day("retention_default", &[]).await;
    rig.start().await;
    let copied = rig.sql(&insert_old(&rig, 2_500, 30)).await;
    assert!(copied.is_empty());
    wait_until_default_is_empty(&rig).await;
    let records = rig.records(Isolation::Committed).await.expect("records");
    assert_eq!(records.len(), 2_500, "each was published once before it was deleted");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn copied_rows_and_rows_deleted_by_their_own_transaction_are_published() {
    let rig = rig_with_partitions_by_day("retention_deleting", &[]).await;
    rig.start().await;
    let insert = rig.insert_statement(1, 7);
    rig.sql(&format!(
        "do $$ begin for i in 1..50 loop {insert}; delete from outbox; commit; end loop; end $$"
    ))
    .await;
    // The rows come by COPY from a program that the server runs.
    rig.sql(&format!(
        "copy outbox (aggregatetype, aggregateid, type, payload) from program 'seq 200 | sed s/.*/{}:copied:Changed:{{}}/' (delimiter ':')",
        rig.topic()
    ))
    .await;
    let arrived = eventually_ok(DEADLINE, "all are published", || async {
        let records = rig.records(Isolation::Committed).await?.len();
        ensure!(records == 250, "{records} records");
        Ok(())
    });
    arrived.await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(query_count(&rig, "select count(*) from outbox").await, 200);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_plain_table_keeps_its_rows_unless_they_are_to_be_purged() {
    let mut rig = Rig::new("retention_plain").await;
    configure(&mut rig, &[]);
    rig.init(&[]).await;
    rig.start().await;
    rig.sql(&insert_old(&rig, 100, 30)).await;
    rig.insert_each(50).await;
    rig.assert_exactly_once().await;
    wait_until_log_says(&rig.relay, "has no partitions").await;
    assert_eq!(
        query_count(&rig, "select count(*) from outbox").await,
        150,
        "nothing is removed"
    );
    rig.relay.stop().await.expect("a clean stop");
    configure(&mut rig, &[("OUTBOX_PURGE_ROWS", "true")]);
    rig.start().await;
    let purged = eventually_ok(DEADLINE, "the old rows are purged", || async {
        let left = query_count(&rig, "select count(*) from outbox").await;
        ensure!(left == 50, "{left} rows are left");
        Ok(())
    });
    purged.await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(rig.records(Isolation::Committed).await.expect("records").len(), 150);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn without_the_rights_the_relay_warns_and_publishes_on() {
    let mut rig = rig_with_partitions_by_day("retention_rights", &[]).await;
    rig.sql("do $$ begin create role retention_reader login; exception when duplicate_object then null; end $$")
        .await;
    let url = rig.servers.postgres.url("retention_reader", rig.name());
    configure(&mut rig, &[("MAINTENANCE_DATABASE_URL", &url)]);
    rig.start().await;
    wait_until_log_says(&rig.relay, "is not maintained").await;
    rig.insert_each(100).await;
    rig.assert_exactly_once().await;
    let warnings = rig.relay.log_text().matches("is not maintained").count();
    assert_eq!(warnings, 1, "it is said once");
    let metrics = reqwest::get(rig.relay.url("/metrics")).await.expect("metrics");
    let metrics = metrics.text().await.expect("text");
    assert!(metrics.contains("relay_outbox_maintenance_failing 1"), "{metrics}");
    rig.finish().await.expect("a clean end");
}
