//! A broker whose answers lag behind gives a topic a false end. The relay must not go on from what it has read up to such an end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use rig::lagging_proxy::LaggingProxy;
use rig::{Isolation, Rig, Servers, relay_exit, servers, topic};
use stack::{KafkaOptions, eventually, eventually_ok, port};

use super::super::tampering::{metric, publish_and_stop};
use super::parking::{
    LARGE_BYTES, assert_command, assert_published_in_order, insert_row, stop_relay, wait_until_parked,
};
use super::topic_settings::{assert_ends, limit_record_bytes};

const DEADLINE: Duration = Duration::from_secs(60);
/// After so many answers, a reader that believes the broker has ended long ago.
const ANSWERS: u64 = 20;

/// Servers whose clients all reach the broker through a proxy. Returns the proxy, and its address.
async fn behind_a_proxy() -> (Arc<Servers>, LaggingProxy, String) {
    let (broker_port, proxy_port) = (port::free().expect("a port"), port::free().expect("a port"));
    let mut options = KafkaOptions {
        port: broker_port,
        ..servers::kafka_options()
    };
    // Clients connect to the address that the broker advertises.
    let advertised = format!("PLAINTEXT://127.0.0.1:{proxy_port}");
    options.settings.push(("advertised.listeners".to_owned(), advertised));
    let proxy = LaggingProxy::start(proxy_port, broker_port).await.expect("a proxy");
    let servers = Servers::start(servers::postgres_options(), options).await;
    (
        Arc::new(servers.expect("servers")),
        proxy,
        format!("127.0.0.1:{proxy_port}"),
    )
}

/// A rig whose relay has published and confirmed a few rows, and was stopped. Its further commands have the bug.
async fn rig_that_has_published(servers: &Arc<Servers>, name: &str, address: &str, bug: &str) -> Rig {
    let rig = rig_through_proxy(servers, name, address).await;
    publish_and_stop(&rig).await;
    with_bug(rig, bug)
}

/// A rig whose relay reaches the broker through the proxy. `init` was run.
async fn rig_through_proxy(servers: &Arc<Servers>, name: &str, address: &str) -> Rig {
    let mut rig = Rig::on(Arc::clone(servers), name).await;
    rig.relay = rig.relay.with_env("KAFKA_BOOTSTRAP_SERVERS", address);
    rig.init(&[]).await;
    rig
}

/// The rig, whose relay has a planted bug from now on.
fn with_bug(mut rig: Rig, bug: &str) -> Rig {
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", bug);
    rig
}

/// Waits until an event is published twice.
async fn wait_for_duplicates(rig: &Rig) {
    let doubled = eventually_ok(DEADLINE, "events are published twice", || async {
        let ledger = rig.ledger(Isolation::Committed).await?;
        ensure!(!ledger.duplicates.is_empty(), "{ledger}\n{}", rig.relay.log_tail(30));
        Ok(())
    });
    doubled.await.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Waits until no transaction is open in the topic's first partition. Returns the partition's end. Kafka writes the markers that end a transaction
/// one partition after the other, and the marker of the checkpoints may come after those of the records.
async fn wait_for_stable_end(rig: &Rig, topic: String) -> i64 {
    eventually(DEADLINE, "the topic has no open transaction", || async {
        let (servers, topic) = (rig.servers.kafka.bootstrap_servers(), topic.clone());
        let ends = tokio::task::spawn_blocking(move || topic::ends(&servers, &topic)).await;
        let first = ends.ok()?.ok()?.into_iter().find(|ends| ends.partition == 0)?;
        (first.stable == first.all).then_some(first.all)
    })
    .await
}

/// Waits until enough answers were cut since the count was `before`.
async fn wait_until_answers_are_cut(proxy: &LaggingProxy, before: u64) {
    eventually(DEADLINE, "the relay reads answers that are cut", || {
        std::future::ready((proxy.answers_cut() >= before + ANSWERS).then_some(()))
    })
    .await;
}

#[tokio::test]
async fn what_lies_behind_a_false_end_is_waited_for() {
    let (servers, proxy, address) = behind_a_proxy().await;
    an_old_checkpoint_is_not_gone_on_from(&servers, &proxy, &address).await;
    records_are_not_missing_for_recover(&servers, &proxy, &address).await;
    a_pause_is_not_passed_over(&servers, &proxy, &address).await;
    parked_rows_are_not_missing(&servers, &proxy, &address).await;
}

async fn an_old_checkpoint_is_not_gone_on_from(servers: &Arc<Servers>, proxy: &LaggingProxy, address: &str) {
    for (bug, is_right) in [("", true), ("BelievesAnyEnd", false)] {
        let rig = rig_that_has_published(servers, &format!("lagging_checkpoint_{is_right}"), address, bug).await;
        let before = wait_for_stable_end(&rig, rig.checkpoint_topic()).await;
        // The relay dies after it has committed a transaction that the slot will send again.
        let hits = rig.logs().join("hits");
        let dying = rig
            .another_relay("dying")
            .env("OUTBOX_RELAY_FAILPOINT", "commit.after=kill@1")
            .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy());
        rig.insert_together(5).await;
        dying.start().expect("a start");
        dying.exited(DEADLINE).await.expect("it dies");
        rig.wait_until_published(DEADLINE).await.expect("it has published");
        rig.wait_until_slot_is_free().await;
        let lag = wait_for_stable_end(&rig, rig.checkpoint_topic()).await - before;
        let cut = proxy.lag_behind(0..=0, lag);
        rig.relay.start().expect("a start");
        if is_right {
            wait_until_answers_are_cut(proxy, cut).await;
            proxy.catch_up();
            rig.insert_each(3).await;
            rig.assert_exactly_once().await;
        } else {
            wait_for_duplicates(&rig).await;
            proxy.catch_up();
        }
        rig.relay.kill_hard().await;
        rig.finish().await.expect("a clean end");
    }
}

