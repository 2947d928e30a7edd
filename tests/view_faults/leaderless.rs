//! Partitions without a leader, because the brokers that have their events are away. All other partitions go on, and these go on as soon as they have
//! a leader.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::ensure;
use rig::ViewRig;
use rig::cluster::Cluster;
use rig::metrics::Metrics;
use rig::view_rig::{DEADLINE, Event};
use serde_json::json;
use stack::{Program, eventually_ok};

const PARTITIONS: i32 = 6;
/// The broker that will be away.
const BROKER: i32 = 3;

/// Every event has a key of its own, so each must be in this table once. A real view should not be like this, because it cannot be replayed.
const TABLE: &str = "create table if not exists applied (seq bigint generated always as identity, id bigint not null);";

fn apply(topic: &str) -> String {
    format!(
        "-- Every event that was applied, as often as it was.\n-- topics: {topic}
insert into applied (id) select key from unnest($2::bigint[]) as event(key)"
    )
}

struct World {
    cluster: Cluster,
    rig: ViewRig,
    topic: String,
    produced: i64,
}

impl World {
    /// A topic with one replica of each partition.
    async fn new(name: &str) -> Self {
        let cluster = Cluster::take_turn().await;
        let rig = ViewRig::on(Arc::clone(&cluster.servers), name).await;
        let topic = rig.topic("order");
        let settings = [("min.insync.replicas", "1")];
        let made = rig.create_topic_with_replicas(&topic, PARTITIONS, 1, &settings).await;
        made.expect("a topic");
        rig.write_view("applied", TABLE, &apply(&topic));
        Self {
            cluster,
            rig,
            topic,
            produced: 0,
        }
    }

    /// Produces one event into each of these partitions.
    async fn produce(&mut self, partitions: &BTreeSet<i32>) {
        let mut events = Vec::new();
        for partition in partitions {
            events.push(Event::of(
                &self.topic,
                *partition,
                self.produced,
                1,
                Some(&json!({"id": self.produced})),
            ));
            self.produced += 1;
        }
        self.rig.produce(&self.topic, events).await.expect("offsets");
    }

    /// The partitions that have a leader, and those that have none.
    async fn led(&self) -> anyhow::Result<(BTreeSet<i32>, BTreeSet<i32>)> {
        let partitions = self.cluster.partitions(&[&self.topic]).await?;
        let ids = |is_led: bool| {
            let such = partitions.iter().filter(move |one| (one.leader > 0) == is_led);
            such.map(|one| one.id).collect()
        };
        Ok((ids(true), ids(false)))
    }

    /// Kills the broker. Returns the partitions that have a leader then, and those that have none.
    async fn lose_broker(&self) -> (BTreeSet<i32>, BTreeSet<i32>) {
        self.cluster.nodes.node(BROKER).kill_hard().await;
        eventually_ok(DEADLINE, "partitions have no leader", || async {
            let (led, lost) = self.led().await?;
            ensure!(!lost.is_empty() && !led.is_empty(), "{led:?} are led");
            Ok((led, lost))
        })
        .await
        .unwrap_or_else(|err| panic!("{err:#}"))
    }

    /// Waits until all events except `missing` are applied. Asserts that none is applied twice.
    async fn wait_until_applied(&self, builders: &[&Program], missing: i64) {
        let expected = (self.produced - missing).to_string();
        let applied = eventually_ok(DEADLINE, "events are applied", || async {
            let rows = self
                .rig
                .query("select count(*), count(distinct id) from applied")
                .await?;
            let found: Vec<String> = rows[0].iter().flatten().cloned().collect();
            ensure!(
                found == [expected.as_str(), expected.as_str()],
                "rows, ids: {found:?}, not {expected}"
            );
            Ok(())
        });
        let logs = || {
            builders
                .iter()
                .map(|builder| builder.log_tail(20))
                .collect::<Vec<_>>()
                .join("\n")
        };
        applied.await.unwrap_or_else(|err| panic!("{err:#}\n{}", logs()));
    }

    /// Waits until the builder says that these partitions have no leader in Kafka, and says nothing else.
    async fn wait_told(&self, builder: &Program, lost: &BTreeSet<i32>) {
        eventually_ok(DEADLINE, "it is told", || async {
            let (status, text) = self.rig.readiness(builder).await?;
            for partition in lost {
                let told = format!("{}/{partition} has no leader in kafka", self.topic);
                ensure!(status == 503 && text.contains(&told), "{status}: {text}");
            }
            ensure!(!text.contains("postgres"), "{text}");
            let metrics = Metrics::of(builder).await?;
            let waiting = metrics.value("view_partitions_waiting", Some(("reason", "no_leader")));
            ensure!((waiting - lost.len() as f64).abs() < 0.1, "{waiting}");
            Ok(())
        })
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
    }

