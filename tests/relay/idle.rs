//! If the outbox has no events and its database is busy, no WAL is retained, and the relay writes nothing for that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::{Rig, Servers, servers};
use stack::KafkaOptions;

const RETAINED_MB_MAX: u64 = 32;
const WITHIN: Duration = Duration::from_secs(60);

/// How much WAL other tables write, in MB.
fn foreign_wal_mb() -> u64 {
    std::env::var("RELAY_IDLE_WAL_MB").map_or(300, |text| text.parse().expect("RELAY_IDLE_WAL_MB is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_of_other_tables_is_let_go_of_by_a_role_that_cannot_write() {
    let servers = Servers::start(servers::postgres_options(), KafkaOptions::default()).await;
    let mut rig = Rig::on(Arc::new(servers.expect("the servers")), "idle").await;
    rig.init(&[]).await;
    // This role may replicate and read catalogs. It owns nothing, may not write to any table or make one, and may not write a message into the WAL.
    rig.sql(
        "create role reader login replication;
         revoke all on schema public from public; revoke temporary on database idle from public;
         alter role reader set default_transaction_read_only = on; create table other (n bigint, filler text)",
    )
    .await;
    rig.sql(
        "do $$ declare f regprocedure; begin
           for f in select oid::regprocedure from pg_proc where proname = 'pg_logical_emit_message' loop
             execute 'revoke execute on function ' || f || ' from public';
           end loop; end $$",
    )
    .await;
    rig.relay = rig
        .relay
        .with_env("DATABASE_URL", &rig.servers.postgres.url("reader", "idle"));
    rig.start().await;
    let before = rig.value("select pg_current_wal_lsn()").await;
    let tables = rig.value("select count(*) from pg_class").await;
    let written = format!(
        "select (pg_current_wal_lsn() - '{before}') / 1000000 >= {}",
        foreign_wal_mb()
    );
    while rig.value(&written).await != "t" {
        rig.sql("insert into other select n, repeat('x', 1000) from generate_series(1, 10000) as n")
            .await;
    }
    let (end, done) = (rig.value("select pg_current_wal_lsn()").await, Instant::now());
    let retained = "select trunc((pg_current_wal_lsn() - restart_lsn) / 1000000) || ' ' || trunc((pg_current_wal_lsn() - confirmed_flush_lsn) / 1000000)
         from pg_replication_slots where slot_name = 'idle'";
    stack::eventually_ok(WITHIN, "the slot lets go", || async {
        let text = rig.value(retained).await;
        let within = text
            .split(' ')
            .all(|mb| mb.parse::<u64>().is_ok_and(|mb| mb <= RETAINED_MB_MAX));
        anyhow::ensure!(within, "MB retained by restart_lsn and confirmed_flush_lsn: {text}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", rig.relay.log_tail(20)));
    eprintln!(
        "{} MB of WAL to {end}; {:.1} s later {} MB are retained",
        foreign_wal_mb(),
        done.elapsed().as_secs_f64(),
        rig.value(retained).await
    );
    assert_eq!(
        rig.value("select count(*) from pg_class").await,
        tables,
        "the relay makes no table"
    );
    assert_eq!(
        rig.value("select count(*) from outbox").await,
        "0",
        "the relay writes no row"
    );
    // The slot still works.
    rig.insert_each(10).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}