async fn records_are_not_missing_for_recover(servers: &Arc<Servers>, proxy: &LaggingProxy, address: &str) {
    for (bug, is_right) in [("", true), ("BelievesAnyEnd", false)] {
        let rig = rig_that_has_published(servers, &format!("lagging_topic_{is_right}"), address, bug).await;
        rig.drop_slot().await;
        let records = rig.records(Isolation::Committed).await.expect("records");
        assert!(
            records.iter().any(|record| record.partition > 0),
            "there are records to hide"
        );
        // This cuts the last record and the marker of its transaction, in all partitions except partition 0, which the topic of the checkpoints has,
        // too.
        let cut = proxy.lag_behind(1..=3, 2);
        if is_right {
            let caught_up = async {
                wait_until_answers_are_cut(proxy, cut).await;
                proxy.catch_up();
            };
            let (recovered, ()) = tokio::join!(rig.relay.run(&["recover", "--yes"]), caught_up);
            recovered.unwrap_or_else(|err| panic!("{err:#}"));
            rig.start().await;
            rig.insert_each(2).await;
            rig.assert_exactly_once().await;
        } else {
            let recovered = rig.relay.run(&["recover", "--yes"]).await;
            recovered.unwrap_or_else(|err| panic!("{err:#}"));
            proxy.catch_up();
            wait_for_duplicates(&rig).await;
        }
        rig.finish().await.expect("a clean end");
    }
}

/// The last record of the checkpoint topic pauses the relay.
async fn a_pause_is_not_passed_over(servers: &Arc<Servers>, proxy: &LaggingProxy, address: &str) {
    for (bug, is_right) in [("", true), ("BelievesAnyEnd", false)] {
        let rig = rig_through_proxy(servers, &format!("lagging_pause_{is_right}"), address).await;
        let before = wait_for_stable_end(&rig, rig.checkpoint_topic()).await;
        assert_command(&rig.relay, &["pause", "--reason", "a test"], 0, &[]).await;
        assert_eq!(
            wait_for_stable_end(&rig, rig.checkpoint_topic()).await,
            before + 1,
            "one record"
        );
        let rig = with_bug(rig, bug);
        rig.insert_each(3).await;
        let cut = proxy.lag_behind(0..=0, 1);
        rig.relay.start().expect("a start");
        if is_right {
            wait_until_answers_are_cut(proxy, cut).await;
            proxy.catch_up();
            eventually(DEADLINE, "it knows that it is paused", || async {
                let (leader, paused) = (metric(&rig, "relay_leader").await?, metric(&rig, "relay_paused").await?);
                (leader == 1.0 && paused == 1.0).then_some(())
            })
            .await;
            let published = rig.records(Isolation::Uncommitted).await.expect("records");
            assert_eq!(published.len(), 0, "a paused relay publishes nothing");
            assert_command(&rig.relay, &["resume"], 0, &[]).await;
            rig.assert_exactly_once().await;
        } else {
            let unpaused = rig.wait_until_published(DEADLINE).await;
            unpaused.unwrap_or_else(|err| panic!("the wrong relay publishes: {err:#}"));
            proxy.catch_up();
        }
        rig.relay.kill_hard().await;
        rig.finish().await.expect("a clean end");
    }
}

/// The last record of the parking topic is the entry of a row. Later rows of its key belong behind that row.
async fn parked_rows_are_not_missing(servers: &Arc<Servers>, proxy: &LaggingProxy, address: &str) {
    for (bug, is_right) in [("", true), ("BelievesAnyEnd", false)] {
        let mut rig = rig_through_proxy(servers, &format!("lagging_parked_{is_right}"), address).await;
        rig.relay = rig.relay.env("OUTBOX_POISON", "park");
        limit_record_bytes(&rig, 20_000).await;
        insert_row(&rig, "parked", LARGE_BYTES).await;
        rig.start().await;
        wait_until_parked(&rig, 1).await;
        stop_relay(&rig).await;
        let hidden = wait_for_stable_end(&rig, rig.parking_topic()).await;
        // The checkpoint topic also has partition 0. It must not matter what is hidden there.
        let before = wait_for_stable_end(&rig, rig.checkpoint_topic()).await;
        while wait_for_stable_end(&rig, rig.checkpoint_topic()).await < before + hidden {
            assert_command(&rig.relay, &["pause", "--reason", "a test"], 0, &[]).await;
            assert_command(&rig.relay, &["resume"], 0, &[]).await;
        }
        assert_eq!(wait_for_stable_end(&rig, rig.checkpoint_topic()).await, before + hidden);
        let rig = with_bug(rig, bug);
        let cut = proxy.lag_behind(0..=0, hidden);
        insert_row(&rig, "parked", 10).await;
        insert_row(&rig, "another", 10).await;
        let logged = rig.relay.log_text().len();
        rig.relay.start().expect("a start");
        if is_right {
            wait_until_answers_are_cut(proxy, cut).await;
            proxy.catch_up();
            assert_eq!(wait_until_parked(&rig, 2).await.len(), 2, "it knows the key");
            assert_published_in_order(&rig, 1).await;
        } else {
            assert_ends(&rig.relay, logged, relay_exit::PARKED_ROWS_MISSING, &[]).await;
            proxy.catch_up();
        }
        rig.relay.kill_hard().await;
        rig.finish().await.expect("a clean end");
    }
}