    async fn wait_whole(&self, builder: &Program) {
        builder.wait_ready(DEADLINE).await.expect("it is ready");
        let metrics = Metrics::of(builder).await.expect("metrics");
        assert!(metrics.value("view_partitions_waiting", Some(("reason", "no_leader"))) < 0.1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_without_a_leader_wait_and_all_others_are_taken_over_and_applied() {
    let mut world = World::new("leaderless").await;
    let all: BTreeSet<i32> = (0..PARTITIONS).collect();
    world.produce(&all).await;
    world.produce(&all).await;
    let (led, lost) = world.lose_broker().await;
    let waiting = i64::try_from(2 * lost.len()).expect("a count");
    let builder = world.rig.builder("one");
    builder.start().expect("a start");
    world.wait_until_applied(&[&builder], waiting).await;
    world.produce(&led).await;
    world.wait_until_applied(&[&builder], waiting).await;
    world.wait_told(&builder, &lost).await;
    let (code, said) = world.rig.command(&["status"]).await.expect("a status");
    assert_eq!(code, Some(1), "{said}");
    for partition in &lost {
        let told = format!("{}/{partition} has no leader in kafka", world.topic);
        assert!(said.contains(&told), "{said}");
        let held = format!("select count(*) from view_positions where partition = {partition} and next_offset is null");
        assert_eq!(
            world.rig.value(&held).await.expect("a count"),
            "1",
            "claimed, and nothing more"
        );
    }

    // A second builder takes some of these partitions over while nobody can read them.
    let second = world.rig.builder("two");
    second.start().expect("a start");
    eventually_ok(DEADLINE, "both hold partitions", || async {
        let owners = world
            .rig
            .value("select count(distinct owner) from view_positions")
            .await?;
        ensure!(owners == "2", "{owners}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    world.produce(&led).await;
    world.wait_until_applied(&[&builder, &second], waiting).await;

    world.cluster.start_again(BROKER).await;
    world.wait_until_applied(&[&builder, &second], 0).await;
    world.produce(&all).await;
    world.wait_until_applied(&[&builder, &second], 0).await;
    for builder in [&builder, &second] {
        world.wait_whole(builder).await;
        builder.stop().await.expect("a clean end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_lose_their_leader_under_a_running_builder_are_told_and_come_back() {
    let mut world = World::new("leaderless_running").await;
    let all: BTreeSet<i32> = (0..PARTITIONS).collect();
    let builder = world.rig.builder("one");
    builder.start().expect("a start");
    world.produce(&all).await;
    world.wait_until_applied(&[&builder], 0).await;
    let (led, lost) = world.lose_broker().await;
    world.wait_told(&builder, &lost).await;
    world.produce(&led).await;
    world.wait_until_applied(&[&builder], 0).await;
    world.cluster.start_again(BROKER).await;
    eventually_ok(DEADLINE, "all are led", || async {
        let (_, lost) = world.led().await?;
        ensure!(lost.is_empty(), "{lost:?}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    world.produce(&all).await;
    world.wait_until_applied(&[&builder], 0).await;
    world.wait_whole(&builder).await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_all_leaders_is_caught_and_kafka_is_what_is_blamed() {
    let mut world = World::new("leaderless_all").await;
    world.produce(&(0..PARTITIONS).collect()).await;
    world.lose_broker().await;
    let bug = ("VIEW_BUILDER_BUG", "WaitForAllLeaders");
    let builder = world.rig.faulty_builder("one").env(bug.0, bug.1);
    builder.start().expect("a start");
    eventually_ok(DEADLINE, "it is told what is waited for", || async {
        let (status, text) = world.rig.readiness(&builder).await?;
        let told = "kafka has not told for more than 5 s where the partitions begin and end";
        ensure!(
            status == 503 && text.contains(told) && !text.contains("postgres"),
            "{status}: {text}"
        );
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
    let applied = world.rig.value("select count(*) from applied").await;
    assert_eq!(applied.expect("a count"), "0", "nobody goes on");
    builder.kill_hard().await;
}
