//! A partition whose topic does not have the events at the view's position is paused; all others go on, and what the message says to type
//! has it go on, too.

use std::sync::Arc;

use anyhow::{Context, ensure};
use rig::lagging_proxy::LaggingProxy;
use rig::metrics::Metrics;
use rig::view_rig::{DEADLINE, Event};
use rig::{Servers, ViewRig, servers};
use serde_json::json;
use stack::{KafkaOptions, Program, eventually_ok, port};

use super::rig_itself::{TABLE, apply};

/// Items of partition 0 have even ids, those of partition 1 odd ones.
fn items(topic: &str, ids: std::ops::Range<i64>) -> Vec<Event> {
    let event = |id: i64| Event::of(topic, (id % 2) as i32, id, 1, Some(&json!({"name": format!("n{id}")})));
    ids.map(event).collect()
}

/// The view has 10 events of each partition and the builder was stopped; then there are 20, and the first 15 of partition 0 are removed.
async fn removed_while_stopped(rig: &ViewRig, topic: &str, builder: &Program) {
    rig.create_topic(topic, 2, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(topic));
    builder.start().expect("a start");
    rig.produce(topic, items(topic, 0..20)).await.expect("offsets");
    rig.wait_applied(topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    builder.stop().await.expect("a clean end");
    rig.produce(topic, items(topic, 20..40)).await.expect("offsets");
    rig.delete_records_before(topic, 0, 15)
        .await
        .expect("records that are gone");
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

/// What `/readyz` says while the partition is paused.
async fn paused(rig: &ViewRig, builder: &Program, place: &str) -> String {
    let text = eventually_ok(DEADLINE, "the partition is paused", || async {
        let (status, text) = rig.readiness(builder).await?;
        let told = format!("{place} is paused: ");
        ensure!(status == 503 && text.contains(&told), "{status}: {text}");
        Ok(text)
    });
    text.await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)))
}

/// The arguments of the first command that the text says to type, up to the given word.
fn advised(text: &str) -> anyhow::Result<Vec<&str>> {
    let (_, typed) = text.split_once("view-builder ").context("no command")?;
    Ok(typed
        .split_whitespace()
        .take(4)
        .map(|word| word.trim_end_matches(','))
        .collect())
}

const ODD: &str = "select count(*) from item where id % 2 = 1";
const EVEN: &str = "select count(*) from item where id % 2 = 0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_whose_events_were_removed_pauses_alone_until_the_command_that_the_message_names() {
    let rig = ViewRig::new("paused_removed").await;
    let topic = rig.topic("item");
    let builder = rig.builder("builder");
    removed_while_stopped(&rig, &topic, &builder).await;
    builder.start().expect("a start");
    wait_count(&rig, &builder, ODD, "20").await;
    let place = format!("{topic}/0");
    let text = paused(&rig, &builder, &place).await;
    assert_eq!(rig.value(EVEN).await.expect("a count"), "10");
    let metrics = Metrics::of(&builder).await.expect("metrics");
    let reason = Some(("reason", "below_beginning"));
    assert!((metrics.value("view_partitions_paused", reason) - 1.0).abs() < 0.1);
    let (code, said) = rig.command(&["status"]).await.expect("a status");
    assert!(
        code == Some(4) && said.contains(&format!("{place} is paused: ")),
        "{said}"
    );
    // Nothing is done without a word where to go on, nor from where nothing is.
    let (code, said) = rig.command(&["accept", &place]).await.expect("it");
    assert!(code == Some(2) && said.contains("--from"), "{said}");
    let (code, said) = rig.command(&["accept", &place, "--from", "12"]).await.expect("it");
    assert!(code == Some(2) && said.contains("it begins at 15"), "{said}");
    let (code, said) = rig
        .command(&["accept", &format!("{topic}/1"), "--from", "3"])
        .await
        .expect("it");
    assert!(code == Some(2) && said.contains("is not paused"), "{said}");
    let typed = advised(&text).expect("a command");
    assert_eq!(typed, ["accept", &place, "--from", "beginning"]);
    let (code, said) = rig.command(&typed).await.expect("it");
    assert_eq!(code, Some(0), "{said}");
    wait_count(&rig, &builder, EVEN, "15").await;
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    let metrics = Metrics::of(&builder).await.expect("metrics");
    assert!(metrics.value("view_partitions_paused", reason) < 0.1);
    let (code, said) = rig.command(&["status"]).await.expect("a status");
    assert_eq!(code, Some(0), "{said}");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_all_for_one_partition_is_caught() {
    let rig = ViewRig::new("paused_end_all").await;
    let topic = rig.topic("item");
    let builder = rig.faulty_builder("builder").env("VIEW_BUILDER_BUG", "EndAllForOne");
    removed_while_stopped(&rig, &topic, &builder).await;
    builder.start().expect("a start");
    builder.exited(DEADLINE).await.expect("an end");
    assert_eq!(rig.value(ODD).await.expect("a count"), "10", "nobody goes on");
}

