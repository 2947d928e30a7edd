//! Reading a topic's partitions up to the limits of a fill.
//!
//! A partition is done when a record at its limit or right before it was read, or when the broker has said that the partition ends at the limit or
//! beyond (between are transaction markers, or records that compaction has removed). An end below the limit is an answer of a
//! broker that lags behind, since the view has had what lies there: it is read on. Where the end stays there, the topic has lost its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Error;
use bytes::Bytes;
use kafka_client::{Next, ReaderContext, Record, TopicReader};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::filled::Filled;
use super::letters::{LeftOut, Letters};
use super::trouble::Trouble;
use crate::contract::Contracts;
use crate::contract::batch::{Batch, Part};
use crate::contract::event::Event;
use crate::contract::letter::Fate;
use crate::contract::place::TopicPartition;
use crate::contract::place::place;
use crate::contract::record;
use crate::kafka::Observer;
use crate::process::failure::Failure;
use crate::process::faults::{self, Bug};

/// How long one poll waits for a record. A batch that has records goes as soon as one poll finds none.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);
/// Limits of one transaction.
const BATCH_ROWS: usize = 10_000;
const BATCH_BYTES: usize = 4_194_304;
/// How long an end below the limit is taken for a broker that lags behind.
const SHORT_END_MAX: Duration = Duration::from_secs(30);
/// How often it is told that Kafka sends nothing.
const SILENCE_TOLD_EVERY: Duration = Duration::from_secs(10);

/// A topic that is read.
pub(super) struct Reading<'c> {
    topic: &'c str,
    reader: TopicReader<'c, ReaderContext>,
    /// The partitions that are not at their limits.
    open: BTreeSet<i32>,
    /// Those of them whose end is said to be below the limit: where, and since when.
    short: BTreeMap<i32, (i64, Instant)>,
    /// The events of the last batch that were left out because of a hash.
    left_out: Vec<LeftOut>,
}

impl<'c> Reading<'c> {
    /// Has Kafka send this topic from where the generation is; none where all of it is at its limits.
    pub(super) fn start(
        consumer: &'c Observer,
        topic: &'c str,
        partitions: &BTreeMap<TopicPartition, Filled>,
    ) -> anyhow::Result<Option<Self>> {
        let behind: Vec<(i32, i64)> = partitions
            .iter()
            .filter(|(place, filled)| *place.topic == *topic && filled.next < filled.limit)
            .map(|(place, filled)| (place.partition, filled.next))
            .collect();
        if behind.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            topic,
            reader: TopicReader::start(consumer, topic, &behind)?,
            open: behind.iter().map(|(partition, _)| *partition).collect(),
            short: BTreeMap::new(),
            left_out: Vec::new(),
        }))
    }

    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// The events of the last batch that were left out although only a hash says that their keys wait.
    pub(super) fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The next events, at most a batch of them. Blocks.
    pub(super) fn batch(
        &mut self,
        contracts: &Contracts,
        letters: &Letters,
        partitions: &mut BTreeMap<TopicPartition, Filled>,
        deadline: Option<Instant>,
    ) -> Result<Batch, Trouble> {
        let mut events: BTreeMap<TopicPartition, (i64, Vec<Event>)> = BTreeMap::new();
        let (mut rows, mut bytes) = (0, 0);
        self.left_out.clear();
        let mut wanted_at = Instant::now();
        let mut told_at = wanted_at;
        while !self.open.is_empty() && rows < BATCH_ROWS && bytes < BATCH_BYTES {
            match self.reader.next(POLL_TIMEOUT) {
                Ok(Next::Record(record)) => {
                    let at = place(self.topic, record.partition());
                    let Some(filled) = partitions.get_mut(&at).filter(|_| self.open.contains(&at.partition)) else {
                        // The partition is at its limit already, and Kafka still sends what lies behind, which may never end.
                        if rows == 0 {
                            self.look_at_the_clock(partitions, deadline, &mut told_at)?;
                        } else if wanted_at.elapsed() >= POLL_TIMEOUT {
                            break;
                        }
                        continue;
                    };
                    wanted_at = Instant::now();
                    told_at = wanted_at;
                    self.short.remove(&at.partition);
                    let from = filled.next;
                    match filled.take(contracts, letters, &at, &record) {
                        Taken::Event(event) => {
                            rows += 1;
                            bytes += event.size_bytes();
                            events
                                .entry(at.clone())
                                .or_insert_with(|| (from, Vec::new()))
                                .1
                                .push(event);
                        }
                        Taken::LeftOut(event) => {
                            rows += 1;
                            bytes += event.key.len();
                            self.left_out.push(event);
                        }
                        Taken::Nothing => {}
                    }
                    if filled.next >= filled.limit {
                        self.open.remove(&at.partition);
                    }
                }
                Ok(Next::End { partition, offset }) => {
                    let Some(filled) = partitions.get_mut(&place(self.topic, partition)) else {
                        // Only partitions of the fill are asked for, so there is no other.
                        continue;
                    };
                    if is_believable_end(offset, filled) {
                        filled.next = filled.next.max(filled.limit);
                        self.open.remove(&partition);
                    } else {
                        self.short.entry(partition).or_insert_with(|| (offset, Instant::now()));
                    }
                }
                Ok(Next::Nothing) if rows > 0 => break,
                Ok(Next::Nothing) => self.look_at_the_clock(partitions, deadline, &mut told_at)?,
                Err(err) if has_removed(&err) => return Err(Trouble::Removed(self.topic.to_owned())),
                Err(err) => {
                    tracing::debug!(error = %err, "kafka reports an error; it is tried again");
                    self.look_at_the_clock(partitions, deadline, &mut told_at)?;
                }
            }
        }
        let parts = events.into_iter().map(|(place, (from, events))| Part {
            to: partitions[&place].next,
            read: None,
            place,
            epoch: 0,
            from,
            events,
            letters: Vec::new(),
        });
        Ok(Batch { parts: parts.collect() })
    }

    fn look_at_the_clock(
        &self,
        partitions: &BTreeMap<TopicPartition, Filled>,
        deadline: Option<Instant>,
        told_at: &mut Instant,
    ) -> Result<(), Trouble> {
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Trouble::NotInTime);
        }
        if told_at.elapsed() >= SILENCE_TOLD_EVERY {
            *told_at = Instant::now();
            let waiting = self.open.iter().filter_map(|partition| {
                let filled = partitions.get(&place(self.topic, *partition))?;
                Some(format!("{partition} from offset {} to {}", filled.next, filled.limit))
            });
            let waiting = waiting.collect::<Vec<_>>().join(", ");
            tracing::warn!(
                topic = self.topic,
                partitions = waiting,
                "kafka sends nothing of these partitions; it is asked on"
            );
        }
        let lost = self
            .short
            .iter()
            .find(|(_, (_, since))| since.elapsed() > SHORT_END_MAX);
        let Some((partition, (end, _))) = lost else {
            return Ok(());
        };
        let at = place(self.topic, *partition);
        let limit = partitions[&at].limit;
        Err(Failure::Setting(format!(
            "{at} ends at offset {end}, below offset {limit} that the live view has reached: the broker lags behind, or the topic was made \
             anew or has lost its end; the live view is as it was: run rebuild again once kafka has the events, it goes on where it is"
        ))
        .into())
    }
}

