//! Some events cannot be applied. None is lost, none is applied out of order, and all other events are applied as usual.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rig::view_builder_exit;
use stack::pipeline::VIEWS_DATABASE;
use stack::random::Random;
use stack::{Pipeline, eventually_ok};

const DEADLINE: Duration = Duration::from_secs(60);
const KEYS: i64 = 1_000;
const VERSIONS: i64 = 10;
const NEW_KEY_INTERVAL: Duration = Duration::from_micros(500);

/// One record that the test produces.
struct Sent {
    key: i64,
    version: i64,
    is_poison: bool,
    value: Vec<u8>,
}

fn event(key: i64, version: i64) -> serde_json::Value {
    let event_type = if version == 1 { "USER_CREATED" } else { "USER_UPDATED" };
    serde_json::json!({
        "eventType": event_type, "userId": key, "version": version, "timestamp": "2026-01-01T00:00:00",
        "user": {"id": key, "name": format!("v{version}"), "email": format!("e{key}@x"), "department": "d", "status": "ACTIVE",
            "createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00"},
    })
}

/// An event that cannot be applied. Each `kind` has another mistake.
fn poison(key: i64, version: i64, kind: u64) -> Vec<u8> {
    let mut event = event(key, version);
    match kind {
        0 => return b"{\"eventType\":".to_vec(),
        1 => event["eventType"] = "USER_PROMOTED".into(),
        2 => event["version"] = serde_json::Value::Null,
        3 => event["user"]["name"] = "x".repeat(256).into(),
        4 => event["user"]["email"] = "a\u{0}b".into(),
        5 => event["user"]["createdAt"] = "yesterday".into(),
        6 => event["user"] = serde_json::Value::Null,
        _ => {
            let mut value = event.to_string().into_bytes();
            value.push(0xff);
            return value;
        }
    }
    event.to_string().into_bytes()
}

/// Ten versions of a thousand users. The users take turns, and one in a hundred events has a mistake.
fn workload() -> Vec<Sent> {
    let mut random = Random::seeded(20_261_125);
    let versions = (1..=VERSIONS).flat_map(|version| (1..=KEYS).map(move |key| (key, version)));
    let sent = versions.map(|(key, version)| {
        let is_poison = random.below(100) == 0;
        let value = if is_poison {
            poison(key, version, random.below(8))
        } else {
            event(key, version).to_string().into_bytes()
        };
        Sent {
            key,
            version,
            is_poison,
            value,
        }
    });
    sent.collect()
}

fn producer(servers: &str) -> ThreadedProducer<DefaultProducerContext> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", servers)
        .set("partitioner", "murmur2_random");
    config.create().expect("a producer")
}

fn send(producer: &ThreadedProducer<DefaultProducerContext>, sent: &Sent) {
    let (key, number) = (sent.key.to_string(), sent.version.to_string());
    let headers = OwnedHeaders::new().insert(Header {
        key: "number",
        value: Some(&number),
    });
    let record = BaseRecord::to("user-events")
        .key(&key)
        .payload(&sent.value)
        .headers(headers);
    if let Err((err, _)) = producer.send(record) {
        panic!("not sent: {err}");
    }
}

fn produce(pipeline: &Pipeline, records: &[Sent]) {
    let producer = producer(pipeline.bootstrap_servers());
    for sent in records {
        send(&producer, sent);
    }
    producer.flush(DEADLINE).expect("all is sent");
}

async fn rows(pipeline: &Pipeline, sql: &str) -> Vec<Vec<Option<String>>> {
    let postgres = pipeline.postgres().expect("postgres");
    postgres.query(VIEWS_DATABASE, sql).await.expect("an answer")
}

/// The version of each user in the view.
async fn versions(pipeline: &Pipeline) -> BTreeMap<i64, i64> {
    let rows = rows(pipeline, "select user_id, version from user_view").await;
    let number = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok()).expect("a number");
    rows.iter().map(|row| (number(&row[0]), number(&row[1]))).collect()
}

async fn letters_of(pipeline: &Pipeline, key: i64) -> Vec<(i64, bool)> {
    let found = rows(
        pipeline,
        &format!(
            "select convert_from(decode(headers -> 0 ->> 1, 'hex'), 'UTF8'), reason is not null
             from view_dead_letters where key = '{key}' and discarded_at is null order by record_offset"
        ),
    )
    .await;
    found
        .iter()
        .map(|row| {
            let version = row[0].as_deref().and_then(|text| text.parse().ok()).expect("a version");
            (version, row[1].as_deref() == Some("t"))
        })
        .collect()
}

