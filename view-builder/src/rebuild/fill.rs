//! Filling a generation: events from the topic's beginning up to where the live view is, and no further.
//!
//! Every event before the live position has been decided: it is applied, or it waits in the dead letters, or it was discarded. The generation
//! gets exactly the first kind. Where dead letters are retried meanwhile, what was left out is read again from the first of them on.
//!
//! Positions of the generation move in the transaction that applies the events, so that a fill that was killed goes on where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use tokio_postgres::{Client, Error};

use crate::apply::apply_views;
use crate::batch::{Batch, Part, TopicPartition};
use crate::config::Kafka;
use crate::contract::{self, Contracts};
use crate::database::Session;
use crate::event::Event;
use crate::failure::Failure;
use crate::faults;
use crate::install;
use crate::kafka::{self, Observer, Quiet, REQUEST_TIMEOUT, place};
use crate::letters::{Fate, Known, store};
use crate::record;
use crate::refusal::{self, Kind};
use crate::view::View;

const POLL_TIMEOUT: Duration = Duration::from_millis(50);
/// Limits of one transaction.
const BATCH_ROWS: usize = 10_000;
const BATCH_BYTES: usize = 4_194_304;

/// Why a fill does not go on.
pub(super) enum Trouble {
    /// Postgres is away, or not known: connect again, and go on.
    Database(Error),
    /// It took longer than the caller can wait.
    NotInTime,
    Final(Failure),
}

impl From<Error> for Trouble {
    fn from(err: Error) -> Self {
        Self::Database(err)
    }
}