/// Below the limit only where that bug is planted: the live view has had what lies there, so it is the answer of a broker that lags behind.
fn is_believable_end(offset: i64, filled: &Filled) -> bool {
    offset >= filled.limit || faults::is_planted(Bug::BelieveAnyEnd)
}

fn has_removed(err: &Error) -> bool {
    let code = err.downcast_ref().and_then(KafkaError::rdkafka_error_code);
    matches!(
        code,
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
    )
}

/// What a record gives.
enum Taken {
    /// An event that the live view has applied.
    Event(Event),
    /// An event that waits behind a letter, if the hash of its key is right.
    LeftOut(LeftOut),
    Nothing,
}

impl Filled {
    /// Passes the record, and gives its event where the live view has applied it.
    fn take(&mut self, contracts: &Contracts, letters: &Letters, at: &TopicPartition, record: &Record<'_>) -> Taken {
        let offset = record.offset();
        if offset < self.next {
            return Taken::Nothing;
        }
        if offset >= self.limit {
            self.next = self.limit;
            return Taken::Nothing;
        }
        self.next = offset + 1;
        let key = record::waiting_key(record.key());
        match letters.fate(at, offset, key) {
            Fate::Applied => event(contracts, &at.topic, record).map_or(Taken::Nothing, Taken::Event),
            Fate::Parked => {
                self.left_out_from.get_or_insert(offset);
                match key.filter(|key| letters.knows_only_hash_of(at, key)) {
                    // A record that gives no event is left out whatever its key.
                    Some(key) if event(contracts, &at.topic, record).is_some() => Taken::LeftOut(LeftOut {
                        place: at.clone(),
                        offset,
                        key: Bytes::copy_from_slice(key),
                    }),
                    _ => Taken::Nothing,
                }
            }
            Fate::Dropped | Fate::Dead(_) => Taken::Nothing,
        }
    }
}

/// The record's event; none for a tombstone, and for what is no event and no dead letter either.
pub(super) fn event(contracts: &Contracts, topic: &str, record: &Record<'_>) -> Option<Event> {
    let contract = contracts.get(topic)?;
    let committed_us = record.timestamp_ms().map_or(0, |ms| ms.saturating_mul(1_000));
    let event = Event::parse(contract, record.offset(), committed_us, record.key(), record.value()?);
    event
        .inspect_err(|unappliable| tracing::debug!(offset = record.offset(), reason = %unappliable, "left out"))
        .ok()
}
