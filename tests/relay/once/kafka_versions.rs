//! The oldest and the newest release of Kafka that the relay promises to work with, and an upgrade from one to the other.

use std::sync::Arc;

use anyhow::ensure;
use rig::servers::{kafka_options, postgres_options};
use rig::{Isolation, Ledger, Rig, Servers, relay_exit};
use stack::{Kafka, KafkaOptions, eventually_ok};

use crate::relay::load::{DEADLINE, Load, wait_until_publishes};
use crate::relay::tampering::{accept, wait_until_confirmed};

const OLDEST: &str = "3.9.2";
const NEWEST: &str = "4.4.0";
/// The relay logs each of its steps, so that one can see why it has not gone on.
const LOG: &str = "outbox_relay=debug";
const PAGE: &str = include_str!("../../../docs/operations.md");

fn options(version: &str) -> KafkaOptions {
    KafkaOptions {
        version: Some(version.to_owned()),
        ..kafka_options()
    }
}

/// How a broker is ended.
#[derive(Clone, Copy)]
enum BrokerEnds {
    Killed,
    /// In order, while no records are written. The newest release loses the end of an open transaction, even if it is stopped in order: see
    /// `hanging_transaction.rs`.
    InOrderAtRest,
}

/// Runs every command against the rig's broker. The broker ends and comes back, and the relay is killed under load.
async fn assert_keeps_its_promise(rig: &Rig, broker: BrokerEnds) {
    rig.insert_each(5).await;
    // The topic for the rows is created when the first row comes.
    rig.relay.run(&["init"]).await.unwrap_or_else(|err| panic!("{err:#}"));
    rig.start().await;
    let load = match broker {
        BrokerEnds::Killed => {
            let load = Load::start_on(rig);
            wait_until_publishes(&rig.relay, 100.0).await;
            rig.insert_together(900).await;
            rig.servers.kafka.kill_hard().await;
            load
        }
        BrokerEnds::InOrderAtRest => {
            rig.insert_together(900).await;
            rig.assert_exactly_once().await;
            wait_until_confirmed(rig).await;
            rig.servers.kafka.stop().await.expect("a clean end");
            Load::start_on(rig)
        }
    };
    rig.servers.kafka.start_again().await.expect("a broker");
    wait_until_publishes(&rig.relay, 100.0).await;
    rig.insert_together(900).await;
    rig.relay.kill_hard().await;
    rig.start().await;
    wait_until_publishes(&rig.relay, 100.0).await;
    load.stop().await;
    let ledger = rig.assert_exactly_once().await;
    assert!(ledger.rows > 2_000, "{ledger}");
    rig.relay.stop().await.expect("a clean end");

    rig.drop_slot().await;
    rig.insert_each(5).await;
    rig.assert_stops(relay_exit::SLOT_GONE, &["outbox-relay recover"]).await;
    let recovered = rig.relay.run(&["recover", "--yes"]).await;
    recovered.unwrap_or_else(|err| panic!("{err:#}"));
    let logged = rig.relay.log_text().len();
    rig.relay.run(&["check"]).await.unwrap_or_else(|err| panic!("{err:#}"));
    let found = rig.relay.log_text()[logged..].to_owned();
    assert!(!found.contains("PROBLEM"), "{found}");
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(rig).await;
    rig.relay.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_and_the_newest_kafka_keep_the_promise_and_a_relay_moves_from_one_to_the_other() {
    for version in [OLDEST, NEWEST] {
        assert!(PAGE.contains(version), "docs/operations.md names {version}");
    }
    let servers = Servers::start(postgres_options(), options(OLDEST)).await;
    let servers = servers.unwrap_or_else(|err| panic!("the servers do not start: {err:#}"));
    let mut rig = Rig::on(Arc::new(servers), "kafka_oldest").await;
    rig.relay = rig.relay.with_env("LOG", LOG);
    assert_keeps_its_promise(&rig, BrokerEnds::Killed).await;

    let before = rig.records(Isolation::Committed).await.expect("the old records");
    let newest = Kafka::start(options(NEWEST)).await;
    let newest = newest.unwrap_or_else(|err| panic!("kafka {NEWEST} does not start: {err:#}"));
    rig.servers = Arc::new(Servers {
        postgres: Arc::clone(&rig.servers.postgres),
        kafka: Arc::new(newest),
    });
    let bootstrap_servers = rig.servers.kafka.bootstrap_servers();
    rig.relay = rig.relay.with_env("KAFKA_BOOTSTRAP_SERVERS", &bootstrap_servers);
    rig.insert_each(5).await;
    rig.assert_stops(relay_exit::CHECKPOINT_MISSING, &["--accept-checkpoint-loss"])
        .await;
    accept(&rig, &["--accept-checkpoint-loss"]).await;
    rig.start().await;
    rig.insert_together(50).await;
    let moved = eventually_ok(DEADLINE, "each row is in one of the two clusters", || async {
        let after = rig.records(Isolation::Committed).await?;
        let ledger = Ledger::compare(&rig.rows().await, &[before.clone(), after].concat());
        ensure!(ledger.is_exact(), "{ledger}");
        Ok(())
    });
    moved.await.unwrap_or_else(|err| panic!("{err:#}"));
    rig.finish().await.expect("a clean end");

    let mut rig = Rig::on(Arc::clone(&rig.servers), "kafka_newest").await;
    rig.relay = rig.relay.with_env("LOG", LOG);
    assert_keeps_its_promise(&rig, BrokerEnds::InOrderAtRest).await;
    rig.finish().await.expect("a clean end");
}
