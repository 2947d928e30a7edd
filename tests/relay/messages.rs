//! An outbox without a table: messages that `pg_logical_emit_message` writes.

use std::time::Duration;

use rig::rig::ARRIVAL_DEADLINE;
use rig::{Isolation, Ledger, Record, Rig, relay_exit};

/// A rig whose relay publishes the messages with the prefix `outbox`, with or without an outbox table beside them.
pub(super) async fn rig_with_messages(name: &str, has_table: bool) -> Rig {
    let mut rig = Rig::new(name).await;
    rig.relay = rig.relay.env("OUTBOX_MESSAGE_PREFIX", "outbox");
    // A row is written beside each message, so that the topic can be compared with something.
    rig.sql("create table emitted (id uuid primary key, aggregateid text, n bigint, payload text)")
        .await;
    rig.sql(&format!(
        "create function emit(count bigint) returns void language plpgsql as $$
         declare event record;
         begin
             for event in select gen_random_uuid() as id, 'k' || n % 7 as key, n, json_build_object('n', n)::text as payload
                          from (select nextval('numbers') as n from generate_series(1, count)) as numbered loop
                 insert into emitted values (event.id, event.key, event.n, event.payload);
                 perform pg_logical_emit_message(true, 'outbox', format(
                     '{{\"id\": \"%s\", \"aggregatetype\": \"{}\", \"aggregateid\": \"%s\", \"type\": \"Changed\", \"payload\": %s}}',
                     event.id, event.key, event.payload));
             end loop;
         end $$",
        rig.topic()
    ))
    .await;
    if !has_table {
        rig.sql("drop table outbox").await;
    }
    rig.init(&[]).await;
    rig
}

/// Waits until there are as many records as committed messages and rows. Asserts that they are the same.
pub(super) async fn assert_exactly_once(rig: &Rig, and_rows: &str) {
    let sql = format!("select id, aggregateid, n, payload from emitted {and_rows}");
    let row = |row: Vec<Option<String>>| {
        let [Some(id), Some(key), Some(n), Some(payload)] = <[_; 4]>::try_from(row).expect("four columns") else {
            panic!("a null");
        };
        let n = n.parse().expect("a number");
        rig::ledger::Row { id, key, n, payload }
    };
    let rows: Vec<rig::ledger::Row> = rig.sql(&sql).await.into_iter().map(row).collect();
    assert!(!rows.is_empty(), "there is something to compare");
    stack::eventually(ARRIVAL_DEADLINE, "every message is published", || async {
        let records = rig.records(Isolation::Committed).await.ok()?;
        Ledger::compare(&rows, &records).lost.is_empty().then_some(())
    })
    .await;
    let ledger = Ledger::compare(&rows, &rig.records(Isolation::Committed).await.expect("records"));
    assert!(ledger.is_exact(), "{ledger}\n{}", rig.relay.log_tail(20));
}

/// The statement that emits one message.
fn emit_statement(rig: &Rig, transactional: bool, prefix: &str, id: &str, key: &str, payload: &str) -> String {
    let topic = rig.topic();
    format!(
        "select pg_logical_emit_message({transactional}, '{prefix}',
             '{{\"id\": \"{id}\", \"aggregatetype\": \"{topic}\", \"aggregateid\": \"{key}\", \"type\": \"Changed\", \"payload\": {payload}}}')"
    )
}

/// Waits for `count` committed records. Asserts that there are no more.
async fn wait_for_records(rig: &Rig, count: usize) -> Vec<Record> {
    stack::eventually(ARRIVAL_DEADLINE, "the records are published", || async {
        let records = rig.records(Isolation::Committed).await.ok()?;
        (records.len() >= count).then_some(())
    })
    .await;
    let records = rig.records(Isolation::Committed).await.expect("records");
    assert_eq!(records.len(), count, "{records:?}");
    records
}

