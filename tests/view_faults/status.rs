//! `view-builder status`: what the person on call sees, and what scripts read, while all is well and while something is not. And the metric that says when
//! something last went wrong.

use std::sync::Arc;

use rig::metrics::Metrics;
use rig::servers::{kafka_options, postgres_options};
use rig::view_rig::{DEADLINE, Event};
use rig::{Servers, Status, ViewRig, view_builder_exit};
use stack::{Program, eventually_ok};

use super::odd::{self, good, wait_until_value_is};

const ITEMS: &str = "select count(*) from item";
const DEAD_LETTERS: &str = "select count(*) from view_dead_letters";

/// Runs `status` again until its verdict is this one.
async fn wait_for_state(builder: &Program, state: &str) -> Status {
    let found = eventually_ok(DEADLINE, state, || async {
        let status = Status::of(builder).await;
        anyhow::ensure!(status.state() == state, "{status}");
        Ok(status)
    });
    found
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)))
}

/// When there was last an error of this kind, as the metric says; 0 for never.
async fn last_error(builder: &Program, kind: &str) -> f64 {
    let metrics = Metrics::of(builder).await.unwrap_or_else(|err| panic!("{err:#}"));
    metrics.value("view_last_error_timestamp_seconds", Some(("kind", kind)))
}

