//! Kafka hangs or is gone. The relay keeps answering Postgres, keeps within its memory, says that Kafka is away, and goes on by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::{Isolation, Rig, Servers, memory, servers};
use rustix::process::Signal;
use stack::KafkaOptions;
use stack::program::Readiness;

/// How long Kafka is away. This is several times as long as the server waits for a silent walsender.
fn outage() -> Duration {
    let seconds = std::env::var("RELAY_OUTAGE_SECONDS")
        .map_or(20, |text| text.parse().expect("RELAY_OUTAGE_SECONDS is a number"));
    Duration::from_secs(seconds)
}

const MEMORY_MB_MAX: f64 = 96.0;
/// By then the relay must say that Kafka is away.
const SAYS_SO_WITHIN: Duration = Duration::from_secs(10);

/// A rig on servers of its own with a `wal_sender_timeout` of 4 s. Its relay has published something.
async fn running(name: &str) -> Rig {
    let servers = Servers::start(servers::postgres_options(), KafkaOptions::default()).await;
    let mut rig = Rig::on(Arc::new(servers.expect("the servers")), name).await;
    rig.init(&[]).await;
    let url = rig.servers.postgres.url("postgres", name);
    rig.relay = rig
        .relay
        .with_env("DATABASE_URL", &format!("{url}?options=-c%20wal_sender_timeout%3D4s"));
    rig.start().await;
    rig.insert_each(100).await;
    rig.assert_exactly_once().await;
    rig
}

/// Kafka is away now. Writes a backlog of over 100 MB during the outage, and asserts that the relay survives it.
async fn assert_bears_outage(rig: &Rig) {
    let away = Instant::now();
    let topic = rig.topic();
    // The backlog comes in pieces, so that rows come late in the outage, too.
    for _ in 0..12 {
        rig.sql(&format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             select '{topic}', 'k' || n % 7, 'Changed', jsonb_build_object('n', n, 'pad', repeat('x', 10000))
             from (select nextval('numbers') as n from generate_series(1, 1000)) as numbered"
        ))
        .await;
    }
    let client = reqwest::Client::new();
    stack::eventually_ok(
        SAYS_SO_WITHIN.saturating_sub(away.elapsed()),
        "readiness says so",
        || async {
            match rig.relay.readiness(&client).await? {
                Readiness::NotReady(reasons) if reasons.contains("kafka") => Ok(()),
                other => anyhow::bail!("{other:?}"),
            }
        },
    )
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    let status = format!(
        "select active from pg_replication_slots where slot_name = '{}'",
        rig.name()
    );
    let mut without_slot_since = None;
    while away.elapsed() < outage() {
        // A new session takes the slot over within a moment. The slot must not be without a session for longer.
        if rig.value(&status).await == "t" {
            without_slot_since = None;
        } else {
            let since: &mut Instant = without_slot_since.get_or_insert_with(Instant::now);
            assert!(
                since.elapsed() < Duration::from_secs(3),
                "the relay lost its slot\n{}",
                rig.relay.log_tail(20)
            );
        }
        assert!(
            !matches!(rig.relay.readiness(&client).await, Ok(Readiness::Ready)),
            "ready without kafka"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let log = std::fs::read_to_string(rig.servers.postgres.log()).expect("the server's log");
    assert!(
        !log.contains("terminating walsender process due to replication timeout"),
        "{log}"
    );
    assert!(
        rig.relay.process().is_some_and(|process| process.is_running()),
        "{}",
        rig.relay.log_tail(20)
    );
}

/// Asserts that the relay goes on. Returns the most memory that it has used, in MB.
async fn assert_goes_on(rig: &Rig) -> f64 {
    let ready = rig.relay.wait_ready(Duration::from_secs(60)).await;
    ready.unwrap_or_else(|err| panic!("{err:#}"));
    rig.insert_each(100).await;
    rig.assert_exactly_once().await;
    let peak = memory::peak_mb(&rig.relay);
    assert!(peak <= MEMORY_MB_MAX, "{peak:.1} MB");
    rig.finish().await.expect("a clean end");
    peak
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_hangs_costs_neither_the_slot_nor_memory_and_the_relay_goes_on_by_itself() {
    let rig = running("kafka_hangs").await;
    let broker = rig.servers.kafka.process().expect("a broker");
    broker.signal(Signal::STOP);
    assert_bears_outage(&rig).await;
    broker.signal(Signal::CONT);
    let peak = assert_goes_on(&rig).await;
    eprintln!("{} s away: {peak:.1} MB at most", outage().as_secs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_gone_costs_neither_the_slot_nor_memory_and_the_relay_goes_on_by_itself() {
    let rig = running("kafka_gone").await;
    rig.servers.kafka.kill_hard().await;
    assert_bears_outage(&rig).await;
    rig.servers.kafka.start_again().await.expect("a broker");
    let peak = assert_goes_on(&rig).await;
    eprintln!("{} s away: {peak:.1} MB at most", outage().as_secs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_every_few_seconds_makes_progress_each_time() {
    let rig = Rig::initialised("killed_often").await;
    let (topic, stop) = (rig.topic(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let (client, told) = (rig.connect().await, Arc::clone(&stop));
    let insert = rig.insert_statement(5, 7);
    let load = tokio::spawn(async move {
        while !told.load(std::sync::atomic::Ordering::Relaxed) {
            client.batch_execute(&insert).await.expect("an insert");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut published = 0;
    for kill in 1..=4 {
        rig.relay.start().expect("a start");
        tokio::time::sleep(Duration::from_secs(5)).await;
        rig.relay.kill_hard().await;
        let now = rig.records(Isolation::Committed).await.expect("the topic").len();
        assert!(
            now > published,
            "kill {kill}: {topic} stays at {now} records\n{}",
            rig.relay.log_tail(20)
        );
        published = now;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    load.await.expect("the load");
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}
