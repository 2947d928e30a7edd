//! A rebuild while a topic does not give what it gave before: a broker lags behind, or retention or compaction has removed records.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use rig::lagging_proxy::LaggingProxy;
use rig::view_rig::{DEADLINE, Event};
use rig::{Servers, ViewRig, servers, topic, view_builder_exit};
use serde_json::json;
use stack::{KafkaOptions, Program, eventually_ok, port};

use super::rebuild_positions::{CONTENT, ITEMS, apply_all, item, rebuild, rig_with_applied_versions};
use super::rig_itself::{TABLE, apply};

const BUG: &str = "VIEW_BUILDER_BUG";
/// This is longer than a rebuild waits for the end of a topic.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let proxy = LaggingProxy::start_for(proxied, own, "view-builder")
        .await
        .expect("a proxy");
    let servers = Servers::start(servers::postgres_options(), options).await;
    (Arc::new(servers.expect("servers")), proxy)
}

/// A rig on these servers. Its view has all items at version 1, and its builder was stopped.
async fn one_each(servers: &Arc<Servers>, name: &str) -> (ViewRig, String) {
    let rig = ViewRig::on(Arc::clone(servers), name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 2, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    // The records are in at least two batches of the producer, because a broker that lags behind leaves out whole batches.
    for half in [1..=ITEMS / 2, ITEMS / 2 + 1..=ITEMS] {
        rig.produce(&topic, half.map(|id| item(&topic, id, 1)))
            .await
            .expect("offsets");
    }
    apply_all(&rig, &topic).await;
    (rig, topic)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_below_what_the_view_has_reached_is_not_believed() {
    let (servers, proxy) = behind_a_proxy().await;
    for bug in ["", "BelieveAnyEnd"] {
        let (rig, _) = one_each(&servers, &format!("lagging{}", bug.to_lowercase())).await;
        let before = rig.value(CONTENT).await.expect("the view");
        let cut = proxy.lag_behind(0..=1, 10);
        let catches_up = async {
            if bug.is_empty() {
                eventually_ok(DEADLINE, "answers are cut", || async {
                    ensure!(proxy.answers_cut() >= cut + 10, "not often enough");
                    Ok(())
                })
                .await
                .unwrap_or_else(|err| panic!("{err:#}"));
                proxy.catch_up();
            }
        };
        let ((code, said), ()) = tokio::join!(rebuild(&rig, "item", bug, &[]), catches_up);
        proxy.catch_up();
        assert_eq!(code, Some(0), "{said}");
        let is_same = rig.value(CONTENT).await.expect("the view") == before;
        assert_eq!(is_same, bug.is_empty(), "{bug}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_stays_below_what_the_view_has_reached_ends_the_rebuild() {
    let (servers, proxy) = behind_a_proxy().await;
    let (rig, topic) = one_each(&servers, "lagging_on").await;
    let before = rig.value(CONTENT).await.expect("the view");
    proxy.lag_behind(0..=1, 10);
    let command = rig.builder("rebuild").command_of("rebuild-short", &["rebuild", "item"]);
    command.start().expect("a start");
    let status = command.exited(PATIENCE).await.expect("an end");
    let said = command.log_text();
    assert_eq!(status.code(), Some(view_builder_exit::REFUSED), "{said}");
    assert!(
        said.contains(&format!("{topic}/")) && said.contains("below offset 100"),
        "{said}"
    );
    assert_eq!(rig.value(CONTENT).await.expect("the view"), before);
    proxy.catch_up();
    let (code, said) = rebuild(&rig, "item", "", &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(rig.value(CONTENT).await.expect("the view"), before);
}

/// A rebuild that is killed after its first batch of each topic is committed, or that waits there until a file exists.
fn held(rig: &ViewRig, action: &str, flags: &[&str], bug: &str) -> Program {
    let hits = rig.logs().join(format!("hits-{}", action.len()));
    let arguments = [&["rebuild", "item"], flags].concat();
    rig.faulty_builder("rebuild")
        .env("VIEW_BUILDER_FAILPOINT", &format!("fill.applied={action}@1"))
        .env("VIEW_BUILDER_FAILPOINT_HITS", &hits.to_string_lossy())
        .env(BUG, bug)
        .command_of("rebuild-held", &arguments)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_gone_are_refused_or_accepted_from_the_first_one_on() {
    let (rig, topic) = rig_with_applied_versions("truncated").await;
    let before = rig.value(CONTENT).await.expect("the view");
    rig.delete_records_before(&topic, 0, 150).await.expect("they are gone");
    let (code, said) = rebuild(&rig, "item", "", &[]).await;
    assert_eq!(code, Some(view_builder_exit::REFUSED), "{said}");
    assert!(
        said.contains("begins at offset 150") && said.contains("--accept-truncated"),
        "{said}"
    );
    assert_eq!(rig.value(CONTENT).await.expect("the view"), before);
    let (code, said) = rebuild(&rig, "item", "", &["--accept-truncated"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(rig.value("select count(*) from item").await.expect("a count"), "200");
    // The rebuild has ended, and what was accepted then does not count any more.
    let (code, said) = rebuild(&rig, "item", "", &[]).await;
    assert_eq!(code, Some(view_builder_exit::REFUSED), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_as_gone_stays_accepted_when_a_rebuild_goes_on_and_retention_too() {
    for bug in ["", "ForgetAcceptance"] {
        let (rig, topic) = rig_with_applied_versions(&format!("truncated_further{}", bug.to_lowercase())).await;
        rig.delete_records_before(&topic, 0, 10).await.expect("they are gone");
        let killed = held(&rig, "kill", &["--accept-truncated"], bug);
        killed.start().expect("a start");
        killed.exited(DEADLINE).await.expect("it dies");
        rig.delete_records_before(&topic, 1, 20).await.expect("they are gone");
        let (code, said) = rebuild(&rig, "item", bug, &[]).await;
        let wanted = if bug.is_empty() { 0 } else { view_builder_exit::REFUSED };
        assert_eq!(code, Some(wanted), "{said}");
        if bug.is_empty() {
            let whole = rig.value("select count(*) from item where version = 3").await;
            assert_eq!(whole.expect("a count"), ITEMS.to_string());
        }
    }
}

/// The topic has one partition, with more than one batch of a fill. While the first batch is committed, retention removes the part that comes next.
/// The records are large, so that they cannot be fetched before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_retention_takes_while_a_generation_is_filled_are_refused_or_accepted() {
    for is_accepted in [true, false] {
        let rig = ViewRig::new(&format!("retention_in_fill_{is_accepted}")).await;
        let topic = rig.topic("item");
        rig.create_topic(&topic, 1, &[]).await.expect("a topic");
        rig.write_view("item", TABLE, &apply(&topic));
        let name = "n".repeat(400_000);
        for id in 1..=80 {
            let event = Event::of(&topic, 0, id, 1, Some(&json!({"name": name})));
            rig.produce(&topic, [event]).await.expect("an offset");
        }
        apply_all(&rig, &topic).await;
        let go = rig.logs().join("go");
        let flags: &[&str] = if is_accepted { &["--accept-truncated"] } else { &[] };
        let command = held(&rig, &format!("until:{}", go.display()), flags, "");
        command.start().expect("a start");
        let hits = rig.logs();
        eventually_ok(DEADLINE, "the first batch is applied", || async {
            let mut there = std::fs::read_dir(hits)?.filter_map(Result::ok);
            let is_there = there.any(|file| file.file_name().to_string_lossy().starts_with("hits-"));
            ensure!(is_there, "not yet");
            Ok(())
        })
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", command.log_tail(20)));
        rig.delete_records_before(&topic, 0, 70).await.expect("they are gone");
        std::fs::write(&go, "").expect("a file");
        let status = command.exited(DEADLINE).await.expect("an end");
        let said = command.log_text();
        assert_eq!(
            status.code(),
            Some(if is_accepted { 0 } else { view_builder_exit::REFUSED }),
            "{said}"
        );
        assert!(said.contains("70"), "{said}");
        let count: i64 = rig
            .value("select count(*) from item")
            .await
            .expect("a count")
            .parse()
            .expect("a number");
        assert!(if is_accepted { count < 80 } else { count == 80 }, "{count}");
    }
}

/// With these settings a topic is compacted within seconds. With the last one it keeps deletions long enough.
const COMPACTED: [(&str, &str); 5] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "100"),
    ("min.cleanable.dirty.ratio", "0.001"),
    ("max.compaction.lag.ms", "100"),
    ("min.compaction.lag.ms", "0"),
];

/// A rig with a compacted topic. It has the items 1 to 5 with versions 1 and 2. The latest record of item 1 is a dead letter, and one of item 2 is
/// discarded. Item 3 has a good event after a discarded one. The first version of item 9 is broken. One record has a key that is not a number.
pub(crate) async fn compacted(name: &str) -> (ViewRig, String) {
    let quick = KafkaOptions {
        settings: vec![("log.cleaner.backoff.ms".to_owned(), "100".to_owned())],
        ..servers::kafka_options()
    };
    let servers = Servers::start(servers::postgres_options(), quick)
        .await
        .expect("servers");
    let rig = ViewRig::on(Arc::new(servers), name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &COMPACTED).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let on = |event: Event| Event { partition: 0, ..event };
    let broken = |id, version| {
        let event = on(item(&topic, id, version));
        let value = event.value.as_deref().unwrap_or_default();
        Event {
            value: Some(
                value
                    .replacen("_CREATED", "_WRONG", 1)
                    .replacen("_UPDATED", "_WRONG", 1),
            ),
            ..event
        }
    };
    for version in 1..=2 {
        rig.produce(&topic, (1..=5).map(|id| on(item(&topic, id, version))))
            .await
            .expect("offsets");
    }
    rig.produce(
        &topic,
        [
            broken(1, 3),
            broken(2, 3),
            broken(3, 3),
            on(item(&topic, 3, 4)),
            broken(9, 1),
            // No event has such a key.
            Event {
                partition: 0,
                key: Some("no number".to_owned()),
                value: Some("no event".to_owned()),
            },
        ],
    )
    .await
    .expect("offsets");
    apply_all(&rig, &topic).await;
    for key in [2, 3] {
        let letter = format!("select min(id) from view_dead_letters where convert_from(key, 'UTF8') = '{key}'");
        let letter = rig.value(&letter).await.expect("a letter");
        rig.assert_command(&["dead-letters", "discard", &letter], view_builder_exit::SUCCESS)
            .await;
    }
    assert_eq!(rig.value(CONTENT).await.expect("the view"), "1:2 2:2 3:4 4:2 5:2");
    wait_compacted(&rig, &topic).await;
    apply_all(&rig, &topic).await;
    (rig, topic)
}

/// Waits until each earlier record is removed. Kafka compacts only closed segments, and the next record closes a segment.
async fn wait_compacted(rig: &ViewRig, topic: &str) {
    let (mut version, address) = (2, rig.servers.kafka.bootstrap_servers());
    eventually_ok(PATIENCE, "the topic is compacted", || {
        version += 1;
        let (address, name) = (address.clone(), topic.to_owned());
        async move {
            let event = Event {
                partition: 0,
                ..item(&name, 100, version - 2)
            };
            rig.produce(&name, [event]).await?;
            let records =
                tokio::task::spawn_blocking(move || topic::read(&address, &name, topic::Isolation::Committed));
            let records = records.await??;
            let earlier = records.iter().filter(|record| record.offset < 10).count();
            // The second versions of items 4 and 5 stay.
            ensure!(earlier == 2, "{earlier} of the first records are there");
            Ok(())
        }
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_compaction_has_left_to_the_live_view_alone_is_not_dropped_in_silence() {
    let (rig, topic) = compacted("compacted_letters").await;
    let before = rig.value(CONTENT).await.expect("the view");
    let (code, said) = rebuild(&rig, "item", "", &[]).await;
    assert_eq!(code, Some(view_builder_exit::REFUSED), "{said}");
    let named = "2 keys with dead letters may have rows in item that the topic cannot give again";
    assert!(said.contains(named), "{said}");
    assert!(said.contains(&format!("{topic}/0 key 1, {topic}/0 key 2;")), "{said}");
    assert_eq!(rig.value(CONTENT).await.expect("the view"), before);
    let (code, said) = rebuild(&rig, "item", "", &["--accept-compacted"]).await;
    assert_eq!(code, Some(0), "{said}");
    let after = rig.value(CONTENT).await.expect("the view");
    assert!(after.starts_with("3:4 4:2 5:2 100:"), "{after}");
    assert_eq!(
        rig.value("select count(*) from view_rebuilds").await.expect("rebuilds"),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ignoring_compaction_is_caught() {
    let (rig, _) = compacted("bug_ignore_compaction").await;
    let (code, said) = rebuild(&rig, "item", "IgnoreCompaction", &[]).await;
    assert_eq!(code, Some(0), "{said}");
    let after = rig.value(CONTENT).await.expect("the view");
    assert!(after.starts_with("3:4"), "the bug goes unnoticed: {after}");
}