async fn letters(pipeline: &Pipeline, arguments: &[&str]) -> i32 {
    let all: Vec<&str> = ["dead-letters"].iter().chain(arguments).copied().collect();
    let command = pipeline.view_builder.command_of("dead-letters", &all);
    let status = command.run_for_status(&all).await.expect("the command runs");
    status.code().expect("it ends by itself")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_event_in_a_hundred_is_dead_and_nothing_is_lost_or_out_of_order() {
    let pipeline = super::shared::builder().start().await.expect("a pipeline");
    let records = workload();
    produce(&pipeline, &records);
    let total = records.len();
    eventually_ok(DEADLINE, "all records are taken", || async {
        let positions = rows(
            &pipeline,
            "select sum(next_offset) from view_positions where topic = 'user-events'",
        )
        .await;
        anyhow::ensure!(positions[0][0].as_deref() == Some(&total.to_string()), "{positions:?}");
        Ok(())
    })
    .await
    .expect("the builder takes all");

    // The view must have the events of each key up to the first dead one. This one and all later ones of the key must be letters.
    let mut wanted = BTreeMap::new();
    let mut parked: BTreeMap<i64, Vec<(i64, bool)>> = BTreeMap::new();
    for sent in &records {
        let waits = parked.entry(sent.key).or_default();
        if sent.is_poison || !waits.is_empty() {
            // Only the first letter is known to be dead. The letters behind it have not been tried.
            waits.push((sent.version, waits.is_empty()));
        } else {
            wanted.insert(sent.key, sent.version);
        }
    }
    parked.retain(|_, waits| !waits.is_empty());
    assert!(parked.len() > 50, "{} keys have a dead letter", parked.len());
    assert_eq!(versions(&pipeline).await, wanted);
    for (key, waits) in &parked {
        assert_eq!(&letters_of(&pipeline, *key).await, waits, "key {key}");
    }
    let readiness = reqwest::get(pipeline.view_builder.url("/readyz"))
        .await
        .expect("an answer");
    assert_eq!(readiness.status(), 200, "a warning, not a failure");
    eventually_ok(DEADLINE, "readiness warns", || async {
        let text = reqwest::get(pipeline.view_builder.url("/readyz")).await?.text().await?;
        let count: usize = parked.values().map(Vec::len).sum();
        anyhow::ensure!(text.contains(&format!("{count} events wait")), "{text}");
        Ok(())
    })
    .await
    .expect("the warning");

    assert_eq!(letters(&pipeline, &["list"]).await, view_builder_exit::DEAD_LETTERS);
    assert_eq!(
        letters(&pipeline, &["retry", "--all"]).await,
        view_builder_exit::DEAD_LETTERS,
        "they are as dead as before"
    );
    assert_eq!(versions(&pipeline).await, wanted, "a retry in vain changes nothing");

    // A parked letter cannot be applied before the letters in front of it.
    let (key, waits) = parked
        .iter()
        .find(|(_, waits)| waits.len() > 1)
        .expect("a parked event");
    let ids = rows(
        &pipeline,
        &format!("select id from view_dead_letters where key = '{key}' order by record_offset"),
    )
    .await;
    let second = ids[1][0].clone().expect("an id");
    assert_eq!(letters(&pipeline, &["retry", &second]).await, 2);
    assert_eq!(letters_of(&pipeline, *key).await.len(), waits.len());

    // When the dead letters are given up, the parked ones are applied in their order. Meanwhile new events come, of the same keys and of new ones. If
    // an event of a new key were left out, it would never come again.
    let later = |key, version| Sent {
        key,
        version,
        is_poison: false,
        value: event(key, version).to_string().into_bytes(),
    };
    let same: Vec<Sent> = (1..=KEYS).map(|key| later(key, VERSIONS + 1)).collect();
    produce(&pipeline, &same);
    let servers = pipeline.bootstrap_servers().to_owned();
    let is_over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_over);
    let steady = tokio::task::spawn_blocking(move || {
        let producer = producer(&servers);
        let mut last: BTreeMap<i64, i64> = (1..=KEYS).map(|key| (key, VERSIONS + 1)).collect();
        // One event of a new key, and one of a key whose letters may have been given up since the builder learnt of them, take turns.
        for turn in 1.. {
            if told.load(Ordering::Relaxed) {
                break;
            }
            for key in [KEYS + turn, (turn - 1) % KEYS + 1] {
                let version = last.entry(key).or_default();
                *version += 1;
                send(&producer, &later(key, *version));
            }
            std::thread::sleep(NEW_KEY_INTERVAL);
        }
        producer.flush(DEADLINE).expect("all is sent");
        last
    });
    loop {
        let dead = rows(
            &pipeline,
            "select distinct on (partition, key) id from view_dead_letters where discarded_at is null
             order by partition, key, record_offset",
        )
        .await;
        if dead.is_empty() {
            break;
        }
        let ids: Vec<String> = dead.into_iter().filter_map(|mut row| row[0].take()).collect();
        let arguments: Vec<&str> = ["discard"].into_iter().chain(ids.iter().map(String::as_str)).collect();
        letters(&pipeline, &arguments).await;
    }
    is_over.store(true, Ordering::Relaxed);
    let all = steady.await.expect("the new keys are sent");
    eventually_ok(DEADLINE, "every user is at the last version", || async {
        let found = versions(&pipeline).await;
        let behind: Vec<_> = all
            .iter()
            .filter(|(key, version)| found.get(key) != Some(version))
            .collect();
        let some: Vec<_> = behind
            .iter()
            .take(5)
            .map(|(key, version)| (*key, *version, found.get(key)))
            .collect();
        anyhow::ensure!(
            behind.is_empty(),
            "{} of {} keys lack events, like {some:?}",
            behind.len(),
            all.len()
        );
        Ok(())
    })
    .await
    .expect("all arrive");
    assert_eq!(letters(&pipeline, &["list"]).await, 0);
    let given_up = pipeline
        .view_builder
        .log_text()
        .matches("reading again from the positions")
        .count();
    assert!(
        given_up > 0,
        "no batch met a key that waited no longer, so the same keys have shown nothing"
    );
    pipeline.stop().await.expect("a clean end");
}
