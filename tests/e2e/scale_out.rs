//! Several builders share the partitions, and Kafka's own tools show how far each of them is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rig::Metrics;
use rig::rest::{Rest, id, user};
use stack::pipeline::VIEWS_DATABASE;
use stack::{Pipeline, Program, eventually_ok, port, postgres};

use super::{rows, shared};

const DEADLINE: Duration = Duration::from_secs(60);
const PARTITIONS: usize = 16;

/// A line of `kafka-consumer-groups --describe`.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    current: i64,
    end: i64,
    lag: i64,
    consumer: String,
}

/// What Kafka's tool says about each partition of the group.
async fn describe(pipeline: &Pipeline) -> anyhow::Result<BTreeMap<(String, String), Line>> {
    let told = pipeline
        .kafka()?
        .group_tool(&["--describe", "--group", "view-builder"])
        .await?;
    let mut lines = told.lines().filter(|line| !line.trim().is_empty());
    let heading: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let wanted = [
        "GROUP",
        "TOPIC",
        "PARTITION",
        "CURRENT-OFFSET",
        "LOG-END-OFFSET",
        "LAG",
        "CONSUMER-ID",
    ];
    anyhow::ensure!(heading.starts_with(&wanted), "{told}");
    let mut partitions = BTreeMap::new();
    for line in lines {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let [_, topic, partition, current, end, lag, consumer, ..] = cells[..] else {
            anyhow::bail!("{line}");
        };
        let line = Line {
            current: current.parse()?,
            end: end.parse()?,
            lag: lag.parse()?,
            consumer: consumer.to_owned(),
        };
        anyhow::ensure!(line.lag == line.end - line.current, "{line:?}");
        partitions.insert((topic.to_owned(), partition.to_owned()), line);
    }
    Ok(partitions)
}

/// Waits until the tool shows every partition at its end, half of them with each of two members.
async fn wait_until_caught_up(pipeline: &Pipeline) -> BTreeMap<(String, String), Line> {
    eventually_ok(DEADLINE, "the tool shows no lag", || async {
        let partitions = describe(pipeline).await?;
        anyhow::ensure!(partitions.len() == PARTITIONS, "{partitions:?}");
        anyhow::ensure!(partitions.values().all(|line| line.lag == 0), "{partitions:?}");
        let consumers: BTreeSet<&str> = partitions.values().map(|line| &*line.consumer).collect();
        anyhow::ensure!(consumers.len() == 2 && !consumers.contains("-"), "{consumers:?}");
        Ok(partitions)
    })
    .await
    .expect("both have caught up")
}

/// The output of `view-builder status`.
async fn status(pipeline: &Pipeline) -> String {
    let command = pipeline
        .view_builder
        .command_of("status", &["status"])
        .env("LOG", "error");
    let ended = command.run_for_status(&["status"]).await.expect("the command runs");
    assert!(ended.success(), "{}", command.log_text());
    let text = command.log_text();
    std::fs::remove_file(command.log()).expect("its answer");
    text
}

/// The only lag that the builders export: topic, partition and value. None: nothing lags.
async fn exported_lag(builders: [&Program; 2], name: &str) -> anyhow::Result<Option<(String, String, f64)>> {
    let mut lags = Vec::new();
    for builder in builders {
        let metrics = Metrics::of(builder).await?;
        for sample in metrics.series(name).filter(|sample| sample.value > 0.0) {
            lags.push((
                sample.labels["topic"].clone(),
                sample.labels["partition"].clone(),
                sample.value,
            ));
        }
    }
    anyhow::ensure!(lags.len() <= 1, "{lags:?}");
    Ok(lags.pop())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafkas_group_tool_and_the_status_command_show_the_lag_of_two_builders() {
    let pipeline = shared::builder().start().await.expect("a pipeline");
    let port = port::free().expect("a port");
    let second = pipeline
        .view_builder
        .another("view-builder-2", port)
        .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}"));
    second.start().expect("a second builder");
    second.wait_ready(DEADLINE).await.expect("a second builder");
    let builders = [&pipeline.view_builder, &second];
    let rest = Rest::of(&pipeline);
    for number in 0..60 {
        let created = rest
            .create_user(&user(&format!("나눔 {number}"), "개발팀", "ACTIVE"))
            .await;
        let author = id(&created.expect("a user"));
        rest.create_post("글", author).await.expect("a post");
    }
    rows::assert_view_equals_users(&pipeline, DEADLINE).await;
    let before = wait_until_caught_up(&pipeline).await;
    let ends: i64 = before.values().map(|line| line.end).sum();
    assert!(ends >= 120, "{before:?}");
    let shares = before
        .values()
        .fold(BTreeMap::new(), |mut shares: BTreeMap<&str, usize>, line| {
            *shares.entry(&line.consumer).or_default() += 1;
            shares
        });
    assert!(shares.values().all(|share| *share == PARTITIONS / 2), "{shares:?}");
    let said = status(&pipeline).await;
    assert!(said.contains("lag in all: 0, oldest: 0.0 s"), "{said}");

    // One builder cannot write. What it has taken is behind, and nothing of the other builder is.
    let url = pipeline.database_url(VIEWS_DATABASE).expect("a URL");
    let holder = postgres::connect(&url).await.expect("a session");
    holder
        .batch_execute("begin; lock table user_view in share mode")
        .await
        .expect("the lock");
    rest.create_user(&user("막힘", "개발팀", "ACTIVE"))
        .await
        .expect("a user");
    let (topic, partition, events) = eventually_ok(DEADLINE, "a builder lags by more than a second", || async {
        let seconds = exported_lag(builders, "view_partition_lag_seconds").await?;
        anyhow::ensure!(seconds.is_some_and(|(_, _, seconds)| seconds > 1.0), "no lag yet");
        let lag = exported_lag(builders, "view_partition_lag_events").await?;
        lag.ok_or_else(|| anyhow::anyhow!("no lag in events"))
    })
    .await
    .expect("the builder that is held up");
    assert_eq!(topic, "user-events");
    let held = describe(&pipeline).await.expect("the tool's answer");
    let place = (topic, partition);
    for (other, line) in &held {
        if *other == place {
            // The builder counts from its position in Postgres, and that is before the markers of the applied transactions.
            assert!(line.lag > 0 && line.lag as f64 <= events, "{line:?}, exported {events}");
            assert_eq!(
                line.current, before[other].current,
                "it goes on only with the view, and never back"
            );
        } else {
            assert_eq!(line, &before[other], "{other:?}");
        }
    }
    let said = status(&pipeline).await;
    let oldest = said.split_once("oldest: ").and_then(|(_, rest)| rest.split_once(" s"));
    let oldest: f64 = oldest.and_then(|(seconds, _)| seconds.parse().ok()).expect("an age");
    assert!((1.0..60.0).contains(&oldest), "{said}");

    holder.batch_execute("commit").await.expect("the end of the lock");
    let after = wait_until_caught_up(&pipeline).await;
    assert!(after[&place].end > before[&place].end, "{after:?}");
    rows::assert_view_equals_users(&pipeline, DEADLINE).await;
    second.stop().await.expect("a clean end");
    pipeline.stop().await.expect("a clean end");
}
