//! The primary dies, and a standby takes its place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::ledger::Ledger;
use rig::servers::{postgres_options, postgres_version};
use rig::{Isolation, Rig, Servers, relay_exit};
use stack::{KafkaOptions, Postgres, eventually};

use super::load::{DEADLINE, Load};

/// The time from the end of the promotion until the first record of a row that was written after it.
const RESUMED_MAX: Duration = Duration::from_secs(15);
const STANDBY_SLOT: &str = "standby";
/// The first version with failover slots.
const FAILOVER_SLOTS_SINCE: u32 = 17;

/// A primary, a standby, and a relay that knows both. The relay's slot is a failover slot if this version has such slots.
async fn rig_with_standby(name: &str) -> (Rig, Postgres) {
    let servers = Servers::start(postgres_options(), KafkaOptions::default()).await;
    let servers = Arc::new(servers.unwrap_or_else(|err| panic!("the servers do not start: {err:#}")));
    let mut rig = Rig::on(servers, name).await;
    let standby = rig.servers.postgres.standby(STANDBY_SLOT).await;
    let standby = standby.unwrap_or_else(|err| panic!("no standby: {err:#}"));
    rig.relay = rig.relay.with_env("DATABASE_URL", &url_of_both(&rig, &standby));
    if has_failover_slots() {
        rig.init(&["--failover"]).await;
        wait_until_standby_has_slot(&rig, &standby).await;
    } else {
        let status = rig
            .relay
            .run_for_status(&["init", "--failover"])
            .await
            .expect("an init");
        assert_eq!(status.code(), Some(relay_exit::WRONG_SETTING));
        let log = rig.relay.log_text();
        assert!(
            log.contains("--failover") && log.contains("has no failover slots"),
            "{log}"
        );
        rig.init(&[]).await;
    }
    (rig, standby)
}

fn has_failover_slots() -> bool {
    postgres_version() >= FAILOVER_SLOTS_SINCE
}

/// A URL with both servers, the primary and the standby.
fn url_of_both(rig: &Rig, standby: &Postgres) -> String {
    let (first, second, name) = (rig.servers.postgres.port(), standby.port(), rig.name());
    format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/{name}")
}

/// Waits until the standby's copy of the slot would survive a promotion. The standby keeps a copy once it has reached the point where the slot's
/// decoding begins. So this makes the primary move that point on.
async fn wait_until_standby_has_slot(rig: &Rig, standby: &Postgres) {
    let copy = format!(
        "select 1 from pg_replication_slots where slot_name = '{}' and synced and not temporary",
        rig.name()
    );
    eventually(DEADLINE, "the standby has the slot", || async {
        rig.sql("select pg_log_standby_snapshot()").await;
        let found = standby.query("postgres", &copy).await.expect("the standby");
        (!found.is_empty()).then_some(())
    })
    .await;
}

/// Waits until the standby has replayed everything that the primary has written.
async fn wait_until_standby_has_everything(rig: &Rig, standby: &Postgres) {
    let written = rig.value("select pg_current_wal_lsn()").await;
    let replayed = format!("select 1 where pg_last_wal_replay_lsn() >= '{written}'");
    eventually(DEADLINE, "the standby is in step", || async {
        let found = standby.query("postgres", &replayed).await.expect("the standby");
        (!found.is_empty()).then_some(())
    })
    .await;
}

async fn committed_records(rig: &Rig) -> Vec<rig::Record> {
    rig.records(Isolation::Committed).await.expect("the topic")
}

