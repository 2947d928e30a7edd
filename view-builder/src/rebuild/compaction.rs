//! What the topic cannot give again, where compaction has removed events of a key that has dead letters.
//!
//! Compaction removes a key's earlier records in favour of its latest, whatever became of that. Where the latest is a dead letter, open or
//! discarded, the live view has the row of before, and no event in the topic tells it any more: the generation would drop the row. So, before the
//! swap, each key with a letter has to be *safe*:
//! - the topic is not compacted, as Kafka says; or
//! - the key's only letter that counts is the event with version 1: nothing was before it; or
//! - an event of the key that is applied was found in the topic *after* the fill had passed the letter.
//!
//! Why the third is a proof. The cleaner removes a key's records in the order of their offsets, so what a topic has of a key are at any moment its
//! last records, without a gap. An event found now was there before, and so were all behind it: the fill, which was earlier, has met
//! every one of them. (That the fill has applied *some* earlier event would be none: the cleaner may have removed the next one before the fill came
//! by.) What lies before the event that was found is superseded by it.
//!
//! A key that was safe stays so until its letters are others: more of them behind an open one change nothing, since they wait as well.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use kafka_client::{Next, TopicReader};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::consumer::Consumer as _;
use tokio_postgres::{Client, Error};

use super::fill::{Fill, Filled};
use super::reading;
use super::trouble::Trouble;
use crate::batch::TopicPartition;
use crate::config::Kafka;
use crate::contract::Contracts;
use crate::failure::Failure;
use crate::faults::{self, Bug};
use crate::kafka::{self, Observer, Quiet, REQUEST_TIMEOUT, place};
use crate::letters::Fate;
use crate::view::View;

const POLL_TIMEOUT: Duration = Duration::from_millis(50);
/// Keys that are named.
const NAMED_MAX: usize = 10;

/// Per key its first letter and the last one that counts: the first that is open, or else the last that was discarded.
const LETTERS: &str = "
    select letter.topic, letter.partition, letter.key, min(record_offset),
        coalesce(min(record_offset) filter (where discarded_at is null), max(record_offset)),
        (array_agg(value order by record_offset))[1]
    from only view_dead_letters as letter
    where topic = any($1) and key is not null
    group by topic, partition, key
    order by topic, partition, min(record_offset)";

/// A key with letters, as of one moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    place: TopicPartition,
    key: Vec<u8>,
    first: i64,
    /// The last letter that counts.
    last: i64,
}

/// Which keys are known to be safe.
pub(super) struct Compaction {
    /// The view's topics that may be compacted.
    compacted: Vec<String>,
    /// Somebody has accepted that rows are missing.
    accepts: bool,
    safe: HashSet<Key>,
}

impl Compaction {
    /// Asks Kafka which topics are compacted; one of which it does not tell counts as such.
    pub(super) async fn of(servers: &Kafka, view: &View, accepts: bool) -> Self {
        let mut compacted = view.topics.clone();
        if faults::is_planted(Bug::IgnoreCompaction) {
            compacted.clear();
        }
        if !compacted.is_empty() {
            let plain = not_compacted(servers, &view.topics).await.unwrap_or_else(|err| {
                tracing::debug!(error = %err, "kafka does not tell the topics' settings: they are taken for compacted");
                BTreeSet::new()
            });
            compacted.retain(|topic| !plain.contains(topic));
        }
        Self {
            compacted,
            accepts,
            safe: HashSet::new(),
        }
    }

    /// The keys with letters that are not known to be safe.
    pub(super) async fn unproven(&self, client: &Client, contracts: &Contracts) -> Result<Vec<Key>, Error> {
        if self.compacted.is_empty() {
            return Ok(Vec::new());
        }
        let rows = client.query(LETTERS, &[&self.compacted]).await?;
        let all = rows.iter().filter_map(|row| {
            let key = Key {
                place: place(row.get(0), row.get(1)),
                key: row.get::<_, &[u8]>(2).to_vec(),
                first: row.get(3),
                last: row.get(4),
            };
            let contract = contracts.get(&*key.place.topic);
            let is_first_version = contract.is_some_and(|contract| is_version_1(&contract.id, &key.key, row.get(5)));
            let nothing_was_before = is_first_version && key.first == key.last;
            (!nothing_was_before && !self.safe.contains(&key)).then_some(key)
        });
        Ok(all.collect())
    }

    /// Looks for what proves these keys safe, and returns those for which there is nothing. The fill must have passed their letters. Blocks.
    fn prove(&mut self, fill: &Fill, keys: Vec<Key>) -> anyhow::Result<Vec<Key>> {
        let mut by_topic: BTreeMap<String, Vec<Key>> = BTreeMap::new();
        for key in keys {
            by_topic.entry(key.place.topic.to_string()).or_default().push(key);
        }
        let mut doubtful = Vec::new();
        for (topic, keys) in by_topic {
            let found = found(fill, &topic, &keys)?;
            for key in keys {
                if found.contains(&(key.place.partition, key.key.clone())) {
                    self.safe.insert(key);
                } else {
                    doubtful.push(key);
                }
            }
        }
        Ok(doubtful)
    }

    /// Without the keys whose letters the fill has not passed: their turn comes later.
    fn passed(fill: &Fill, keys: Vec<Key>) -> Vec<Key> {
        let is_passed = |key: &Key| {
            fill.partitions
                .get(&key.place)
                .is_some_and(|filled| key.last < filled.next)
        };
        keys.into_iter().filter(is_passed).collect()
    }