/// Produces ten items and waits until a builder has applied them.
async fn apply_ten_items(rig: &ViewRig, topic: &str, builder: &Program) {
    builder.start().expect("a start");
    rig.produce(topic, good(topic, 0..10)).await.expect("offsets");
    wait_until_value_is(rig, builder, ITEMS, "10").await;
    builder.wait_ready(DEADLINE).await.expect("it is ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_what_waits_for_a_person_and_what_to_type() {
    let (rig, topic) = odd::rig("status_told").await;
    let builder = rig.builder("builder");
    apply_ten_items(&rig, &topic, &builder).await;
    let status = wait_for_state(&builder, "well").await;
    assert_eq!(
        (status.exit_code(), status.at("/problems")),
        (0, serde_json::json!([])),
        "{status}"
    );
    assert_eq!(status.at("/group/members"), 1, "{status}");
    assert_eq!(status.at("/total/lag_events"), 0, "{status}");
    assert_eq!(status.at("/partitions/0/state"), "read");
    assert_eq!(status.at("/builder/is_ready"), true, "{status}");
    assert_eq!(
        (status.at("/views/0/view"), status.at("/views/1/view")),
        ("item".into(), "odd".into())
    );
    let said = rig.assert_command(&["status"], view_builder_exit::SUCCESS).await;
    assert!(
        said.contains("well: the views have every event") && said.contains("lag in all: 0"),
        "{said}"
    );

    rig.assert_command(&["pause", "odd"], view_builder_exit::SUCCESS).await;
    let status = wait_for_state(&builder, "paused").await;
    assert_eq!(status.exit_code(), view_builder_exit::VIEW_PAUSED, "{status}");
    assert_eq!(
        status.commands(),
        ["view-builder resume odd", "view-builder rebuild odd"],
        "{status}"
    );
    assert!(
        status.at("/views/1/pause/since").is_string() && status.at("/views/0/pause").is_null(),
        "{status}"
    );
    let commands = status.commands();
    let resume: Vec<&str> = commands[0].split(' ').skip(1).collect();
    rig.assert_command(&resume, view_builder_exit::SUCCESS).await;

    assert!(last_error(&builder, "event").await < 0.5);
    let garbage = Event {
        partition: 0,
        key: Some("10".to_owned()),
        value: Some("no event".to_owned()),
    };
    rig.produce(&topic, [garbage]).await.expect("an offset");
    wait_until_value_is(&rig, &builder, DEAD_LETTERS, "1").await;
    let status = wait_for_state(&builder, "behind").await;
    assert_eq!(status.exit_code(), view_builder_exit::DEAD_LETTERS, "{status}");
    assert_eq!(status.commands(), ["view-builder dead-letters list"], "{status}");
    assert_eq!(status.at("/total/dead_letters"), 1);
    assert!(last_error(&builder, "event").await > 1e9);
    // `/readyz` has the same sentence.
    let problem = status.problems().into_iter().next().unwrap_or_default();
    let told = odd::wait_until_readyz_says(&builder, &[&problem]).await;
    assert!(told.contains("dead-letters"), "{told}");
    let letter = rig.value("select id from view_dead_letters").await.expect("an id");
    rig.assert_command(&["dead-letters", "discard", &letter], view_builder_exit::SUCCESS)
        .await;
    wait_for_state(&builder, "well").await;

    builder.stop().await.expect("a clean end");
    let status = wait_for_state(&builder, "stopped").await;
    assert_eq!(status.exit_code(), view_builder_exit::BEHIND_OR_NO_BUILDER, "{status}");
    assert_eq!(status.commands(), ["view-builder run"], "{status}");
    rig.produce(&topic, good(&topic, 10..14)).await.expect("offsets");
    let status = Status::of(&builder).await;
    assert_eq!(status.at("/total/lag_events"), 4, "{status}");
    let seconds = status.at("/total/lag_seconds").as_f64();
    assert!(seconds.is_some_and(|seconds| seconds >= 0.0), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_what_is_known_while_a_server_is_away() {
    let servers = Servers::start(postgres_options(), kafka_options()).await;
    let rig = ViewRig::on(Arc::new(servers.expect("servers")), "status_away").await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, odd::PARTITIONS, &[]).await.expect("a topic");
    odd::write_views(&rig, &topic);
    let builder = rig.builder("builder");
    let status = Status::of(&builder).await;
    assert_eq!(
        (status.state(), status.commands()),
        ("stopped", vec!["view-builder run".to_owned()]),
        "{status}"
    );
    apply_ten_items(&rig, &topic, &builder).await;
    let (postgres, kafka) = (&rig.servers.postgres, &rig.servers.kafka);

    kafka.kill_hard().await;
    let status = Status::of(&builder).await;
    assert_eq!(
        (status.state(), status.exit_code()),
        ("away", view_builder_exit::SERVER_AWAY),
        "{status}"
    );
    assert!(
        status.at("/kafka/away_because").is_string() && status.at("/postgres/away_because").is_null(),
        "{status}"
    );
    assert_eq!(
        (status.at("/total/partitions"), status.at("/total/lag_events")),
        (2.into(), ().into()),
        "{status}"
    );
    eventually_ok(DEADLINE, "the metric tells of kafka", || async {
        anyhow::ensure!(last_error(&builder, "kafka").await > 1e9, "not yet");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));

    postgres.kill_hard().await;
    let status = Status::of(&builder).await;
    assert_eq!(
        (status.state(), status.problems().len() >= 2),
        ("away", true),
        "{status}"
    );

    kafka.start_again().await.expect("kafka");
    let status = Status::of(&builder).await;
    assert!(
        status.at("/postgres/away_because").is_string() && status.at("/kafka/away_because").is_null(),
        "{status}"
    );

    postgres.start_again().await.expect("postgres");
    rig.produce(&topic, good(&topic, 10..20)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, ITEMS, "20").await;
    assert!(last_error(&builder, "postgres").await > 1e9);
    wait_for_state(&builder, "well").await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_was_killed_is_told_until_somebody_goes_on_with_it() {
    let (rig, topic) = odd::rig("status_rebuild").await;
    let builder = rig.builder("builder");
    apply_ten_items(&rig, &topic, &builder).await;
    // What a rebuild has written down when it is killed at its first event.
    rig.query("insert into view_rebuilds (view, generation, table_sql, apply_sql) select view, 'item_rebuild', table_sql, apply_sql from view_definitions where view = 'item'")
        .await
        .expect("a rebuild that nobody goes on with");
    let status = wait_for_state(&builder, "well").await;
    assert_eq!(status.at("/views/0/rebuild/is_running"), false, "{status}");
    assert_eq!(
        status.commands(),
        ["view-builder rebuild item", "view-builder rebuild item --abandon"],
        "{status}"
    );
    let holder = rig.client().await.expect("a session");
    holder
        .batch_execute("select pg_advisory_lock(hashtext('view-builder rebuild'), hashtext('item'))")
        .await
        .expect("the lock of a rebuild that runs");
    let status = Status::of(&builder).await;
    assert_eq!(
        (status.at("/views/0/rebuild/is_running"), status.commands().len()),
        (true.into(), 0),
        "{status}"
    );
    builder.stop().await.expect("a clean end");
}
