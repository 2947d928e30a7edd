//! `outbox-relay status`: what the person on call sees, and what scripts read, while all is well and while something is not. And the metrics that say the
//! same by themselves.

use std::sync::Arc;
use std::time::Duration;

use rig::servers::{kafka_options, postgres_options};
use rig::{Metrics, Rig, Servers, Status, relay_exit};
use rustix::process::Signal;
use stack::eventually_ok;

use super::super::tampering::{publish_and_stop, wait_until_confirmed};

const DEADLINE: Duration = Duration::from_secs(60);
const REASON: &str = "kafka is upgraded";

async fn metrics(rig: &Rig) -> Metrics {
    Metrics::of(&rig.relay).await.unwrap_or_else(|err| panic!("{err:#}"))
}

/// Waits until the relay's metric has a value for which `is_wanted` holds.
async fn wait_for_metric(rig: &Rig, name: &str, label: Option<(&str, &str)>, is_wanted: fn(f64) -> bool) {
    eventually_ok(DEADLINE, name, || async {
        let value = Metrics::of(&rig.relay).await?.value(name, label);
        anyhow::ensure!(is_wanted(value), "it is {value}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", rig.relay.log_tail(20)));
}

/// Runs `status` again until its verdict is this one.
async fn wait_for_state(rig: &Rig, state: &str) -> Status {
    let found = eventually_ok(DEADLINE, state, || async {
        let status = Status::of(&rig.relay).await;
        anyhow::ensure!(status.state() == state, "{status}");
        Ok(status)
    });
    found
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", rig.relay.log_tail(20)))
}

/// Asserts that `status` is as it should be where nothing is wrong.
fn assert_well(rig: &Rig, status: &Status) {
    assert_eq!((status.state(), status.exit_code()), ("well", 0), "{status}");
    assert_eq!(status.at("/problems"), serde_json::json!([]));
    assert_eq!(status.at("/slot/is_active"), true);
    assert_eq!(status.at("/relay/is_ready"), true, "{status}");
    assert_eq!(status.at("/outbox/oldest_unpublished_age_seconds"), 0.0, "{status}");
    let topics = status.at("/topics");
    let topic = topics
        .as_array()
        .into_iter()
        .flatten()
        .find(|topic| topic["topic"] == rig.topic());
    let topic = topic.unwrap_or_else(|| panic!("{status}"));
    assert_eq!(
        (&topic["partitions"], &topic["partitions_expected"]),
        (&4.into(), &4.into()),
        "{status}"
    );
}

#[tokio::test]
async fn status_of_a_relay_that_publishes_is_well_and_the_relay_does_not_notice_it() {
    let rig = Rig::initialised("status_well").await;
    rig.start().await;
    rig.insert_each(20).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    let reader = "select active_pid from pg_replication_slots where slot_name = 'status_well'";
    let reader_before = rig.value(reader).await;
    let status = wait_for_state(&rig, "well").await;
    assert_well(&rig, &status);
    assert_eq!(status.at("/slot/reader/pid").to_string(), reader_before, "{status}");
    assert_eq!(status.at("/parking/rows"), 0);
    assert_eq!(
        status.at("/slot/confirmed_lsn").as_str().map(str::is_empty),
        Some(false)
    );

    let before = rig.relay.log_text().len();
    rig.relay.run(&["status"]).await.unwrap_or_else(|err| panic!("{err:#}"));
    let text = rig.relay.log_text()[before..].to_owned();
    for words in [
        "well: everything that was committed is published",
        "WAL kept for the slot",
        "not yet published",
    ] {
        assert!(text.contains(words), "no `{words}` in {text}");
    }

    // Neither the slot nor the producers were touched.
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    assert_eq!(rig.value(reader).await, reader_before);
    let metrics = metrics(&rig).await;
    assert!(metrics.value("relay_restarts_total", None) < 0.5);
    let topic = rig.topic();
    let by_topic = |name: &str| metrics.value(name, Some(("topic", topic.as_str())));
    assert!((by_topic("relay_topic_records_total") - 25.0).abs() < 0.1);
    // A key has two bytes, and a payload at least eight: {"n": 1}.
    assert!(
        by_topic("relay_topic_bytes_total") >= 25.0 * 10.0,
        "{}",
        by_topic("relay_topic_bytes_total")
    );
    assert!(
        metrics
            .series("relay_last_error_timestamp_seconds")
            .all(|sample| sample.value < 0.5)
    );
    wait_for_metric(&rig, "relay_oldest_unpublished_seconds", None, |age| age == 0.0).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn status_tells_of_a_pause_and_of_its_end() {
    let rig = Rig::initialised("status_paused").await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    rig.relay.run(&["pause", "--reason", REASON]).await.expect("a pause");
    wait_for_metric(&rig, "relay_paused", None, |paused| paused > 0.5).await;
    rig.insert_each(3).await;
    let status = wait_for_state(&rig, "paused").await;
    assert_eq!(status.exit_code(), relay_exit::PAUSED_OR_BEHIND, "{status}");
    assert_eq!(status.at("/pause/reason"), REASON);
    assert_eq!(status.commands(), ["outbox-relay resume"], "{status}");
    let age = status.at("/outbox/oldest_unpublished_age_seconds").as_f64();
    assert!(age.is_some_and(|age| age > 0.0), "{status}");
    // The relay knows that a row waits, although it has not even decoded it.
    wait_for_metric(&rig, "relay_oldest_unpublished_seconds", None, |age| age > 1.0).await;

    rig.relay.stop().await.expect("a clean end");
    rig.wait_until_slot_is_free().await;
    let status = Status::of(&rig.relay).await;
    assert_eq!(
        (status.state(), status.exit_code()),
        ("paused", relay_exit::NO_RELAY),
        "{status}"
    );
    assert_eq!(
        status.commands(),
        ["outbox-relay resume", "outbox-relay run"],
        "{status}"
    );
    assert!(status.at("/relay/is_ready").is_null(), "{status}");

    rig.start().await;
    rig.relay.run(&["resume"]).await.expect("an end of the pause");
    rig.assert_exactly_once().await;
    let status = wait_for_state(&rig, "well").await;
    assert_well(&rig, &status);
    wait_for_metric(&rig, "relay_oldest_unpublished_seconds", None, |age| age == 0.0).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn status_tells_why_no_relay_runs_and_what_goes_on() {
    let rig = Rig::initialised("status_stopped").await;
    publish_and_stop(&rig).await;
    rig.wait_until_slot_is_free().await;
    let status = Status::of(&rig.relay).await;
    assert_eq!(
        (status.state(), status.exit_code()),
        ("stopped", relay_exit::NO_RELAY),
        "{status}"
    );
    assert_eq!(status.commands(), ["outbox-relay run"], "{status}");
    let before = metrics_of_stop(&rig).await;

    // No row may go to the topic of the checkpoints. Nothing in the stream mends that.
    rig.sql(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload) values ('{}', 'k', 'Forged', '{{}}')",
        rig.checkpoint_topic()
    ))
    .await;
    rig.assert_stops(relay_exit::ROW_REFUSED, &["outbox-relay park "]).await;
    let status = Status::of(&rig.relay).await;
    assert_eq!(
        (status.state(), status.exit_code()),
        ("stopped", relay_exit::ROW_REFUSED),
        "{status}"
    );
    let commands = status.commands();
    let park = commands.first().unwrap_or_else(|| panic!("{status}"));
    assert!(
        park.starts_with("outbox-relay park ") && rig.relay.log_text().contains(park),
        "{park}: {status}"
    );
    let age = status.at("/outbox/oldest_unpublished_age_seconds").as_f64();
    assert!(age.is_some_and(|age| age > 0.0), "the row waits: {status}");

    let typed: Vec<&str> = park.split(' ').skip(1).collect();
    rig.relay.run(&typed).await.unwrap_or_else(|err| panic!("{err:#}"));
    let status = Status::of(&rig.relay).await;
    assert_eq!(
        status.exit_code(),
        relay_exit::NO_RELAY,
        "the next one goes on: {status}"
    );
    rig.start().await;
    rig.insert_each(1).await;
    wait_until_confirmed(&rig).await;
    let status = wait_for_state(&rig, "well").await;
    assert_eq!(
        (status.exit_code(), status.at("/parking/rows")),
        (0, 1.into()),
        "{status}"
    );
    assert_eq!(status.commands(), ["outbox-relay parked list"], "{status}");
    assert!(before < 0.5, "a clean end is no stop: {before}");

    rig.relay.stop().await.expect("a clean end");
    rig.drop_slot().await;
    let status = Status::of(&rig.relay).await;
    assert_eq!(
        (status.state(), status.exit_code()),
        ("stopped", relay_exit::SLOT_GONE),
        "{status}"
    );
    let problem = status.problems().into_iter().next().unwrap_or_default();
    // The relay's last line has the same words.
    rig.assert_stops(relay_exit::SLOT_GONE, &[&problem]).await;
}

/// Starts the relay, and returns when it last had a stop as its metric says, 0 for never. Stops it again.
async fn metrics_of_stop(rig: &Rig) -> f64 {
    rig.start().await;
    let metrics = metrics(rig).await;
    rig.relay.stop().await.expect("a clean end");
    rig.wait_until_slot_is_free().await;
    metrics.value("relay_last_error_timestamp_seconds", Some(("kind", "stop")))
}

#[tokio::test]
async fn status_tells_what_is_known_while_a_server_is_away() {
    let servers = Servers::start(postgres_options(), kafka_options()).await;
    let rig = Rig::on(Arc::new(servers.expect("servers")), "status_away").await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    let (postgres, kafka) = (&rig.servers.postgres, &rig.servers.kafka);

    kafka.kill_hard().await;
    let status = Status::of(&rig.relay).await;
    assert_eq!(
        (status.state(), status.exit_code()),
        ("away", relay_exit::SERVER_AWAY),
        "{status}"
    );
    assert!(status.at("/postgres/away_because").is_null(), "{status}");
    let why = status.at("/kafka/away_because");
    assert!(
        why.as_str().is_some_and(|why| why.contains(&kafka.bootstrap_servers())),
        "{status}"
    );
    assert_eq!(status.at("/slot/name"), "status_away");
    assert!(status.at("/checkpoint").is_null(), "{status}");
    wait_for_metric(
        &rig,
        "relay_last_error_timestamp_seconds",
        Some(("kind", "kafka")),
        |at| at > 1e9,
    )
    .await;

    postgres.kill_hard().await;
    let status = Status::of(&rig.relay).await;
    assert_eq!(
        (status.state(), status.exit_code()),
        ("away", relay_exit::SERVER_AWAY),
        "{status}"
    );
    assert!(status.problems().len() >= 2, "{status}");

    kafka.start_again().await.expect("kafka");
    let status = Status::of(&rig.relay).await;
    assert!(status.at("/kafka/away_because").is_null(), "{status}");
    assert!(status.at("/checkpoint/published_lsn").is_string(), "{status}");
    assert!(
        status.at("/postgres/away_because").is_string() && status.at("/slot").is_null(),
        "{status}"
    );

    postgres.start_again().await.expect("postgres");
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    let metrics = metrics(&rig).await;
    assert!(metrics.value("relay_last_error_timestamp_seconds", Some(("kind", "postgres"))) > 1e9);
    let status = wait_for_state(&rig, "well").await;
    assert_well(&rig, &status);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn status_that_watches_looks_again_and_again_until_ctrl_c() {
    let rig = Rig::initialised("status_watch").await;
    for (name, arguments, begins_with) in [
        (
            "watch-json",
            &["status", "--json", "--watch", "0.1"][..],
            "{\"format\":",
        ),
        ("watch-text", &["status", "--watch=0.1"][..], "stopped: "),
    ] {
        let command = rig.relay.command_of(name, arguments);
        command.start().expect("a start");
        let rounds = || {
            command
                .log_text()
                .lines()
                .filter(|line| line.starts_with(begins_with))
                .count()
        };
        eventually_ok(DEADLINE, "three rounds", || async {
            anyhow::ensure!(rounds() >= 3, "{} rounds", rounds());
            Ok(())
        })
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", command.log_tail(20)));
        let process = command.process().expect("it runs");
        let ended = process.stop(Signal::INT, DEADLINE).await.expect("an end");
        assert_eq!(ended.code(), Some(0), "{}", command.log_tail(20));
    }
    let watched = rig.relay.command_of("watch-json", &[]);
    assert!(Status::all_in(&watched.log_text()).len() >= 3);
    rig.finish().await.expect("an end");
}