    /// Refuses where a key is not safe whose letters the fill has passed.
    pub(super) async fn check(&mut self, client: &Client, fill: &Fill, view: &View) -> Result<(), Trouble> {
        let keys = Self::passed(fill, self.unproven(client, &fill.contracts).await?);
        if keys.is_empty() {
            return Ok(());
        }
        let doubtful = tokio::task::block_in_place(|| self.prove(fill, keys))?;
        if doubtful.is_empty() {
            return Ok(());
        }
        let (count, named) = (doubtful.len(), name(&doubtful));
        if !self.accepts {
            return Err(Failure::Setting(format!(
                "{count} keys with dead letters may have rows in {0} that the topic cannot give again, since compaction has removed their \
                 earlier events: {named}; the live view is as it was: retry these letters first (view-builder dead-letters list), or, to go \
                 on without the rows: view-builder rebuild {0} --accept-compacted",
                view.name
            ))
            .into());
        }
        tracing::warn!(
            count,
            named,
            "rows of keys with dead letters may be missing in the new generation, as was accepted"
        );
        self.safe.extend(doubtful);
        Ok(())
    }
}

/// What the operator reads.
fn name(keys: &[Key]) -> String {
    let named: Vec<String> = keys
        .iter()
        .take(NAMED_MAX)
        .map(|key| {
            format!(
                "{} key {}",
                key.place,
                String::from_utf8_lossy(&key.key).escape_default()
            )
        })
        .collect();
    let more = keys.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{}{more}", named.join(", "))
}

/// Those of the topics that Kafka says are not compacted.
async fn not_compacted(servers: &Kafka, topics: &[String]) -> anyhow::Result<BTreeSet<String>> {
    let config = kafka::outsider(servers, &servers.group_id);
    let admin: AdminClient<Quiet> = config.create_with_context(Quiet)?;
    let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let mut plain = BTreeSet::new();
    for (topic, answer) in topics.iter().zip(admin.describe_configs(&asked, &options).await?) {
        let Ok(resource) = answer else { continue };
        let policy = resource.get("cleanup.policy").and_then(|entry| entry.value.as_deref());
        if policy.is_some_and(|policy| !policy.contains("compact")) {
            plain.insert(topic.clone());
        }
    }
    Ok(plain)
}

/// The keys of which the topic has an event that is applied, by partition. Reads up to where the fill is.
fn found(fill: &Fill, topic: &str, keys: &[Key]) -> anyhow::Result<HashSet<(i32, Vec<u8>)>> {
    let consumer: &Observer = fill.consumer(topic).context("no client reads this topic")?;
    let mut wanted: BTreeMap<i32, HashSet<Vec<u8>>> = BTreeMap::new();
    for key in keys {
        wanted.entry(key.place.partition).or_default().insert(key.key.clone());
    }
    let mut from = Vec::with_capacity(wanted.len());
    for partition in wanted.keys() {
        let (beginning, _) = consumer
            .fetch_watermarks(topic, *partition, REQUEST_TIMEOUT)
            .with_context(|| format!("kafka does not tell the beginning of {topic}/{partition}"))?;
        from.push((*partition, beginning));
    }
    // A reading that was given up has left its partitions assigned.
    consumer.unassign().context("partitions cannot be given back")?;
    let reader = TopicReader::start(consumer, topic, &from)?;
    let mut known: BTreeMap<i32, Filled> = wanted
        .keys()
        .filter_map(|partition| {
            let filled = fill.partitions.get(&place(topic, *partition))?;
            Some((*partition, filled.clone()))
        })
        .collect();
    let mut found = HashSet::new();
    wanted.retain(|partition, _| known.contains_key(partition));
    while !wanted.is_empty() {
        match reader.next(POLL_TIMEOUT)? {
            // A broker that lags behind ends too early: then a key is not found, and the rebuild refused for now.
            Next::End { partition, .. } => {
                wanted.remove(&partition);
            }
            Next::Nothing => {}
            Next::Record(record) => {
                let partition = record.partition();
                let (Some(keys), Some(filled)) = (wanted.get_mut(&partition), known.get_mut(&partition)) else {
                    continue;
                };
                if let Some(key) = record.key().filter(|key| keys.contains(*key))
                    && record.offset() < filled.next
                    && filled.known.decide(record.offset(), Some(key), None) == Fate::Applied
                    && reading::event(&fill.contracts, topic, &record).is_some()
                {
                    keys.remove(key);
                    found.insert((partition, key.to_vec()));
                }
                if keys.is_empty() || record.offset() + 1 >= filled.next {
                    wanted.remove(&partition);
                }
            }
        }
    }
    drop(reader);
    consumer.unassign().context("partitions cannot be given back")?;
    Ok(found)
}

/// Whether the letter is an event of its key with version 1, whatever else is wrong with it.
fn is_version_1(id_field: &str, key: &[u8], value: &[u8]) -> bool {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(value) else {
        return false;
    };
    let id = fields.get(id_field).and_then(serde_json::Value::as_i64);
    id.is_some_and(|id| id.to_string().as_bytes() == key)
        && fields.get("version").and_then(serde_json::Value::as_i64) == Some(1)
}

#[cfg(test)]
mod tests {
    use super::is_version_1;

    #[test]
    fn a_letter_tells_that_nothing_was_before_it_by_its_own_id_and_version() {
        let is = |value: &str| is_version_1("itemId", b"7", value.as_bytes());
        assert!(is(r#"{"eventType":"?","itemId":7,"version":1}"#));
        for other in [
            r#"{"itemId":7,"version":2}"#,
            r#"{"itemId":8,"version":1}"#,
            r#"{"itemId":7}"#,
            "no event",
        ] {
            assert!(!is(other), "{other}");
        }
    }
}