/// Servers whose clients all reach the broker through a proxy.
async fn behind_a_proxy() -> (Arc<Servers>, LaggingProxy) {
    let (own, proxied) = (port::free().expect("a port"), port::free().expect("a port"));
    let mut options = KafkaOptions {
        port: own,
        ..servers::kafka_options()
    };
    // Clients go where the broker says it is.
    let advertised = format!("PLAINTEXT://127.0.0.1:{proxied}");
    options.settings.push(("advertised.listeners".to_owned(), advertised));
    let proxy = LaggingProxy::start(proxied, own).await.expect("a proxy");
    let servers = Servers::start(servers::postgres_options(), options).await;
    (Arc::new(servers.expect("servers")), proxy)
}

/// A builder that has applied 10 events of each partition.
async fn idle(rig: &ViewRig, topic: &str, builder: &Program) {
    rig.create_topic(topic, 2, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(topic));
    builder.start().expect("a start");
    rig.produce(topic, items(topic, 0..20)).await.expect("offsets");
    rig.wait_applied(topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    builder.wait_ready(DEADLINE).await.expect("it is ready");
}

/// Waits until the builder has had `answers` more answers to its question where partitions end.
async fn wait_told(proxy: &LaggingProxy, answers: u64) {
    let before = proxy.ends_told();
    eventually_ok(DEADLINE, "kafka is asked", || async {
        let told = proxy.ends_told() - before;
        ensure!(told >= answers, "{told} of {answers}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
}

const EPOCHS: &str = "select sum(epoch) from view_positions";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_below_the_position_of_an_idle_builder_pauses_that_partition_and_one_lagging_answer_does_not() {
    let (servers, proxy) = behind_a_proxy().await;
    let rig = ViewRig::on(servers, "paused_low_end").await;
    let topic = rig.topic("item");
    let builder = rig.builder("builder");
    idle(&rig, &topic, &builder).await;
    let place = format!("{topic}/0");
    let epochs = rig.value(EPOCHS).await.expect("epochs");
    proxy.lower_ends(0..=0, 3, 1);
    // Each look asks twice: for what is committed, then for all.
    wait_told(&proxy, 4).await;
    assert!(
        builder.log_text().contains("ends below the position"),
        "{}",
        builder.log_tail(20)
    );
    assert_eq!(
        rig.value(EPOCHS).await.expect("epochs"),
        epochs,
        "nothing is taken over anew"
    );

    proxy.lower_ends(0..=0, 3, u64::MAX);
    paused(&rig, &builder, &place).await;
    rig.produce(&topic, items(&topic, 21..22)).await.expect("offsets");
    wait_count(&rig, &builder, ODD, "11").await;
    // Where the end is there again, so is the partition, without anybody's doing.
    proxy.tell_ends();
    builder.wait_ready(DEADLINE).await.expect("it is ready");

    proxy.lower_ends(0..=0, 3, u64::MAX);
    let text = paused(&rig, &builder, &place).await;
    assert!(text.contains("or --from 7 where"), "{text}");
    let (code, said) = rig.command(&["accept", &place, "--from", "7"]).await.expect("it");
    assert_eq!(code, Some(0), "{said}");
    let other = Event::of(&topic, 0, 14, 2, Some(&json!({"name": "other"})));
    proxy.tell_ends();
    rig.produce(&topic, [other]).await.expect("offsets");
    wait_count(&rig, &builder, "select count(*) from item where name = 'other'", "1").await;
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn believing_one_lagging_end_is_caught() {
    let (servers, proxy) = behind_a_proxy().await;
    let rig = ViewRig::on(servers, "paused_one_low").await;
    let topic = rig.topic("item");
    let builder = rig
        .faulty_builder("builder")
        .env("VIEW_BUILDER_BUG", "BelieveOneLaggingEnd");
    idle(&rig, &topic, &builder).await;
    let epochs = rig.value(EPOCHS).await.expect("epochs");
    proxy.lower_ends(0..=0, 3, 1);
    eventually_ok(DEADLINE, "all is taken over anew", || async {
        let now = rig.value(EPOCHS).await?;
        ensure!(now != epochs, "{now}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    builder.stop().await.expect("a clean end");
}