#[tokio::test]
async fn messages_are_published_once_and_in_order_through_kills() {
    let rig = rig_with_messages("messages_killed", false).await;
    rig.start().await;
    for _ in 0..3 {
        let emit = rig.sql("do $$ begin for i in 1..200 loop perform emit(1); commit; end loop; end $$");
        // The kill comes somewhere in the middle. It does not matter where.
        let kill = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            rig.relay.kill_hard().await;
        };
        tokio::join!(emit, kill);
        // One transaction of the database that does not fit into one Kafka transaction.
        rig.sql("select emit(6000)").await;
        rig.start().await;
    }
    assert_exactly_once(&rig, "").await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn messages_and_rows_of_one_transaction_keep_their_order() {
    let rig = rig_with_messages("messages_mixed", true).await;
    rig.start().await;
    let insert = rig.insert_statement(1, 7);
    for _ in 0..20 {
        rig.sql(&format!(
            "do $$ begin perform emit(1); {insert}; perform emit(2); {insert}; {insert}; end $$"
        ))
        .await;
    }
    // Messages and rows share one sequence of numbers. The ledger checks that the numbers ascend for each key.
    assert_exactly_once(
        &rig,
        "union all select id, aggregateid, (payload ->> 'n')::bigint, payload::text from outbox",
    )
    .await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn only_committed_transactional_messages_of_the_prefix_are_events() {
    let rig = rig_with_messages("messages_ignored", false).await;
    rig.start().await;
    let emit = |transactional, prefix: &str, id: &str| emit_statement(&rig, transactional, prefix, id, "k", "{}");
    let statements = [
        format!("begin; {}; rollback", emit(true, "outbox", "rolled-back")),
        emit(true, "outbox2", "other-prefix"),
        emit(false, "outbox", "not-transactional"),
        emit(false, "outbox", "not-transactional-either"),
        format!(
            "begin; savepoint s; {}; rollback to s; {}; commit",
            emit(true, "outbox", "savepoint"),
            emit(true, "outbox", "kept")
        ),
        emit(true, "outbox", "last"),
    ];
    for statement in statements {
        rig.sql(&statement).await;
    }
    let ids: Vec<String> = wait_for_records(&rig, 2)
        .await
        .iter()
        .filter_map(|record| record.header("id").map(str::to_owned))
        .collect();
    assert_eq!(ids, ["kept", "last"]);
    let log = rig.relay.log_text();
    assert_eq!(log.matches("is not transactional").count(), 1, "it warns once: {log}");
    let answer = reqwest::get(rig.relay.url("/metrics")).await.expect("an answer");
    let metrics = answer.text().await.expect("metrics");
    assert!(metrics.contains("relay_ignored_messages_total 2"), "{metrics}");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_payload_arrives_byte_by_byte_and_a_string_without_its_quotes() {
    let rig = rig_with_messages("messages_payload", false).await;
    rig.start().await;
    let topic = rig.topic();
    for (n, (payload, value)) in [
        (r#"{"b" :1.0,  "a":"ä"}"#, Some(r#"{"b" :1.0,  "a":"ä"}"#)),
        (r#""a \"text\"""#, Some(r#"a "text""#)),
        ("[1, 2]", Some("[1, 2]")),
        ("null", None),
    ]
    .into_iter()
    .enumerate()
    {
        rig.sql(&format!(
            "select pg_logical_emit_message(true, 'outbox',
                 '{{\"payload\": {payload}, \"id\": {n}, \"aggregatetype\": \"{topic}\", \"aggregateid\": 7, \"unknown\": {{}}}}')"
        ))
        .await;
        let records = wait_for_records(&rig, n + 1).await;
        let last = records.iter().max_by_key(|record| record.offset).expect("a record");
        assert_eq!(last.value.as_deref(), value.map(str::as_bytes), "{payload}");
        assert_eq!(
            (last.key_text(), last.header("id")),
            (Some("7"), Some(n.to_string().as_str()))
        );
    }
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_malformed_message_stops_the_relay_behind_what_came_before_it() {
    let rig = rig_with_messages("messages_malformed", false).await;
    rig.start().await;
    rig.sql(&emit_statement(&rig, true, "outbox", "good", "k", "{}")).await;
    wait_for_records(&rig, 1).await;
    let malformed =
        emit_statement(&rig, true, "outbox", "bad", "k", "{\"canary\": 1}").replace("\"aggregateid\"", "\"other\"");
    rig.sql(&malformed).await;
    let status = rig.relay.exited(ARRIVAL_DEADLINE).await.expect("it stops");
    assert_eq!(status.code(), Some(relay_exit::ROW_REFUSED));
    let log = rig.relay.log_text();
    assert!(
        log.contains("it is a message, and the content has no `aggregateid`") && log.contains("`outbox-relay park "),
        "{log}"
    );
    assert!(!log.contains("canary"), "{log}");
    rig.assert_stops(relay_exit::ROW_REFUSED, &["the content has no `aggregateid`"])
        .await;
    wait_for_records(&rig, 1).await;
    rig.relay.kill_hard().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn without_a_table_check_and_a_second_init_find_everything_right() {
    let rig = rig_with_messages("messages_check", false).await;
    rig.relay.run(&["check"]).await.expect("no problem");
    rig.init(&["--table", ""]).await;
    let log = rig.relay.log_text();
    assert!(
        log.contains("messages are the outbox") && log.contains("was initialised before"),
        "{log}"
    );
    // The publication was made anew, so nobody knows what the stream has missed.
    let publication = "drop publication outbox; create publication outbox";
    rig.sql(publication).await;
    rig.assert_stops(relay_exit::PUBLICATION_WRONG, &["made anew"]).await;
    rig.relay.kill_hard().await;
    rig.finish().await.expect("a clean end");
}
