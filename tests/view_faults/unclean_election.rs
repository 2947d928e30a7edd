//! A broker that lacks the end of the log is elected as the leader. The log then grows beyond the views' position before anybody looks at its end.

use std::sync::Arc;

use anyhow::ensure;
use rig::ViewRig;
use rig::cluster::Cluster;
use rig::view_rig::{DEADLINE, Event};
use serde_json::json;
use stack::{Program, eventually_ok};

use super::rig_itself::{TABLE, apply};

const NEW: &str = "select count(*) from item where id >= 100";

fn items(topic: &str, ids: std::ops::Range<i64>) -> Vec<Event> {
    let event = |id: i64| Event::of(topic, 0, id, 1, Some(&json!({"name": format!("n{id}")})));
    ids.map(event).collect()
}

async fn wait_count(rig: &ViewRig, builder: &Program, sql: &str, count: &str) {
    eventually_ok(DEADLINE, sql, || async {
        let found = rig.value(sql).await?;
        ensure!(found == count, "{found}, not {count}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
}

/// What the builder does while the log loses its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Runs,
    IsStopped,
    /// It runs, and has read nothing since its start.
    HasJustBegun,
}

/// The builder has 20 events. Then a broker that has only the first 10 of them leads the partition, and 30 other events come at once.
async fn lost_and_overgrown(cluster: &Cluster, rig: &ViewRig, builder: &Program, meanwhile: Meanwhile) {
    let topic = rig.topic("item");
    let settings = [("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")];
    let made = rig.create_topic_with_replicas(&topic, 1, 2, &settings).await;
    made.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    builder.start().expect("a start");
    rig.produce(&topic, items(&topic, 0..10)).await.expect("offsets");
    wait_count(rig, builder, "select count(*) from item", "10").await;
    let told = cluster.partitions(&[&topic]).await.expect("partitions");
    let leader = told[0].leader;
    let other = told[0].replicas.iter().copied().find(|id| *id != leader);
    let other = other.expect("another replica");
    cluster.nodes.node(other).kill_hard().await;
    eventually_ok(DEADLINE, "the leader goes on alone", || async {
        let told = cluster.partitions(&[&topic]).await?;
        ensure!(told[0].in_sync == [leader], "{told:?}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    rig.produce(&topic, items(&topic, 10..20)).await.expect("offsets");
    wait_count(rig, builder, "select count(*) from item", "20").await;
    if meanwhile != Meanwhile::Runs {
        builder.stop().await.expect("a clean end");
    }
    if meanwhile == Meanwhile::HasJustBegun {
        builder.start().expect("a start");
        builder.wait_ready(DEADLINE).await.expect("it is ready");
    }
    cluster.nodes.node(leader).kill_hard().await;
    cluster.start_again(other).await;
    eventually_ok(DEADLINE, "the other leads", || async {
        let told = cluster.partitions(&[&topic]).await?;
        ensure!(told[0].leader == other, "{told:?}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    // A new producer is used, which knows nothing of the records before.
    let later = ViewRig::on(Arc::clone(&cluster.servers), &format!("{}_later", rig.name())).await;
    let offsets = later.produce(&topic, items(&topic, 100..130)).await.expect("offsets");
    assert_eq!(
        (offsets[0], offsets[29]),
        (10, 39),
        "at the offsets of those that are lost"
    );
    cluster.start_again(leader).await;
    if meanwhile == Meanwhile::IsStopped {
        builder.start().expect("a start");
    }
}

async fn is_read_again(name: &str, meanwhile: Meanwhile) {
    let cluster = Cluster::take_turn().await;
    let rig = ViewRig::on(Arc::clone(&cluster.servers), name).await;
    let builder = rig.builder("builder");
    lost_and_overgrown(&cluster, &rig, &builder, meanwhile).await;
    wait_count(&rig, &builder, NEW, "30").await;
    let text = rig
        .value("select notice from view_notices where kind = 'end-lost'")
        .await;
    let text = text.unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
    assert!(text.contains("had ended at 10 below the view's position"), "{text}");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_was_lost_and_has_grown_beyond_the_position_within_moments_is_read_again() {
    is_read_again("unclean", Meanwhile::Runs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_was_lost_and_has_grown_while_no_builder_ran_is_read_again() {
    is_read_again("unclean_stopped", Meanwhile::IsStopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_was_lost_under_a_builder_that_has_read_nothing_yet_is_read_again() {
    is_read_again("unclean_idle", Meanwhile::HasJustBegun).await;
}

async fn is_caught(name: &str, meanwhile: Meanwhile) {
    let cluster = Cluster::take_turn().await;
    let rig = ViewRig::on(Arc::clone(&cluster.servers), name).await;
    let builder = rig
        .faulty_builder("builder")
        .env("VIEW_BUILDER_BUG", "TrustOffsetsAlone");
    lost_and_overgrown(&cluster, &rig, &builder, meanwhile).await;
    wait_count(&rig, &builder, "select next_offset from view_positions", "40").await;
    assert_eq!(rig.value(NEW).await.expect("a count"), "20", "events are lost");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trusting_offsets_alone_is_caught() {
    is_caught("unclean_trust", Meanwhile::IsStopped).await;
}
