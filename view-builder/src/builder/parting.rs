//! Finding out whether a log has lost its end, and has other records at those offsets by now.
//!
//! librdkafka compares what it has read with what a new leader has, by the leaders' epochs, and says of a log that has parted from it only that it
//! does not have the next offset. By the time that all positions are verified the log may have grown beyond them, and nothing is seen. So the
//! logs themselves are asked, with the epochs of the records that were read since the partitions were taken over. Where one has parted, the
//! offset is written down as the lowest end that was told (`paused_end`), and the epoch is counted up: whoever holds the partition takes it over
//! anew, and reads it again from there.
//!
//! A builder that did not run then, or had read nothing since its takeover, is told nothing by librdkafka. So how far a log was read, and in which
//! epoch, is also kept beside the position, and a takeover asks by that where another epoch has begun since.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use kafka_client::ReadUpTo;
use rdkafka::message::{BorrowedMessage, Message as _};
use tokio::task::JoinHandle;

use crate::builder::claim;
use crate::continuity::start::TopicIds;
use crate::contract::place::{self, TopicPartition};
use crate::kafka;
use crate::kafka::servers::Kafka;
use crate::process::faults::{self, Bug};
use crate::views::database::Database;

/// How long a leader has to tell.
const TOLD_MAX: Duration = Duration::from_secs(10);

/// A partition that has other records than those that were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parted {
    pub place: TopicPartition,
    /// From this offset on.
    pub at: i64,
    /// The id of the topic that was read.
    pub topic_id: Option<String>,
}

/// What was read, and the question whether the logs still have it.
pub struct Parting {
    servers: Kafka,
    read: HashMap<TopicPartition, ReadUpTo>,
    /// What is written down of it.
    noted: HashMap<TopicPartition, ReadUpTo>,
    ids: HashMap<TopicPartition, Option<String>>,
    answer: Option<JoinHandle<anyhow::Result<Vec<Parted>>>>,
}

impl Parting {
    #[must_use]
    pub fn new(servers: Kafka) -> Self {
        Self {
            servers,
            read: HashMap::new(),
            noted: HashMap::new(),
            ids: HashMap::new(),
            answer: None,
        }
    }

    #[must_use]
    pub const fn servers(&self) -> &Kafka {
        &self.servers
    }

    /// How far the logs of these partitions were read, where that is not written down yet; from now on it counts as such.
    pub fn due(&mut self, held: impl Iterator<Item = claim::Held>) -> Vec<(claim::Held, ReadUpTo)> {
        let due = held.filter_map(|held| {
            let read = *self.read.get(&held.place)?;
            let before = self.noted.insert(held.place.clone(), read);
            (before != Some(read)).then_some((held, read))
        });
        due.collect()
    }

    /// From now on these partitions are read, of topics with these ids. A question that was asked before is still of interest.
    pub fn begin(&mut self, ids: &[(TopicPartition, TopicIds)]) {
        self.read.clear();
        self.noted.clear();
        self.ids.clear();
        self.add(ids);
    }

    /// These partitions are read as well.
    pub fn add(&mut self, ids: &[(TopicPartition, TopicIds)]) {
        let ids = ids.iter().map(|(place, ids)| (place.clone(), ids.now.clone()));
        self.ids.extend(ids);
    }

    /// This record was read.
    pub fn read(&mut self, place: &TopicPartition, record: &BorrowedMessage<'_>) {
        let Some(epoch) = kafka_client::leader_epoch(record) else {
            return;
        };
        let offset = record.offset() + 1;
        match self.read.get_mut(place) {
            Some(read) => *read = ReadUpTo { offset, epoch },
            None => drop(self.read.insert(place.clone(), ReadUpTo { offset, epoch })),
        }
    }

    /// Asks whether the logs have what was read.
    pub fn look(&mut self) {
        if self.answer.is_some() || self.read.is_empty() || faults::is_planted(Bug::TrustOffsetsAlone) {
            return;
        }
        let (servers, read, ids) = (self.servers.clone(), self.read.clone(), self.ids.clone());
        self.answer = Some(tokio::task::spawn_blocking(move || ask(&servers, read, &ids)));
    }

    /// The partitions that were found to have other records, once they are.
    pub fn found(&mut self) -> Vec<Parted> {
        let Some(answered) = self.answer.as_mut().and_then(|answer| answer.now_or_never()) else {
            return Vec::new();
        };
        self.answer = None;
        match answered.context("asking kafka failed").flatten() {
            Ok(parted) => parted,
            Err(err) => {
                tracing::error!(
                    error = format!("{err:#}"),
                    "whether a log has lost its end is not known: compare with view-builder verify"
                );
                Vec::new()
            }
        }
    }
}

/// The partitions that have other records than those that were read. Blocks.
///
/// # Errors
/// Kafka does not tell.
pub(crate) fn ask(
    servers: &Kafka,
    read: HashMap<TopicPartition, ReadUpTo>,
    ids: &HashMap<TopicPartition, Option<String>>,
) -> anyhow::Result<Vec<Parted>> {
    let mut by_topic: BTreeMap<String, BTreeMap<i32, ReadUpTo>> = BTreeMap::new();
    for (place, read) in read {
        by_topic
            .entry(place.topic.to_string())
            .or_default()
            .insert(place.partition, read);
    }
    let mut all = Vec::new();
    for (topic, read) in by_topic {
        // One for each topic: what is assigned already does not begin anew.
        let observer = kafka::parting_observer(servers)?;
        for (partition, at) in kafka_client::parted_at(&observer, &topic, &read, TOLD_MAX)? {
            let place = place::place(&topic, partition);
            tracing::warn!(%place, at, read = read[&partition].offset, "the log has lost its end, and has other records from there on");
            let topic_id = ids.get(&place).cloned().flatten();
            all.push(Parted { place, at, topic_id });
        }
    }
    Ok(all)
}

impl Database {
    /// Writes down from where on these partitions have other records, and has whoever holds them take them over anew. One of another topic by
    /// now stays as it is. Waits for as long as Postgres is away.
    pub async fn note_parted(&mut self, parted: &[Parted]) {
        let topic: Vec<&str> = parted.iter().map(|one| &*one.place.topic).collect();
        let partition: Vec<i32> = parted.iter().map(|one| one.place.partition).collect();
        let at: Vec<i64> = parted.iter().map(|one| one.at).collect();
        let id: Vec<Option<&str>> = parted.iter().map(|one| one.topic_id.as_deref()).collect();
        loop {
            let client = &self.session().await.client;
            let noted = client
                .execute(
                    "update view_positions as held set paused_end = least(held.paused_end, wanted.at), epoch = held.epoch + 1
                     from unnest($1::text[], $2::integer[], $3::bigint[], $4::text[]) as wanted(topic, partition, at, topic_id)
                     where held.topic = wanted.topic and held.partition = wanted.partition
                        and held.topic_id is not distinct from wanted.topic_id",
                    &[&topic, &partition, &at, &id],
                )
                .await;
            match noted {
                Ok(_) => return,
                Err(err) => self.wait(&err).await,
            }
        }
    }
}
