//! `/metrics` tells latency and lag: each event counts once, from its commit, also while the views cannot be written.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rig::Metrics;
use rig::rest::{Rest, id, user};
use stack::pipeline::VIEWS_DATABASE;
use stack::{Pipeline, eventually_ok, postgres};

use super::metrics_page::Page;
use super::{replay, shared};

const DEADLINE: Duration = Duration::from_secs(60);
const TOPICS: [&str; 2] = ["user-events", "post-events"];
const PARTITIONS: usize = 8;
const COMMIT_TO_READ: &str = "view_commit_to_read_seconds";
const READ_TO_VIEW: &str = "view_read_to_view_seconds";
const COMMIT_TO_VIEW: &str = "view_commit_to_view_seconds";
const LAG_EVENTS: &str = "view_partition_lag_events";
const LAG_SECONDS: &str = "view_partition_lag_seconds";
/// The views cannot be written for at least so long.
const HELD: Duration = Duration::from_secs(3);
/// Sums are made of many small numbers, so they are not exact.
const ROUNDING: f64 = 1e-6;

async fn scrape(pipeline: &Pipeline) -> Metrics {
    Metrics::of(&pipeline.view_builder).await.expect("metrics")
}

fn of_topic(metrics: &Metrics, name: &str, topic: &str) -> f64 {
    metrics.value(name, Some(("topic", topic)))
}

/// The count of a histogram, as a whole number.
fn count(metrics: &Metrics, name: &str, topic: &str) -> u64 {
    of_topic(metrics, name, topic) as u64
}

/// Waits until so many events of each topic were applied. Returns the metrics.
async fn wait_for_applied(pipeline: &Pipeline, wanted: [u64; 2]) -> Metrics {
    eventually_ok(DEADLINE, "all events are applied", || async {
        let metrics = Metrics::of(&pipeline.view_builder).await?;
        let applied = TOPICS.map(|topic| count(&metrics, "view_events_applied_total", topic));
        anyhow::ensure!(applied == wanted, "{applied:?} of {wanted:?} are applied");
        Ok(())
    })
    .await
    .expect("the builder applies them");
    scrape(pipeline).await
}

/// Asserts that each histogram has so many events of each topic, and that the two stages add up to the whole.
fn assert_each_event_once(metrics: &Metrics, wanted: [u64; 2]) {
    for (topic, wanted) in TOPICS.into_iter().zip(wanted) {
        for name in [COMMIT_TO_READ, READ_TO_VIEW, COMMIT_TO_VIEW] {
            assert_eq!(
                count(metrics, &format!("{name}_count"), topic),
                wanted,
                "{name} of {topic}"
            );
        }
        let sum = |name: &str| of_topic(metrics, &format!("{name}_sum"), topic);
        let stages = sum(COMMIT_TO_READ) + sum(READ_TO_VIEW);
        let difference = (sum(COMMIT_TO_VIEW) - stages).abs();
        assert!(
            difference <= ROUNDING * wanted as f64,
            "{topic}: {} is not {stages}",
            sum(COMMIT_TO_VIEW)
        );
    }
}

/// The lag of every partition that the builder has, by one of the two gauges.
fn lags(metrics: &Metrics, name: &str) -> Vec<f64> {
    let places: BTreeSet<(&str, &str)> = metrics
        .series(name)
        .map(|sample| (&*sample.labels["topic"], &*sample.labels["partition"]))
        .collect();
    let all: BTreeSet<(&str, String)> = TOPICS
        .iter()
        .flat_map(|topic| (0..PARTITIONS).map(move |partition| (*topic, partition.to_string())))
        .collect();
    assert!(
        all.iter().map(|(topic, partition)| (*topic, &**partition)).eq(places),
        "{name} has other partitions than those that are held"
    );
    metrics.series(name).map(|sample| sample.value).collect()
}

async fn wait_for_no_lag(pipeline: &Pipeline) {
    eventually_ok(DEADLINE, "no partition lags", || async {
        let metrics = Metrics::of(&pipeline.view_builder).await?;
        for name in [LAG_EVENTS, LAG_SECONDS] {
            anyhow::ensure!(
                metrics.series(name).count() == TOPICS.len() * PARTITIONS,
                "{name} is not there yet"
            );
            let lags = lags(&metrics, name);
            anyhow::ensure!(lags.iter().all(|lag| *lag == 0.0), "{name}: {lags:?}");
        }
        Ok(())
    })
    .await
    .expect("the lag goes");
}

/// Waits until the builder is behind by more than `events` events and more than `seconds` seconds.
async fn wait_for_lag(pipeline: &Pipeline, events: f64, seconds: f64) -> (f64, f64) {
    eventually_ok(DEADLINE, "the lag grows", || async {
        let metrics = Metrics::of(&pipeline.view_builder).await?;
        let behind: f64 = lags(&metrics, LAG_EVENTS).iter().sum();
        let age = lags(&metrics, LAG_SECONDS).into_iter().fold(0.0, f64::max);
        anyhow::ensure!(behind > events && age > seconds, "{behind} events, {age} s");
        Ok((behind, age))
    })
    .await
    .expect("the lag shows")
}

