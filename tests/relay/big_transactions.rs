//! Large transactions, large rows, and transactions that do more than one plain commit.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use rig::{Isolation, Rig, memory, topic};

const MEMORY_MB_MAX: f64 = 96.0;

/// How many rows the one large transaction has.
fn big_rows() -> usize {
    std::env::var("RELAY_BIG_TRANSACTION_ROWS").map_or(300_000, |text| {
        text.parse().expect("RELAY_BIG_TRANSACTION_ROWS is a number")
    })
}

/// How many committed records the topic has now.
async fn published(rig: &Rig) -> usize {
    let (servers, topic) = (rig.servers.kafka.bootstrap_servers(), rig.topic());
    let counted = tokio::task::spawn_blocking(move || {
        let mut count = 0;
        topic::for_each(&servers, &topic, Isolation::Committed, |_| count += 1).map(|()| count)
    });
    counted.await.expect("a count").expect("the topic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_large_transaction_is_published_once_and_in_order_through_a_sigkill_in_its_middle_and_in_little_memory() {
    let (rig, rows) = (Rig::initialised("big").await, big_rows());
    rig.sql(&rig.insert_statement(u32::try_from(rows).expect("fewer rows"), 7))
        .await;
    let started = Instant::now();
    rig.start().await;
    // The first part of the transaction is visible, and the last part is not.
    stack::eventually(Duration::from_secs(300), "a part is published", || async {
        (published(&rig).await > 0).then_some(())
    })
    .await;
    let before = memory::peak_mb(&rig.relay);
    rig.relay.kill_hard().await;
    let at_kill = published(&rig).await;
    assert!(at_kill < rows, "the kill came after the end");
    rig.start().await;
    let deadline = Duration::from_secs(60 + rows as u64 / 2_000);
    stack::eventually(deadline, "all of it is published", || async {
        let status = rig.confirmed_lsn().await;
        let sql = format!("select '{status}'::pg_lsn >= pg_current_wal_lsn() - 1000000");
        (rig.value(&sql).await == "t" && published(&rig).await >= rows).then_some(())
    })
    .await;
    let took = started.elapsed().as_secs_f64();
    let peak = memory::peak_mb(&rig.relay).max(before);
    eprintln!(
        "{rows} rows, killed after {at_kill}: {took:.1} s, {:.0} rows/s, {peak:.1} MB at most",
        rows as f64 / took
    );
    // The rows are numbered in their order. Each number comes once, and the numbers ascend in each partition.
    let (servers, name) = (rig.servers.kafka.bootstrap_servers(), rig.topic());
    let (mut seen, mut last) = (vec![false; rows + 1], [0_usize; 16]);
    let read = tokio::task::spawn_blocking(move || {
        topic::for_each(&servers, &name, Isolation::Committed, |record| {
            let value = record.value.as_deref().unwrap_or_default();
            let payload: serde_json::Value = serde_json::from_slice(value).expect("a payload");
            let n = usize::try_from(payload["n"].as_u64().expect("a number")).expect("a small number");
            assert!(!std::mem::replace(&mut seen[n], true), "row {n} is there twice");
            let last = &mut last[usize::try_from(record.partition).expect("a partition")];
            assert!(*last < n, "row {n} stands behind row {last}");
            *last = n;
        })
        .map(|()| seen)
    });
    let seen = read.await.expect("a reader").expect("the topic");
    assert!(seen[1..].iter().all(|seen| *seen), "rows are lost");
    assert!(peak <= MEMORY_MB_MAX, "{peak:.1} MB");
    rig.finish().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_of_a_megabyte_are_published_once_in_little_memory() {
    let mut rig = Rig::new("megabytes").await;
    rig.relay = rig
        .relay
        .with_env("KAFKA_PROPERTIES", "message.max.bytes=2000000")
        .with_env("TOPIC_CONFIG", "max.message.bytes=2000000");
    rig.init(&[]).await;
    rig.start().await;
    let topic = rig.topic();
    for _ in 0..4 {
        rig.sql(&format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             select '{topic}', 'k' || n % 7, 'Large', jsonb_build_object('n', n, 'pad', repeat('x', 1048576))
             from (select nextval('numbers') as n from generate_series(1, 50)) as numbered"
        ))
        .await;
    }
    rig.assert_exactly_once().await;
    let peak = memory::peak_mb(&rig.relay);
    eprintln!("200 rows of 1 MiB: {peak:.1} MB at most");
    assert!(peak <= MEMORY_MB_MAX, "{peak:.1} MB");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn rows_of_copy_savepoints_and_two_phase_commits_are_published_if_and_only_if_they_committed() {
    let rig = Rig::initialised("kinds_of_transactions").await;
    rig.start().await;
    let (topic, client) = (rig.topic(), rig.connect().await);
    // With COPY, many rows share one LSN.
    let copy = "copy outbox (aggregatetype, aggregateid, type, payload) from stdin";
    let mut sink = std::pin::pin!(client.copy_in::<_, Bytes>(copy).await.expect("a copy"));
    for n in 1..=12_000 {
        let line = format!("{topic}\tk{}\tCopied\t{{\"n\": {n}}}\n", n % 7);
        sink.send(Bytes::from(line)).await.expect("a line");
    }
    sink.close().await.expect("the copy's end");
    rig.sql("select setval('numbers', 12000)").await;

    // Half of a hundred savepoints are rolled back.
    let insert = rig.insert_statement(20, 7);
    let mut sql = String::from("begin");
    for savepoint in 0..100 {
        sql += &format!("; savepoint s; {insert}");
        sql += if savepoint % 2 == 0 {
            "; rollback to s"
        } else {
            "; release s"
        };
    }
    client
        .batch_execute(&format!("{sql}; commit"))
        .await
        .expect("savepoints");

    // A prepared transaction is published only once it is committed, and then before everything that commits later.
    let (kept, dropped) = (format!("{}_kept", rig.name()), format!("{}_dropped", rig.name()));
    for name in [&kept, &dropped] {
        client
            .batch_execute(&format!("begin; {insert}; prepare transaction '{name}'"))
            .await
            .expect("a prepared one");
    }
    rig.assert_exactly_once().await;
    client
        .batch_execute(&format!("rollback prepared '{dropped}'"))
        .await
        .expect("a rollback");
    client
        .batch_execute(&format!("commit prepared '{kept}'"))
        .await
        .expect("a commit");
    client
        .batch_execute("delete from outbox where false")
        .await
        .expect("nothing");
    let ledger = rig
        .wait_until_published(rig::rig::ARRIVAL_DEADLINE)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    assert!(ledger.is_exact(), "{ledger}");
    assert_eq!(ledger.rows, 12_000 + 50 * 20 + 20);
    rig.finish().await.expect("a clean end");
}
