//! `pause` and `resume`: a paused relay keeps the slot, and publishes and confirms nothing.

use std::sync::Arc;
use std::time::Duration;

use rig::rig::READY_DEADLINE;
use rig::servers::{kafka_options, postgres_options};
use rig::{Isolation, Rig, Servers, relay_exit};
use stack::{Program, eventually_ok};

use super::super::load::{metric as metric_of, wait_until_standby};
use super::super::tampering::{metric, wait_until_confirmed};

const REASON: &str = "kafka is upgraded";
/// A relay says this if it could not read the topic yet.
const UNKNOWN: &str = "whether an operator has paused the relay is not known";
/// For so long a paused relay must publish nothing.
const STAYS_PAUSED_S: u32 = 3;
const DEADLINE: Duration = Duration::from_secs(60);

async fn pause(rig: &Rig) {
    let paused = rig.relay.run(&["pause", "--reason", REASON]).await;
    paused.unwrap_or_else(|err| panic!("{err:#}"));
}

async fn resume(rig: &Rig) {
    rig.relay.run(&["resume"]).await.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Waits until the relay's metric has this value.
async fn wait_for_metric(rig: &Rig, name: &str, value: f64) {
    eventually_ok(DEADLINE, name, || async {
        let found = metric(rig, name).await;
        anyhow::ensure!(found == Some(value), "{name} is {found:?}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", rig.relay.log_tail(20)));
}

/// Waits until the relay has answered Postgres for some seconds more, in the same session.
async fn answers_for_a_while(rig: &Rig) {
    let name = rig.name();
    let session = format!("select active_pid from pg_replication_slots where slot_name = '{name}' and active");
    let pid = rig.value(&session).await;
    let until = rig
        .value(&format!("select clock_timestamp() + interval '{STAYS_PAUSED_S} s'"))
        .await;
    let answered = format!("select reply_time > '{until}' from pg_stat_replication where pid = {pid}");
    eventually_ok(DEADLINE, "the relay answers postgres", || async {
        anyhow::ensure!(rig.value(&answered).await == "t", "not yet");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(rig.value(&session).await, pid, "the slot stays in the same hands");
}

/// Writes rows. Asserts that they are neither published nor confirmed.
async fn assert_is_paused(rig: &Rig) {
    let records = rig.records(Isolation::Committed).await;
    rig.insert_each(1).await;
    // Positions up to here may be confirmed, because other databases may have written them.
    let behind_the_first = rig.value("select pg_current_wal_insert_lsn()").await;
    rig.insert_each(19).await;
    answers_for_a_while(rig).await;
    assert_eq!(
        rig.records(Isolation::Uncommitted).await.expect("records").len(),
        records.expect("records").len(),
        "nothing is published"
    );
    let confirmed = rig.confirmed_lsn().await;
    let order = format!("select '{confirmed}'::pg_lsn < '{behind_the_first}'::pg_lsn");
    assert_eq!(
        rig.value(&order).await,
        "t",
        "{confirmed} {behind_the_first}: nothing is confirmed"
    );
}

#[tokio::test]
async fn a_paused_relay_publishes_and_confirms_nothing_until_it_is_resumed_also_over_restarts() {
    let rig = Rig::initialised("pause").await;
    rig.start().await;
    rig.insert_each(20).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    pause(&rig).await;
    wait_for_metric(&rig, "relay_paused", 1.0).await;
    assert_is_paused(&rig).await;
    let ready: serde_json::Value = reqwest::get(rig.relay.url("/readyz"))
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    let warning = ready["warnings"]["pause"].as_str().unwrap_or_default().to_owned();
    assert!(warning.contains(REASON), "{ready}");
    let said = rig.relay.log_text().len();
    let status = rig.relay.run_for_status(&["status"]).await.expect("an end");
    assert_eq!(status.code(), Some(relay_exit::PAUSED_OR_BEHIND));
    assert!(
        rig.relay.log_text()[said..].contains(REASON),
        "{}",
        rig.relay.log_tail(20)
    );

    rig.relay.kill_hard().await;
    rig.start().await;
    wait_for_metric(&rig, "relay_leader", 1.0).await;
    wait_for_metric(&rig, "relay_paused", 1.0).await;
    assert_is_paused(&rig).await;
    rig.relay.stop().await.expect("a clean end");
    rig.start().await;
    wait_for_metric(&rig, "relay_paused", 1.0).await;
    assert_is_paused(&rig).await;

    resume(&rig).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, 80);
    wait_for_metric(&rig, "relay_paused", 0.0).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_pause_in_the_middle_of_large_transactions_loses_and_repeats_nothing() {
    let rig = Arc::new(Rig::initialised("pause_load").await);
    rig.start().await;
    let writer = Arc::clone(&rig);
    let writing = tokio::spawn(async move {
        for _ in 0..5 {
            writer.insert_together(15_000).await;
        }
    });
    for _ in 0..2 {
        pause(&rig).await;
        wait_for_metric(&rig, "relay_paused", 1.0).await;
        resume(&rig).await;
        wait_for_metric(&rig, "relay_paused", 0.0).await;
    }
    pause(&rig).await;
    wait_for_metric(&rig, "relay_paused", 1.0).await;
    writing.await.expect("the writer ends");
    rig.relay.kill_hard().await;
    rig.start().await;
    resume(&rig).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, 75_000);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_standby_leaves_the_slot_to_a_paused_relay_and_stays_paused_when_it_takes_over() {
    let mut rig = Rig::initialised("pause_standby").await;
    rig.start().await;
    rig.insert_each(20).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    let mut standby = rig.another_relay("standby");
    standby.start().expect("a standby");
    wait_until_standby(&standby).await;
    pause(&rig).await;
    wait_for_metric(&rig, "relay_paused", 1.0).await;
    // The slot's session stays the same.
    assert_is_paused(&rig).await;
    assert_eq!(metric_of(&standby, "relay_leader").await, Some(0.0));
    wait_until_standby(&standby).await;

    rig.relay.kill_hard().await;
    std::mem::swap(&mut rig.relay, &mut standby);
    wait_for_metric(&rig, "relay_leader", 1.0).await;
    wait_for_metric(&rig, "relay_paused", 1.0).await;
    assert_is_paused(&rig).await;
    resume(&rig).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, 60);
    rig.finish().await.expect("a clean end");
}

/// The answer of `/readyz`: status and body.
async fn ready(relay: &Program) -> anyhow::Result<(u16, serde_json::Value)> {
    let answer = reqwest::get(relay.url("/readyz")).await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

/// Starts a relay while Kafka does not answer. It is not ready, because it does not know whether it is paused.
async fn start_without_knowing(rig: &Rig) -> Program {
    let relay = rig.another_relay("unknowing");
    relay.start().expect("a start");
    eventually_ok(DEADLINE, "/readyz tells that the pause is not known", || async {
        let (status, body) = ready(&relay).await?;
        let why = body["reasons"]["pause"].as_str().unwrap_or_default();
        anyhow::ensure!(status == 503 && why.contains(UNKNOWN), "{status} {body}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", relay.log_tail(20)));
    let log = relay.log_text();
    let warned = log.lines().any(|line| line.contains("WARN") && line.contains(UNKNOWN));
    assert!(warned, "{log}");
    relay
}

#[tokio::test]
async fn a_paused_relay_keeps_the_slot_while_kafka_is_away() {
    let servers = Servers::start(postgres_options(), kafka_options()).await;
    let rig = Rig::on(Arc::new(servers.expect("servers")), "pause_kafka").await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    pause(&rig).await;
    wait_for_metric(&rig, "relay_paused", 1.0).await;
    rig.servers.kafka.kill_hard().await;
    rig.insert_each(20).await;
    answers_for_a_while(&rig).await;
    let other = start_without_knowing(&rig).await;
    rig.servers.kafka.start_again().await.expect("kafka");
    eventually_ok(DEADLINE, "it knows once kafka is back", || async {
        let (_, body) = ready(&other).await?;
        let warning = body["warnings"]["pause"].as_str().unwrap_or_default();
        anyhow::ensure!(body["reasons"]["pause"].is_null() && warning.contains(REASON), "{body}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", other.log_tail(20)));
    other.stop().await.expect("a clean end");
    resume(&rig).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_pause_needs_a_reason_of_one_line() {
    let rig = Rig::initialised("pause_reason").await;
    for reason in ["", "two\nlines"] {
        let status = rig.relay.run_for_status(&["pause", "--reason", reason]).await;
        assert_eq!(status.expect("an end").code(), Some(relay_exit::WRONG_SETTING));
    }
    rig.relay.run(&["resume"]).await.unwrap_or_else(|err| panic!("{err:#}"));
    assert!(rig.relay.log_text().contains("is not paused"));
    rig.finish().await.expect("an end");
}

/// A test of the test.
#[tokio::test]
async fn a_relay_that_ignores_its_pause_is_caught() {
    let mut rig = Rig::initialised("pause_planted").await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .with_env("OUTBOX_RELAY_BUG", "IgnorePause");
    rig.start().await;
    pause(&rig).await;
    wait_for_metric(&rig, "relay_paused", 1.0).await;
    rig.insert_each(5).await;
    rig.wait_until_published(READY_DEADLINE)
        .await
        .expect("the wrong relay publishes");
    rig.finish().await.expect("an end");
}