impl From<install::Trouble> for Trouble {
    fn from(trouble: install::Trouble) -> Self {
        match trouble {
            install::Trouble::Database(err) => Self::Database(err),
            install::Trouble::Final(failure) => Self::Final(failure),
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Final(failure)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(err: anyhow::Error) -> Self {
        Self::Final(err.into())
    }
}

/// How far one partition is.
#[derive(Clone, Debug)]
struct Filled {
    next: i64,
    /// The live view's position: where to stop.
    limit: i64,
    known: Known,
    left_out_from: Option<i64>,
}

/// A generation's way through its topics.
pub(super) struct Fill {
    /// One client for each topic: the end of a partition is told by its number alone.
    consumers: BTreeMap<String, Observer>,
    contracts: Contracts,
    partitions: BTreeMap<TopicPartition, Filled>,
}

impl Fill {
    pub(super) fn new(servers: &Kafka, view: &View) -> Result<Self, Failure> {
        let mut consumers = BTreeMap::new();
        for topic in &view.topics {
            let mut config = kafka::outsider(servers, &servers.group_id);
            config
                .set("enable.partition.eof", "true")
                .set("auto.offset.reset", "error")
                .set("queued.max.messages.kbytes", "8192")
                .set("fetch.queue.backoff.ms", "5");
            let consumer = config.create_with_context(Quiet).map_err(|err| kafka::refused(&err))?;
            consumers.insert(topic.clone(), consumer);
        }
        Ok(Self {
            consumers,
            contracts: contract::of_all(&view.topics),
            partitions: BTreeMap::new(),
        })
    }

    /// Reads how far the generation is, and takes the live view's positions as the limits.
    pub(super) async fn resume(&mut self, client: &Client, view: &View, takes_truncated: bool) -> Result<(), Trouble> {
        let rows = client
            .query(
                "select topic, partition, next_offset, letters_version, left_out_from
                 from view_rebuild_positions where view = $1",
                &[&view.name],
            )
            .await?;
        self.partitions = rows
            .iter()
            .map(|row| {
                let filled = Filled {
                    next: row.get(2),
                    limit: row.get(2),
                    known: Known::at(row.get(3)),
                    left_out_from: row.get(4),
                };
                (place(row.get(0), row.get(1)), filled)
            })
            .collect();
        let is_new = rows.is_empty();
        self.aim(client, view).await?;
        for (place, filled) in &self.partitions {
            let consumer = &self.consumers[&*place.topic];
            let (beginning, _) = tokio::task::block_in_place(|| {
                consumer.fetch_watermarks(&place.topic, place.partition, REQUEST_TIMEOUT)
            })
            .with_context(|| format!("kafka does not tell the beginning of {place}"))?;
            if beginning <= filled.next {
                continue;
            }
            if !(is_new && takes_truncated) {
                return Err(Failure::Setting(format!(
                    "{place} begins at offset {beginning}: the events before are gone, and rows that only they tell of would be \
                     missing in the new generation; to go on all the same: --accept-truncated"
                ))
                .into());
            }
            tracing::warn!(%place, beginning, "the events before this offset are gone: the new generation is made without them");
        }
        Ok(())
    }

    /// Takes the live view's positions, as they are now, as the limits. Says whether the dead letters are others than before.
    pub(super) async fn aim(&mut self, client: &Client, view: &View) -> Result<bool, Error> {
        let rows = client
            .query(
                "select topic, partition, coalesce(next_offset, 0) from view_positions where topic = any($1)",
                &[&view.topics],
            )
            .await?;
        let limits: BTreeMap<TopicPartition, i64> = rows
            .iter()
            .map(|row| (place(row.get(0), row.get(1)), row.get(2)))
            .collect();
        let places: Vec<TopicPartition> = limits.keys().cloned().collect();
        let mut all = store::known(client, &places).await?;
        let mut other_letters = false;
        for (place, limit) in limits {
            let known = all.remove(&place).unwrap_or_default();
            let filled = self.partitions.entry(place).or_insert_with(|| Filled {
                next: 0,
                limit,
                known: Known::at(known.version),
                left_out_from: None,
            });
            filled.limit = limit;
            if filled.known.version != known.version {
                other_letters = true;
                if let Some(from) = filled.left_out_from.take() {
                    filled.next = filled.next.min(from);
                }
            }
            filled.known = known;
        }
        Ok(other_letters)
    }

    /// Events between the generation and the limits.
    pub(super) fn left(&self) -> u64 {
        let left = self.partitions.values().map(|filled| filled.limit - filled.next);
        left.filter_map(|left| u64::try_from(left).ok()).sum()
    }

    /// Applies everything up to the limits, each batch in a transaction of its own; before the `deadline`, where there is one.
    pub(super) async fn round(
        &mut self,
        session: &Session,
        view: &View,
        deadline: Option<Instant>,
        progress: impl Fn(u64),
    ) -> Result<(), Trouble> {
        let topics: Vec<String> = self.consumers.keys().cloned().collect();
        for topic in topics {
            let mut open = self.begin(&topic)?;
            while !open.is_empty() {
                let batch = tokio::task::block_in_place(|| self.read(&topic, &mut open, deadline))?;
                self.commit(session, view, batch).await?;
                progress(self.left());
            }
        }
        Ok(())
    }

    /// Has Kafka send this topic from where the generation is; returns the partitions that have something to read.
    fn begin(&mut self, topic: &str) -> anyhow::Result<BTreeSet<i32>> {
        let mut open = BTreeSet::new();
        let behind = self
            .partitions
            .iter()
            .filter(|(place, filled)| *place.topic == *topic && filled.next < filled.limit);
        let mut list = rdkafka::TopicPartitionList::new();
        for (place, filled) in behind {
            list.add_partition_offset(topic, place.partition, rdkafka::Offset::Offset(filled.next))?;
            open.insert(place.partition);
        }
        self.consumers[topic]
            .assign(&list)
            .context("partitions cannot be assigned")?;
        Ok(open)
    }

    /// The next events, at most a batch of them. A partition that is at its limit leaves `open`.
    fn read(&mut self, topic: &str, open: &mut BTreeSet<i32>, deadline: Option<Instant>) -> Result<Batch, Trouble> {
        let mut events: BTreeMap<TopicPartition, (i64, Vec<Event>)> = BTreeMap::new();
        let (mut rows, mut bytes) = (0, 0);
        while !open.is_empty() && rows < BATCH_ROWS && bytes < BATCH_BYTES {
            let Some(polled) = self.consumers[topic].poll(POLL_TIMEOUT) else {
                if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return Err(Trouble::NotInTime);
                }
                if rows > 0 {
                    break;
                }
                continue;
            };
            let record = match polled {
                Ok(record) => record,
                // Between here and the limit are transaction markers, or records that compaction has removed.
                Err(KafkaError::PartitionEOF(partition)) => {
                    open.remove(&partition);
                    if let Some(filled) = self.partitions.get_mut(&place(topic, partition)) {
                        filled.next = filled.next.max(filled.limit);
                    }
                    continue;
                }
                Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
                )) => {
                    return Err(anyhow!(
                        "{topic} does not have the events that come next: they were removed meanwhile"
                    )
                    .into());
                }
                Err(err) => {
                    tracing::debug!(error = %err, "kafka reports an error; it is tried again");
                    continue;
                }
            };
            let at = place(topic, record.partition());
            let Some(filled) = self.partitions.get_mut(&at).filter(|_| open.contains(&at.partition)) else {
                continue;
            };
            let from = filled.next;
            if let Some(event) = filled.take(&self.contracts, &record) {
                rows += 1;
                bytes += event.size_bytes();
                events
                    .entry(at.clone())
                    .or_insert_with(|| (from, Vec::new()))
                    .1
                    .push(event);
            }
            if filled.next >= filled.limit {
                open.remove(&at.partition);
            }
        }
        let parts = events.into_iter().map(|(place, (from, events))| Part {
            to: self.partitions[&place].next,
            place,
            epoch: 0,
            letters_version: 0,
            from,
            events,
            letters: Vec::new(),
        });
        Ok(Batch { parts: parts.collect() })
    }

    /// Applies the batch and moves the generation's positions, in one transaction.
    async fn commit(&self, session: &Session, view: &View, batch: Batch) -> Result<(), Trouble> {
        session.client.batch_execute("begin").await?;
        match apply_views(session, std::slice::from_ref(view), &self.contracts, &batch).await {
            Ok(()) => {
                self.save(&session.client, view).await?;
                faults::point("fill.applied").await?;
                session.client.batch_execute("commit").await?;
                Ok(faults::point("fill.committed").await?)
            }
            Err(err) if refusal::kind(&err) == Kind::Refused => {
                session.client.batch_execute("rollback").await?;
                Err(self.refused(session, view, batch, &err).await?.into())
            }
            Err(err) => Err(err.into()),
        }
    }

    async fn save(&self, client: &Client, view: &View) -> Result<(), Error> {
        let (mut topic, mut partition, mut next) = (Vec::new(), Vec::new(), Vec::new());
        let (mut version, mut left_out) = (Vec::new(), Vec::new());
        for (place, filled) in &self.partitions {
            topic.push(&*place.topic);
            partition.push(place.partition);
            next.push(filled.next);
            version.push(filled.known.version);
            left_out.push(filled.left_out_from);
        }
        client
            .execute(
                "insert into view_rebuild_positions (view, topic, partition, next_offset, letters_version, left_out_from)
                 select $1, * from unnest($2::text[], $3::integer[], $4::bigint[], $5::bigint[], $6::bigint[])
                 on conflict (view, topic, partition) do update set
                    next_offset = excluded.next_offset,
                    letters_version = excluded.letters_version,
                    left_out_from = excluded.left_out_from",
                &[&view.name, &topic, &partition, &next, &version, &left_out],
            )
            .await?;
        Ok(())
    }

    /// Finds the event that Postgres refuses. It is in the live view, so it is none for the dead letters: the new SQL is to blame.
    async fn refused(&self, session: &Session, view: &View, batch: Batch, err: &Error) -> Result<Failure, Error> {
        let mut reason = refusal::without_values(err);
        let mut suspect = batch;
        loop {
            let (first, second) = match suspect.split() {
                Ok(halves) => halves,
                Err(single) => {
                    let part = single.parts.first();
                    let at = part.map_or_else(String::new, |part| {
                        let offset = part.events.first().map_or(part.from, |event| event.offset);
                        format!("{} offset {offset}", part.place)
                    });
                    let message = format!("the event at {at}, which the live view has: {reason}");
                    return Ok(view.apply.refused(None, &message).into());
                }
            };
            session.client.batch_execute("begin").await?;
            let applied = apply_views(session, std::slice::from_ref(view), &self.contracts, &first).await;
            // The second half has to find what the first one left.
            session
                .client
                .batch_execute(if applied.is_ok() { "commit" } else { "rollback" })
                .await?;
            suspect = match applied {
                Ok(()) => second,
                Err(err) => {
                    reason = refusal::without_values(&err);
                    first
                }
            };
        }
    }
}

impl Filled {
    /// The record's event, where the live view has applied it.
    fn take(&mut self, contracts: &Contracts, record: &BorrowedMessage<'_>) -> Option<Event> {
        let offset = record.offset();
        if offset < self.next {
            return None;
        }
        if offset >= self.limit {
            self.next = self.limit;
            return None;
        }
        self.next = offset + 1;
        let event = record::event(contracts.get(record.topic())?, record);
        match (self.known.decide(offset, record.key(), None), event) {
            (Fate::Applied, Ok(event)) => event,
            (Fate::Applied, Err(unappliable)) => {
                tracing::debug!(offset, reason = %unappliable, "left out: no event, and no dead letter either");
                None
            }
            (Fate::Parked, _) => {
                self.left_out_from.get_or_insert(offset);
                None
            }
            (Fate::Dropped | Fate::Dead(_), _) => None,
        }
    }
}
