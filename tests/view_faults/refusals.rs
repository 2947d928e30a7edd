//! If Postgres refuses an event, the event becomes a dead letter, or the builder waits for the server. Every other key and view goes on.

use std::time::Duration;

use rig::metrics::Metrics;
use rig::view_builder_exit;
use rig::view_rig::DEADLINE;

use super::odd::{self, good, item, wait_until_readyz_says, wait_until_value_is};

/// If the builder has not parked the event by then, it never does.
const PARKING_DEADLINE: Duration = Duration::from_secs(15);

/// Events that Postgres refuses, although it takes others. Each pair is the event's name, which causes the refusal, and the SQLSTATE that the dead letter
/// names.
const REFUSALS_OF_ONE_EVENT: &[(&str, &str)] = &[
    ("raise 0A000", "0A000"),
    ("21000", "21000"),
    ("22012", "22012"),
    ("raise 23514", "23514"),
    ("raise 38000", "38000"),
    ("raise 42501", "42501"),
    ("row security", "42501"),
    ("42883", "42883"),
    ("44000", "44000"),
    ("raise P0001", "P0001"),
    ("raise U0001", "U0001"),
    ("raise 57014", "57014"),
    ("raise 40001", "40001"),
    ("raise 53200", "53200"),
    ("raise 55P03", "55P03"),
    ("raise XX000", "XX000"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_refused_in_any_way_waits_alone() {
    let (rig, topic) = odd::rig("refused_in_any_way").await;
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    rig.produce(&topic, good(&topic, 0..20)).await.expect("offsets");
    rig.wait_until_applied(&topic).await.expect("the good ones");
    for (at, (name, sqlstate)) in REFUSALS_OF_ONE_EVENT.iter().enumerate() {
        let id = 100 + at as i64;
        let mut events = good(&topic, [1_000 + 10 * id, 1_001 + 10 * id]);
        events.push(item(&topic, id, name));
        events.extend(good(&topic, [1_002 + 10 * id, 1_003 + 10 * id]));
        rig.produce(&topic, events).await.expect("offsets");
        rig.wait_until_applied(&topic)
            .await
            .unwrap_or_else(|err| panic!("{name}: {err:#}\n{}", builder.log_tail(30)));
        let reason = rig
            .value(&format!(
                "select reason from view_dead_letters where key = convert_to('{id}', 'utf8')"
            ))
            .await;
        let reason = reason.unwrap_or_else(|err| panic!("{name}: {err:#}\n{}", builder.log_tail(30)));
        assert!(reason.contains(sqlstate), "{name}: {reason}");
    }
    let dead = REFUSALS_OF_ONE_EVENT.len();
    wait_until_value_is(
        &rig,
        &builder,
        "select count(*) from view_dead_letters",
        &dead.to_string(),
    )
    .await;
    let applied = (20 + 4 * dead).to_string();
    for view in ["item", "odd"] {
        wait_until_value_is(&rig, &builder, &format!("select count(*) from {view}"), &applied).await;
    }
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    let metrics = Metrics::of(&builder).await.expect("metrics");
    assert!(metrics.value("view_batch_failures_total", Some(("sqlstate", "U0001"))) >= 1.0);
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_takes_longer_than_postgres_allows_waits_alone() {
    let (rig, topic) = odd::rig("refused_as_too_slow").await;
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    rig.produce(&topic, good(&topic, 0..4)).await.expect("offsets");
    rig.wait_until_applied(&topic).await.expect("the good ones");
    rig.query("alter role view_builder in database refused_as_too_slow set statement_timeout = '1s'")
        .await
        .expect("a setting");
    builder.stop().await.expect("a clean end");
    builder.start().expect("a start");
    let mut events = good(&topic, [10, 11]);
    events.push(item(&topic, 12, "slow"));
    events.extend(good(&topic, [14, 15]));
    rig.produce(&topic, events).await.expect("offsets");
    wait_until_value_is(&rig, &builder, "select count(*) from item", "8").await;
    wait_until_value_is(&rig, &builder, "select count(*) from odd", "8").await;
    let dead = rig
        .value("select reason from view_dead_letters")
        .await
        .expect("a reason");
    assert!(dead.contains("57014"), "{dead}");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_waited_for_and_no_good_event_is_parked() {
    let (rig, topic) = odd::rig("refused_as_full").await;
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    rig.produce(&topic, good(&topic, 0..10)).await.expect("offsets");
    rig.wait_until_applied(&topic).await.expect("the good ones");
    rig.query("insert into odd_switch values ('53100')")
        .await
        .expect("a full disk");
    rig.produce(&topic, good(&topic, 10..30)).await.expect("offsets");
    wait_until_readyz_says(&builder, &["53100", "refuses a batch"]).await;
    let answer = reqwest::get(builder.url("/readyz")).await.expect("an answer");
    assert_eq!(answer.status(), 503, "it is not ready");
    let (_, said) = rig.command(&["status"]).await.expect("a status");
    assert!(said.contains("53100"), "{said}");
    let metrics = Metrics::of(&builder).await.expect("metrics");
    assert!(metrics.value("view_batch_failures_total", Some(("sqlstate", "53100"))) >= 5.0);
    assert!(metrics.value("view_batch_stuck", None) >= 1.0);
    rig.query("delete from odd_switch")
        .await
        .expect("a disk that is not full");
    rig.wait_until_applied(&topic).await.expect("the waiting ones");
    for sql in ["select count(*) from item", "select count(*) from odd"] {
        wait_until_value_is(&rig, &builder, sql, "30").await;
    }
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    wait_until_value_is(&rig, &builder, "select count(*) from view_dead_letters", "0").await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_whose_disk_alone_stays_full_is_paused_and_the_others_go_on() {
    let (rig, topic) = odd::rig("refused_as_full_for_long").await;
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    rig.produce(&topic, good(&topic, 0..10)).await.expect("offsets");
    rig.wait_until_applied(&topic).await.expect("the good ones");
    rig.query("insert into odd_switch values ('53100')")
        .await
        .expect("a full disk");
    rig.produce(&topic, good(&topic, 10..30)).await.expect("offsets");
    wait_until_value_is(
        &rig,
        &builder,
        "select count(*) from view_pauses where sqlstate = '53100'",
        "1",
    )
    .await;
    wait_until_value_is(&rig, &builder, "select count(*) from item", "30").await;
    wait_until_value_is(&rig, &builder, "select count(*) from odd", "10").await;
    wait_until_value_is(&rig, &builder, "select count(*) from view_dead_letters", "0").await;
    rig.query("delete from odd_switch")
        .await
        .expect("a disk that is not full");
    rig.assert_command(&["resume", "odd"], view_builder_exit::SUCCESS).await;
    wait_until_value_is(&rig, &builder, "select count(*) from odd", "30").await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_ever_at_a_state_that_no_list_has_is_caught() {
    for (name, bug, parked) in [
        ("planted_states_right", "", true),
        ("planted_states_wrong", "UnknownStatesBlock", false),
    ] {
        let (rig, topic) = odd::rig(name).await;
        let builder = rig.faulty_builder("builder").with_env("VIEW_BUILDER_BUG", bug);
        builder.start().expect("a start");
        rig.produce(&topic, good(&topic, 0..10)).await.expect("offsets");
        rig.wait_until_applied(&topic).await.expect("the good ones");
        rig.produce(&topic, [item(&topic, 12, "raise U0001"), item(&topic, 14, "good")])
            .await
            .expect("offsets");
        let waits = stack::eventually_ok(PARKING_DEADLINE, "the event waits alone", || async {
            let count = rig
                .value("select count(*) from view_dead_letters, odd where odd.id = 14")
                .await?;
            anyhow::ensure!(count == "1", "{count}");
            Ok(())
        });
        assert_eq!(waits.await.is_ok(), parked, "{bug}: {}", builder.log_tail(20));
        builder.kill_hard().await;
    }
}
