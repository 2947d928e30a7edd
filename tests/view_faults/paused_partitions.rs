//! If the topic no longer has the events at the view's position, the partition is paused. All other partitions go on. The message says what to type,
//! and then this partition goes on, too.

use std::sync::Arc;

use anyhow::{Context, ensure};
use rig::lagging_proxy::LaggingProxy;
use rig::metrics::Metrics;
use rig::view_rig::{DEADLINE, Event};
use rig::{Servers, ViewRig, servers, view_builder_exit};
use serde_json::json;
use stack::{KafkaOptions, Program, eventually_ok, port};

use super::rig_itself::{TABLE, apply};

/// Items with even ids are in partition 0, those with odd ids in partition 1.
fn items(topic: &str, ids: std::ops::Range<i64>) -> Vec<Event> {
    let event = |id: i64| Event::of(topic, (id % 2) as i32, id, 1, Some(&json!({"name": format!("n{id}")})));
    ids.map(event).collect()
}

/// The view has 10 events of each partition, and the builder was stopped. Then there are 20 events, and the first 15 of partition 0 are removed.
async fn removed_while_stopped(rig: &ViewRig, topic: &str, builder: &Program) {
    rig.create_topic(topic, 2, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(topic));
    builder.start().expect("a start");
    rig.produce(topic, items(topic, 0..20)).await.expect("offsets");
    rig.wait_until_applied(topic)
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

/// Waits until `/readyz` says that the partition is paused. Returns its text.
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

/// The arguments of the first command that the text tells to type, up to the given word.
fn advised(text: &str) -> anyhow::Result<Vec<&str>> {
    let (_, typed) = text.split_once("view-builder ").context("no command")?;
    Ok(typed
        .split_whitespace()
        .take(4)
        .map(|word| word.trim_matches(['`', ',']))
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
        code == Some(view_builder_exit::PARTITION_PAUSED) && said.contains(&format!("{place} is paused: ")),
        "{said}"
    );
    // The command does nothing unless it is told where to go on, and nothing for a place where no events are.
    let (code, said) = rig.command(&["accept", &place]).await.expect("it");
    assert!(
        code == Some(view_builder_exit::REFUSED) && said.contains("--from"),
        "{said}"
    );
    let (code, said) = rig.command(&["accept", &place, "--from", "12"]).await.expect("it");
    assert!(
        code == Some(view_builder_exit::REFUSED) && said.contains("it begins at 15"),
        "{said}"
    );
    let (code, said) = rig
        .command(&["accept", &format!("{topic}/1"), "--from", "3"])
        .await
        .expect("it");
    assert!(
        code == Some(view_builder_exit::REFUSED) && said.contains("is not paused"),
        "{said}"
    );
    let typed = advised(&text).expect("a command");
    assert_eq!(typed, ["accept", &place, "--from", "beginning"]);
    rig.assert_command(&typed, view_builder_exit::SUCCESS).await;
    wait_count(&rig, &builder, EVEN, "15").await;
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    let metrics = Metrics::of(&builder).await.expect("metrics");
    assert!(metrics.value("view_partitions_paused", reason) < 0.1);
    rig.assert_command(&["status"], view_builder_exit::SUCCESS).await;
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
    // Clients connect to the address that the broker advertises.
    let advertised = format!("PLAINTEXT://127.0.0.1:{proxied}");
    options.settings.push(("advertised.listeners".to_owned(), advertised));
    let proxy = LaggingProxy::start(proxied, own).await.expect("a proxy");
    let servers = Servers::start(servers::postgres_options(), options).await;
    (Arc::new(servers.expect("servers")), proxy)
}

/// Starts a builder, which applies 10 events of each partition.
async fn idle(rig: &ViewRig, topic: &str, builder: &Program) {
    rig.create_topic(topic, 2, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(topic));
    builder.start().expect("a start");
    rig.produce(topic, items(topic, 0..20)).await.expect("offsets");
    rig.wait_until_applied(topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    builder.wait_ready(DEADLINE).await.expect("it is ready");
}

/// Waits until the broker has answered the builder `answers` more times where partitions end.
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
    // Each look asks twice: for the end of what is committed, and for the end of everything.
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
    // Once the true end is told again, the partition goes on without anybody's doing.
    proxy.tell_ends();
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    wait_count(&rig, &builder, END_LOST, "1").await;

    proxy.lower_ends(0..=0, 3, u64::MAX);
    let text = paused(&rig, &builder, &place).await;
    assert!(text.contains("or --from 7 where"), "{text}");
    rig.assert_command(&["accept", &place, "--from", "7"], view_builder_exit::SUCCESS)
        .await;
    let other = Event::of(&topic, 0, 14, 2, Some(&json!({"name": "other"})));
    proxy.tell_ends();
    rig.produce(&topic, [other]).await.expect("offsets");
    wait_count(&rig, &builder, "select count(*) from item where name = 'other'", "1").await;
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    builder.stop().await.expect("a clean end");
}

const END_LOST: &str = "select count(*) from view_notices where kind = 'end-lost' and partition = 0";

/// The proxy tells 7 as the end of partition 0 instead of 10. Then the topic gets 5 more events, so that the told end is 12. To the builder it looks
/// as if the events from 7 to 9 were other events. One letter is before the told end, and a discarded one is after it.
async fn lost_and_grown(rig: &ViewRig, proxy: &LaggingProxy, topic: &str, builder: &Program) {
    idle(rig, topic, builder).await;
    proxy.lower_ends(0..=0, 3, u64::MAX);
    paused(rig, builder, &format!("{topic}/0")).await;
    wait_count(
        rig,
        builder,
        "select paused_end from view_positions where partition = 0",
        "7",
    )
    .await;
    rig.query("delete from item where id in (14, 16, 18)")
        .await
        .expect("it");
    let letters = format!(
        "insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason, discarded_at)
         values ('{topic}', 0, 2, 'one', '', '[]', 'odd', null), ('{topic}', 0, 8, 'other', '', '[]', 'odd', now())"
    );
    rig.query(&letters).await.expect("letters");
    let later = items(topic, 20..30).into_iter().step_by(2);
    rig.produce(topic, later).await.expect("offsets");
    wait_count(
        rig,
        builder,
        "select next_offset from view_positions where partition = 0",
        "15",
    )
    .await;
    proxy.tell_ends();
    builder.wait_ready(DEADLINE).await.expect("it is ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_end_that_has_grown_beyond_the_position_is_read_again_from_where_it_was() {
    let (servers, proxy) = behind_a_proxy().await;
    let rig = ViewRig::on(servers, "paused_grown").await;
    let topic = rig.topic("item");
    let builder = rig.builder("builder");
    lost_and_grown(&rig, &proxy, &topic, &builder).await;
    assert_eq!(
        rig.value(EVEN).await.expect("a count"),
        "15",
        "{}",
        builder.log_tail(30)
    );
    let state = "select format('%s %s %s %s', breaks, highest_offset, paused_end is null, paused is null)
        from view_positions where partition = 0";
    assert_eq!(rig.value(state).await.expect("a position"), "1 7 t t");
    let letters =
        "select string_agg(format('%s %s', record_offset, former_topic_id is not null), ', ' order by record_offset)
        from (table view_dead_letters union all table view_former_dead_letters) as letter";
    assert_eq!(rig.value(letters).await.expect("letters"), "2 f, 8 t");
    let text = rig
        .value("select notice from view_notices where kind = 'end-lost'")
        .await;
    let text = text.expect("a notice");
    assert!(text.contains("had ended at 7 below the view's position 10"), "{text}");
    let place = format!("{topic}/0");
    let (code, said) = rig.command(&["accept", &place]).await.expect("it");
    assert!(code == Some(0) && said.contains("end-lost is known"), "{said}");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgetting_the_end_that_was_lost_is_caught() {
    let (servers, proxy) = behind_a_proxy().await;
    let rig = ViewRig::on(servers, "paused_forgotten").await;
    let topic = rig.topic("item");
    let builder = rig.faulty_builder("builder").env("VIEW_BUILDER_BUG", "ForgetPausedEnd");
    lost_and_grown(&rig, &proxy, &topic, &builder).await;
    assert_eq!(rig.value(EVEN).await.expect("a count"), "12", "events are lost");
    assert_eq!(rig.value(END_LOST).await.expect("a count"), "0");
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
