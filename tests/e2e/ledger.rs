//! Compares what was written with what was published, row by row and record by record.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::Value;
use stack::{Consumer, Isolation, Pipeline, Record, eventually};

use super::rows::{self, Row};
use rig::workload::Answered;

/// An outbox and the topic that it is published to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outbox {
    Users,
    Posts,
}

impl Outbox {
    pub(crate) fn topic(self) -> &'static str {
        match self {
            Self::Users => "user-events",
            Self::Posts => "post-events",
        }
    }

    async fn query(self, pipeline: &Pipeline, sql: &str) -> Vec<Row> {
        match self {
            Self::Users => rows::in_users(pipeline, sql).await,
            Self::Posts => rows::in_views(pipeline, sql).await,
        }
    }
}

struct Event {
    key: String,
    kind: String,
    payload: String,
}

/// Waits until every outbox row is in its topic. Asserts that every row is there exactly once with its key, type and payload, and nothing else; and
/// that each key is in one partition, with the versions 1, 2, 3… in this order.
pub(crate) async fn assert_published(pipeline: &Pipeline, outbox: Outbox, deadline: Duration) -> Vec<Record> {
    let events = events(pipeline, outbox).await;
    let consumer = consume(pipeline, outbox);
    let what = format!(
        "{} has a record for each of {} outbox rows",
        outbox.topic(),
        events.len()
    );
    let mut seen = 0;
    eventually(deadline, &what, || {
        seen = records(&consumer).len();
        std::future::ready((seen >= events.len()).then_some(()))
    })
    .await;
    // If a row was published twice, the second record could come late. So this reads until nothing more comes.
    let records = consumer
        .read_until_quiet(Duration::from_secs(2))
        .await
        .expect("records");
    assert_each_once(&events, &records);
    assert_versions_in_order(&records);
    records
}

/// Asserts that each change that was answered is an outbox row, so that nothing is missing that a client was promised.
pub(crate) async fn assert_answered_changes_are_in_outbox(pipeline: &Pipeline, answers: &[Answered]) {
    let sql = "select aggregateid, payload ->> 'version', type from outbox";
    let rows = Outbox::Users.query(pipeline, sql).await;
    let mut versions: HashMap<(i64, i64), u32> = HashMap::new();
    let mut deleted: HashMap<i64, u32> = HashMap::new();
    for row in &rows {
        let [Some(key), Some(version), Some(kind)] = row.as_slice() else {
            panic!("an outbox row without aggregate id, version or type: {row:?}");
        };
        let id = key.parse().expect("a user's id");
        *versions.entry((id, version.parse().expect("a version"))).or_default() += 1;
        if kind == "USER_DELETED" {
            *deleted.entry(id).or_default() += 1;
        }
    }
    for answer in answers {
        let events = match answer {
            Answered::Written { id, version } => versions.get(&(*id, *version)),
            Answered::Deleted { id } => deleted.get(id),
        };
        assert_eq!(events, Some(&1), "outbox rows for the answered change {answer:?}");
    }
}

/// A console consumer of the outbox's topic. It sees only committed records.
pub(crate) fn consume(pipeline: &Pipeline, outbox: Outbox) -> Consumer {
    let kafka = pipeline.kafka().expect("our own kafka");
    kafka
        .consumer(outbox.topic(), Isolation::Committed)
        .expect("a console consumer")
}

/// The records that the consumer has read so far.
pub(crate) fn records(consumer: &Consumer) -> Vec<Record> {
    consumer.records().expect("records")
}

/// The record's outbox id.
pub(crate) fn event_id(record: &Record) -> &str {
    record.header("id").expect("a header with the event's id")
}

async fn events(pipeline: &Pipeline, outbox: Outbox) -> HashMap<String, Event> {
    let rows = outbox
        .query(pipeline, "select id, aggregateid, type, payload from outbox")
        .await;
    let event = |row: Row| {
        let [Some(id), Some(key), Some(kind), Some(payload)] = <[_; 4]>::try_from(row).expect("four columns") else {
            panic!("an outbox row with a null");
        };
        (id, Event { key, kind, payload })
    };
    rows.into_iter().map(event).collect()
}

fn assert_each_once(events: &HashMap<String, Event>, records: &[Record]) {
    let mut published: HashMap<&str, u32> = HashMap::new();
    for record in records {
        let id = event_id(record);
        *published.entry(id).or_default() += 1;
        let event = events
            .get(id)
            .unwrap_or_else(|| panic!("a record that no outbox row has: {record:?}"));
        assert_eq!(record.key.as_deref(), Some(event.key.as_str()), "key of event {id}");
        assert_eq!(
            record.value.as_deref(),
            Some(event.payload.as_str()),
            "value of event {id}"
        );
        assert_eq!(
            record.header("eventType"),
            Some(event.kind.as_str()),
            "type of event {id}"
        );
    }
    let twice: Vec<_> = published.iter().filter(|(_, times)| **times != 1).collect();
    assert!(
        twice.is_empty(),
        "{} events are in the topic more than once: {twice:?}",
        twice.len()
    );
    let missing: Vec<_> = events
        .keys()
        .filter(|id| !published.contains_key(id.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "{} events are not in the topic: {missing:?}",
        missing.len()
    );
}

fn assert_versions_in_order(records: &[Record]) {
    let mut by_key: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        by_key
            .entry(record.key.as_deref().expect("a key"))
            .or_default()
            .push(record);
    }
    for (key, mut records) in by_key {
        let partition = records[0].partition;
        assert!(
            records.iter().all(|record| record.partition == partition),
            "key {key} is in several partitions"
        );
        records.sort_by_key(|record| record.offset);
        let version = |record: &&Record| {
            record
                .json()
                .ok()
                .as_ref()
                .and_then(|event: &Value| event["version"].as_i64())
        };
        let versions: Vec<Option<i64>> = records.iter().map(version).collect();
        let wanted: Vec<Option<i64>> = (1..).take(records.len()).map(Some).collect();
        assert_eq!(versions, wanted, "versions of key {key} in the partition's order");
    }
}