async fn create_users(rest: &Rest, users: u64) -> Vec<i64> {
    let mut ids = Vec::new();
    for number in 0..users {
        let created = rest
            .create_user(&user(&format!("계량 {number}"), "개발팀", "ACTIVE"))
            .await;
        ids.push(id(&created.expect("a user")));
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_counts_each_event_once_from_its_commit_and_the_lag_is_the_truth() {
    let pipeline = shared::builder().start().await.expect("a pipeline");
    let rest = Rest::of(&pipeline);
    let start = Instant::now();
    let ids = create_users(&rest, 30).await;
    for id in &ids[..10] {
        let changed = user("바뀜", "기획팀", "ACTIVE");
        rest.update_user(*id, &changed).await.expect("a change");
    }
    for number in 0..20 {
        rest.create_post(&format!("글 {number}"), ids[0]).await.expect("a post");
    }
    let metrics = wait_for_applied(&pipeline, [40, 20]).await;
    assert_each_event_once(&metrics, [40, 20]);
    for name in [COMMIT_TO_READ, READ_TO_VIEW, COMMIT_TO_VIEW] {
        assert_eq!(
            metrics.series(&format!("{name}_count")).count(),
            TOPICS.len(),
            "{name} by topic only"
        );
        let sum: f64 = metrics.series(&format!("{name}_sum")).map(|sample| sample.value).sum();
        assert!(
            sum > 0.0 && sum < 60.0 * start.elapsed().as_secs_f64(),
            "{name}: {sum} s of 60 events"
        );
    }
    wait_for_no_lag(&pipeline).await;

    // The views cannot be written now. What is committed meanwhile shows as a lag in events and in seconds, and counts once it is applied.
    let url = pipeline.database_url(VIEWS_DATABASE).expect("a URL");
    let holder = postgres::connect(&url).await.expect("a session");
    holder
        .batch_execute("begin; lock table user_view in share mode")
        .await
        .expect("the lock");
    let held = Instant::now();
    create_users(&rest, 5).await;
    let (status, _) = rest
        .ask_posts(&format!("/users/{}?minVersion=99&wait=50", ids[0]))
        .await
        .expect("an answer");
    assert_eq!(status, 503, "the view is behind");
    let (events, seconds) = wait_for_lag(&pipeline, 4.0, 0.0).await;
    create_users(&rest, 5).await;
    let (_, later) = wait_for_lag(&pipeline, events + 4.0, seconds.max(HELD.as_secs_f64())).await;
    assert!(
        later <= held.elapsed().as_secs_f64(),
        "{later} s, older than the oldest"
    );
    assert_each_event_once(&scrape(&pipeline).await, [40, 20]);
    holder.batch_execute("commit").await.expect("the end of the lock");
    let before = metrics;
    let metrics = wait_for_applied(&pipeline, [50, 20]).await;
    assert_each_event_once(&metrics, [50, 20]);
    let grown = |name: &str| {
        let sum = format!("{name}_sum");
        of_topic(&metrics, &sum, "user-events") - of_topic(&before, &sum, "user-events")
    };
    assert!(
        grown(COMMIT_TO_VIEW) >= later && grown(READ_TO_VIEW) > grown(COMMIT_TO_READ),
        "the wait was between Kafka and the view: {} + {} = {}",
        grown(COMMIT_TO_READ),
        grown(READ_TO_VIEW),
        grown(COMMIT_TO_VIEW)
    );
    wait_for_no_lag(&pipeline).await;

    // Events of a replay are applied and have no latency. Later events have one again.
    let replay = ["-t", "user-events", "-r", "view-builder", "-y"];
    let (code, said) = replay::run_script(&pipeline, &replay, "").await;
    assert_eq!(code, Some(0), "{said}");
    assert_each_event_once(&wait_for_applied(&pipeline, [100, 20]).await, [50, 20]);
    create_users(&rest, 1).await;
    assert_each_event_once(&wait_for_applied(&pipeline, [101, 20]).await, [51, 20]);
    wait_for_no_lag(&pipeline).await;

    // The same replay by Kafka's own tool. The new process begins to count at 0.
    pipeline.view_builder.stop().await.expect("a clean end");
    let reset = [
        "--group",
        "view-builder",
        "--all-topics",
        "--reset-offsets",
        "--to-earliest",
        "--execute",
    ];
    let kafka = pipeline.kafka().expect("kafka");
    kafka.group_tool(&reset).await.expect("the group is reset");
    pipeline.view_builder.start().expect("a start");
    assert_each_event_once(&wait_for_applied(&pipeline, [51, 20]).await, [0, 0]);
    create_users(&rest, 1).await;
    assert_each_event_once(&wait_for_applied(&pipeline, [52, 20]).await, [1, 0]);

    the_relays_have_each_event_once(&pipeline, [52, 20]).await;
    wait_for_no_lag(&pipeline).await;
    let page = Page::read();
    for program in pipeline.programs() {
        page.assert_names_all(program).await;
    }
    pipeline.stop().await.expect("a clean end");
}

async fn the_relays_have_each_event_once(pipeline: &Pipeline, wanted: [u64; 2]) {
    for (relay, wanted) in [&pipeline.users_relay, &pipeline.posts_relay].into_iter().zip(wanted) {
        let metrics = Metrics::of(relay).await.expect("metrics");
        let value = |name| metrics.value(name, None);
        assert_eq!(
            value("relay_published_records_total") as u64,
            wanted,
            "{}",
            relay.name()
        );
        assert!((value("relay_leader") - 1.0).abs() < ROUNDING, "{}", relay.name());
        let (transactions, mean) = (
            value("relay_commit_to_kafka_seconds_count"),
            value("relay_commit_to_kafka_seconds_sum") / value("relay_commit_to_kafka_seconds_count"),
        );
        assert!(
            transactions >= 1.0 && transactions <= wanted as f64 && mean > 0.0 && mean < 10.0,
            "{}: {transactions} transactions, {mean} s each",
            relay.name()
        );
    }
}