/// Waits until the relay ends by itself. Asserts that it ends with this exit code, has said all of `says`, and has confirmed nothing on `postgres`.
async fn assert_ends(rig: &Rig, postgres: &Postgres, exit_code: i32, says: &str, confirmed: &[Vec<Option<String>>]) {
    let status = rig.relay.exited(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
    let log = rig.relay.log_tail(15);
    assert_eq!(status.code(), Some(exit_code), "{log}");
    assert!(log.contains(says), "it says `{says}`: {log}");
    assert_eq!(
        confirmed_on(rig, postgres).await,
        confirmed,
        "a relay that stops confirms nothing"
    );
}

async fn confirmed_on(rig: &Rig, postgres: &Postgres) -> Vec<Vec<Option<String>>> {
    let sql = format!(
        "select confirmed_flush_lsn from pg_replication_slots where slot_name = '{}'",
        rig.name()
    );
    postgres.query("postgres", &sql).await.expect("the slots")
}

#[tokio::test]
async fn a_promotion_under_load_is_followed_where_the_standby_has_slot_and_rows_and_stops_the_relay_elsewhere() {
    let (rig, standby) = rig_with_standby("promoted").await;
    if has_failover_slots() {
        rig.sql(&format!(
            "alter system set synchronized_standby_slots = '{STANDBY_SLOT}'"
        ))
        .await;
        rig.sql("select pg_reload_conf()").await;
    }
    rig.start().await;
    let process = rig.relay.process().expect("a running relay").id();
    let url = format!("{}?target_session_attrs=read-write", url_of_both(&rig, &standby));
    let load = Load::start(&rig, &url, 2, Duration::from_millis(5));
    load.wait_for_more_rows(300).await;
    if !has_failover_slots() {
        load.stop().await;
        assert_promotion_without_slot_stops_relay(&rig, &standby).await;
        return;
    }
    rig.servers.postgres.kill_hard().await;
    let before = committed_records(&rig).await.len();
    standby.promote().await.expect("a promotion");
    let promoted_at = Instant::now();
    eventually(RESUMED_MAX, "the relay goes on at the new primary", || async {
        (committed_records(&rig).await.len() > before + 20).then_some(())
    })
    .await;
    println!("goes on {} ms after the promotion", promoted_at.elapsed().as_millis());
    load.wait_for_more_rows(300).await;
    let ids_told_committed = load.stop().await;
    let rows = rig.rows_on(&standby).await;
    let ledger = eventually(DEADLINE, "every row is published", || async {
        let ledger = Ledger::compare(&rows, &committed_records(&rig).await);
        ledger.lost.is_empty().then_some(ledger)
    })
    .await;
    assert!(ledger.is_exact(), "{ledger}\n{}", rig.relay.log_tail(20));
    let kept = rows.iter().filter(|row| ids_told_committed.contains(&row.id)).count();
    println!(
        "{ledger}; {} rows of {} that clients were told of went down with the primary",
        ids_told_committed.len() - kept,
        ids_told_committed.len()
    );
    assert_eq!(
        rig.relay.process().map(|process| process.id()),
        Some(process),
        "the same process"
    );
    let log = rig.relay.log_text();
    assert!(
        log.contains("a standby was promoted") && log.contains("timeline.to=2"),
        "{log}"
    );

    // The former primary comes back with its old data, and the new primary is away.
    rig.servers.postgres.start_again().await.expect("a former primary");
    let confirmed = confirmed_on(&rig, &rig.servers.postgres).await;
    standby.stop_fast().await.expect("a stop");
    assert_ends(
        &rig,
        &rig.servers.postgres,
        relay_exit::OTHER_TIMELINE,
        "former primary",
        &confirmed,
    )
    .await;
}

/// Promotes the standby, which has every row and no slot.
async fn assert_promotion_without_slot_stops_relay(rig: &Rig, standby: &Postgres) {
    rig.assert_exactly_once().await;
    wait_until_standby_has_everything(rig, standby).await;
    rig.servers.postgres.kill_hard().await;
    standby.promote().await.expect("a promotion");
    assert_ends(rig, standby, relay_exit::SLOT_GONE, "is gone", &[]).await;
}

#[tokio::test]
async fn a_promoted_standby_that_lacks_what_is_published_stops_the_relay() {
    let (rig, standby) = rig_with_standby("lacking").await;
    rig.start().await;
    rig.insert_each(50).await;
    rig.assert_exactly_once().await;
    wait_until_standby_has_everything(&rig, &standby).await;
    standby.stop_streaming().await.expect("a standby that falls behind");
    eventually(DEADLINE, "the standby receives nothing", || async {
        let receivers = standby.query("postgres", "select 1 from pg_stat_wal_receiver").await;
        receivers.expect("the standby").is_empty().then_some(())
    })
    .await;
    rig.insert_each(50).await;
    let rows = rig.assert_exactly_once().await.rows;
    rig.servers.postgres.kill_hard().await;
    standby.promote().await.expect("a promotion");
    let confirmed = confirmed_on(&rig, &standby).await;
    assert_eq!(
        confirmed.is_empty(),
        !has_failover_slots(),
        "the slot came along where it can"
    );
    assert!(
        rig.rows_on(&standby).await.len() < rows,
        "the standby lacks rows that are published"
    );
    assert_ends(
        &rig,
        &standby,
        relay_exit::OTHER_TIMELINE,
        "left timeline 1 at",
        &confirmed,
    )
    .await;
    assert_eq!(committed_records(&rig).await.len(), rows, "nothing more is published");
}
