//! Relays that are frozen and wake up after another relay has taken their place, and relays that compete for the slot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::servers::postgres_options;
use rig::{Isolation, Rig, Servers};
use rustix::process::Signal;
use stack::{KafkaOptions, Program, eventually};

use crate::relay::load::{DEADLINE, Load, metric, wait_until_publishes, wait_until_standby};

/// The timeout is short, so that the server soon gives the slot of a frozen relay away.
const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(3);
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(4);
/// After so long a frozen relay has outlived both timeouts.
const FROZEN: Duration = Duration::from_secs(6);

/// A rig with short timeouts, after which its relays lose the slot.
async fn impatient(servers: Arc<Servers>, name: &str) -> Rig {
    let mut rig = Rig::on(servers, name).await;
    let url = rig.servers.postgres.url("postgres", name);
    let timeout = format!(
        "{url}?options=-c%20wal_sender_timeout%3D{}s",
        WAL_SENDER_TIMEOUT.as_secs()
    );
    let kafka = format!(
        "transaction.timeout.ms={}\nmessage.timeout.ms={less}\nsocket.timeout.ms={less}",
        TRANSACTION_TIMEOUT.as_millis(),
        less = TRANSACTION_TIMEOUT.as_millis() - 1_000
    );
    rig.relay = rig
        .relay
        .with_env("DATABASE_URL", &timeout)
        .env("KAFKA_PROPERTIES", &kafka);
    rig.init(&[]).await;
    rig
}

fn signal(relay: &Program, signal: Signal) {
    relay.process().expect("a running relay").signal(signal);
}

/// Freezes the leader, lets the standby take over, wakes the former leader, and swaps the two.
async fn freeze_past_its_time(rig: &mut Rig, standby: &mut Program) {
    signal(&rig.relay, Signal::STOP);
    let frozen_at = Instant::now();
    wait_until_publishes(standby, 20.0).await;
    eventually(DEADLINE, "the zombie has slept past every timeout", || {
        std::future::ready((frozen_at.elapsed() > FROZEN).then_some(()))
    })
    .await;
    signal(&rig.relay, Signal::CONT);
    wait_until_standby(&rig.relay).await;
    wait_until_publishes(standby, 20.0).await;
    std::mem::swap(&mut rig.relay, standby);
}

#[tokio::test]
async fn a_zombie_that_wakes_up_publishes_nothing_and_becomes_the_standby() {
    let mut rig = impatient(Servers::shared().await, "zombies").await;
    rig.start().await;
    let mut standby = rig.another_relay("standby");
    standby.start().expect("a standby");
    wait_until_standby(&standby).await;
    let load = Load::start_on(&rig);
    load.wait_for_more_rows(100).await;
    for round in 0..3 {
        // Many rows are written at once, so that the relay is frozen in the middle of a transaction.
        rig.insert_together(20_000 + round).await;
        wait_until_publishes(&rig.relay, 1.0).await;
        freeze_past_its_time(&mut rig, &mut standby).await;
    }
    load.stop().await;
    rig.assert_exactly_once().await;
    standby.stop().await.expect("a clean end");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_zombie_frozen_in_the_middle_of_a_commit_publishes_nothing_twice() {
    let servers = Servers::start(postgres_options(), KafkaOptions::default()).await;
    let servers = Arc::new(servers.unwrap_or_else(|err| panic!("the servers do not start: {err:#}")));
    let mut rig = impatient(servers, "mid_commit").await;
    rig.start().await;
    let mut standby = rig.another_relay("standby");
    standby.start().expect("a standby");
    wait_until_standby(&standby).await;
    let load = Load::start_on(&rig);
    for _ in 0..2 {
        load.wait_for_more_rows(100).await;
        wait_until_publishes(&rig.relay, 1.0).await;
        let broker = rig.servers.kafka.process().expect("a running broker");
        broker.signal(Signal::STOP);
        // More than one transaction's rows are written meanwhile, so one transaction was sent and has no answer yet.
        load.wait_for_more_rows(50).await;
        signal(&rig.relay, Signal::STOP);
        broker.signal(Signal::CONT);
        freeze_past_its_time(&mut rig, &mut standby).await;
    }
    load.stop().await;
    let ledger = rig.assert_exactly_once().await;
    let all = rig.records(Isolation::Uncommitted).await.expect("the topic");
    println!("{ledger}; {} copies were hidden", all.len() - ledger.records);
    standby.stop().await.expect("a clean end");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn ten_relays_that_race_have_one_leader_and_fence_nobody_for_nothing() {
    let mut rig = Rig::initialised("race").await;
    let mut others: Vec<Program> = (1..10)
        .map(|index| rig.another_relay(&format!("racer{index}")))
        .collect();
    rig.relay.start().expect("a relay");
    for other in &others {
        other.start().expect("a relay");
    }
    let load = Load::start_on(&rig);
    for round in 0..4 {
        let leader = eventually(DEADLINE, "one leads", || async {
            if is_leader(&rig.relay).await {
                return Some(others.len());
            }
            for (index, other) in others.iter().enumerate() {
                if is_leader(other).await {
                    return Some(index);
                }
            }
            None
        })
        .await;
        if let Some(other) = others.get_mut(leader) {
            std::mem::swap(&mut rig.relay, other);
        }
        wait_until_publishes(&rig.relay, 20.0).await;
        if round < 3 {
            rig.relay.kill_hard().await;
            rig.relay.start().expect("a restart in the middle of the race");
        }
    }
    load.stop().await;
    rig.assert_exactly_once().await;
    let mut leaders = 0;
    for relay in others.iter().chain([&rig.relay]) {
        leaders += u32::from(is_leader(relay).await);
        let restarts = metric(relay, "relay_restarts_total").await.expect("its metrics");
        assert!(
            restarts == 0.0,
            "{} began anew {restarts} times:\n{}",
            relay.name(),
            relay.log_tail(20)
        );
    }
    assert_eq!(leaders, 1);
    for other in &others {
        other.stop().await.expect("a clean end");
    }
    rig.finish().await.expect("a clean end");
}

async fn is_leader(relay: &Program) -> bool {
    metric(relay, "relay_leader ").await == Some(1.0)
}
