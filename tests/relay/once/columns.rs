//! Columns of the outbox are dropped or renamed while the relay streams, and rows are updated.

use rig::{Rig, relay_exit};

use crate::relay::tampering::{DEADLINE, assert_ends, wait_until_confirmed};
use crate::relay::ways_out::{assert_goes_on, run_recover, text_in_log_between};

/// The rig's own options, and `fatal` for rows that were updated.
const FATAL_ON_UPDATE: &str = "route.topic.replacement=${routedByValue}\ntable.op.invalid.behavior=fatal";
const NUMBER: &str = "from (select nextval('numbers') as n) as numbered";

/// A change of the table while the relay streams.
struct Alteration {
    name: &'static str,
    sql: &'static str,
    /// The columns and values, beside the payload, of a row that is written meanwhile.
    row: (&'static str, &'static str),
    /// The statements that bring the column back.
    repair: &'static [&'static str],
}

const ALTERATIONS: [Alteration; 2] = [
    Alteration {
        name: "column_renamed",
        sql: "alter table outbox rename aggregateid to former",
        row: ("former, type", "'k' || n % 7, 'Changed'"),
        repair: &["alter table outbox rename former to aggregateid"],
    },
    Alteration {
        name: "column_dropped",
        sql: "alter table outbox drop column aggregateid",
        row: ("type", "'Changed'"),
        repair: &[
            "alter table outbox add column aggregateid text",
            "update outbox set aggregateid = 'k' || (payload ->> 'n')::int % 7",
        ],
    },
];

#[tokio::test]
async fn rows_that_were_written_without_a_column_are_published_by_recover_once_it_is_back() {
    for Alteration {
        name,
        sql,
        row: (columns, values),
        repair,
    } in ALTERATIONS
    {
        let rig = Rig::new(name).await;
        rig.sql("create publication outbox for all tables").await;
        rig.init(&[]).await;
        rig.start().await;
        rig.insert_each(5).await;
        rig.assert_exactly_once().await;
        wait_until_confirmed(&rig).await;

        rig.sql(sql).await;
        let topic = rig.topic();
        let insert = format!(
            "insert into outbox (aggregatetype, {columns}, payload) select '{topic}', {values}, jsonb_build_object('n', n) {NUMBER}"
        );
        rig.sql(&insert).await;
        let lsn_after_first_row = rig.value("select pg_current_wal_insert_lsn()").await;
        for _ in 0..2 {
            rig.sql(&insert).await;
        }
        assert_ends(
            &rig,
            relay_exit::WRONG_SETTING,
            &["`aggregateid`", "`outbox-relay recover --compare-anyway`"],
        )
        .await;
        let confirmed = rig.confirmed_lsn().await;
        let order = format!("select '{confirmed}'::pg_lsn < '{lsn_after_first_row}'::pg_lsn");
        assert_eq!(
            rig.value(&order).await,
            "t",
            "{name}: {confirmed} {lsn_after_first_row}"
        );

        // The WAL keeps the rows without the column, even after the column is back.
        for statement in repair {
            rig.sql(statement).await;
        }
        rig.insert_each(2).await;
        rig.assert_stops(
            relay_exit::WRONG_SETTING,
            &["`aggregateid`", "`outbox-relay recover --compare-anyway`"],
        )
        .await;
        run_recover(&rig, &["--compare-anyway"]).await;
        assert_eq!(assert_goes_on(&rig).await.rows, 13);
    }
}

#[tokio::test]
async fn an_update_that_is_fatal_stops_the_relay_until_the_setting_is_another_and_no_more_once_it_is_published() {
    let mut rig = Rig::new("row_updated").await;
    rig.sql("create publication outbox for table outbox").await;
    let fatal = rig.relay.with_env("ROUTER_OPTIONS", FATAL_ON_UPDATE);
    let tolerant = std::mem::replace(&mut rig.relay, fatal);
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(5).await;
    let update = "update outbox set created_at = created_at where payload ->> 'n' = '1'";
    let (two, three) = (rig.insert_statement(2, 7), rig.insert_statement(3, 7));
    rig.sql(&format!("do $$ begin {two}; {update}; {three}; end $$")).await;
    rig.insert_each(1).await;
    assert_ends(&rig, relay_exit::ROW_REFUSED, &["table.op.invalid.behavior is fatal"]).await;
    rig.assert_stops(
        relay_exit::ROW_REFUSED,
        &["table.op.invalid.behavior is fatal", "start again"],
    )
    .await;

    let altering = rig.connect().await;
    altering
        .batch_execute("begin; alter publication outbox rename to undecided")
        .await
        .expect("an alteration that is not committed, under which nothing is confirmed");
    let fatal = std::mem::replace(&mut rig.relay, tolerant);
    rig.start().await;
    assert_eq!(rig.assert_exactly_once().await.rows, 11);
    rig.relay.kill_hard().await;
    altering.batch_execute("rollback").await.expect("a rollback");

    // The slot sends everything again.
    rig.relay = fatal;
    assert_goes_on(&rig).await;
}

#[tokio::test]
async fn rows_that_came_under_a_column_list_without_a_column_that_is_needed_are_published_by_recover_once_it_is_gone() {
    let rig = Rig::new("column_unlisted").await;
    rig.sql("create publication outbox for table outbox").await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;

    rig.sql("alter publication outbox set table outbox (id, aggregatetype, type, payload)")
        .await;
    rig.insert_each(1).await;
    let lsn_after_first_row = rig.value("select pg_current_wal_insert_lsn()").await;
    rig.insert_each(2).await;
    let status = rig.relay.exited(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
    // Either the row in the stream or the guard's look comes first.
    assert!(
        matches!(
            status.code(),
            Some(relay_exit::WRONG_SETTING | relay_exit::PUBLICATION_WRONG)
        ),
        "{}",
        rig.relay.log_tail(10)
    );
    let confirmed = rig.confirmed_lsn().await;
    let order = format!("select '{confirmed}'::pg_lsn < '{lsn_after_first_row}'::pg_lsn");
    assert_eq!(rig.value(&order).await, "t", "{confirmed} {lsn_after_first_row}");

    rig.assert_stops(
        relay_exit::PUBLICATION_WRONG,
        &["it has a column list", "`outbox-relay recover`"],
    )
    .await;
    for statement in text_in_log_between(&rig, "which hides columns of events; ", "; once that is done").split("; ") {
        rig.sql(statement).await;
    }
    run_recover(&rig, &[]).await;
    assert_eq!(assert_goes_on(&rig).await.rows, 11);
}
