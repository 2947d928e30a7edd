//! A Kafka client that reads committed records of partitions from given offsets on. It belongs to no group, commits nothing and writes nothing.
//!
//! Everything here blocks, each request for [`REQUEST_TIMEOUT`] at most: the caller runs it on a thread for this.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kafka_client::{ClientSettings, Next, ReaderContext, TopicReader};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::record::{Record, Seen};

/// How long Kafka has to answer a request, or to send the next record. A page answers within a second, also when Kafka is away.
pub const REQUEST_TIMEOUT: Duration = Duration::from_millis(800);
/// A client has at most so much of a topic in memory that nobody has taken yet.
const QUEUED_KBYTES_MAX: &str = "8192";
/// How much one answer of Kafka has of a partition. A trace wants one record, so it is much less than what a consumer usually takes.
const FETCH_BYTES_MAX: &str = "262144";
/// So many errors and expiring tokens are served before a client is used again.
const EVENTS_MAX: usize = 100;

/// A client, and nothing that it reads at the moment.
pub struct Reader {
    consumer: BaseConsumer<ReaderContext>,
}

/// Offsets of one partition: those from `from` on, up to the one before `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub partition: i32,
    pub from: i64,
    pub to: i64,
}

/// What a visitor of records wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    GoOn,
    /// No more records.
    Stop,
}

/// What a client wants at the end of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// To hear at once that it is the end. A window often ends with the end of a transaction, which no reader gets: then only this tells that the window is done.
    HearAtOnce,
    /// To wait for what comes.
    Wait,
}

impl AtEnd {
    /// How long Kafka holds an answer back while there is nothing to send.
    fn fetch_wait_ms(self) -> &'static str {
        match self {
            Self::HearAtOnce => "2",
            Self::Wait => "250",
        }
    }
}

/// How the reading of windows ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Every record in the windows was visited.
    All,
    /// The visitor had enough.
    Stopped,
    /// The time was over before all records were visited.
    TimeOver,
}

impl Reader {
    /// Makes a client. It connects when it is first asked.
    ///
    /// # Errors
    /// A property of the operator's is wrong, or a file that it names cannot be read.
    pub fn open(settings: &ClientSettings, at_end: AtEnd) -> anyhow::Result<Self> {
        let settings = settings.with_files_read()?;
        let mut config = settings.begin("console");
        config
            .set("fetch.wait.max.ms", at_end.fetch_wait_ms())
            .set("fetch.message.max.bytes", FETCH_BYTES_MAX)
            .set("queued.max.messages.kbytes", QUEUED_KBYTES_MAX)
            .set("socket.timeout.ms", "10000");
        settings.add_consumers_properties(&mut config);
        config
            // librdkafka wants a name. Nothing is committed under it.
            .set("group.id", "console")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error");
        Ok(Self {
            consumer: settings.open_reader(&config)?,
        })
    }

    /// The client, for whoever reads on without an end.
    pub(super) fn consumer(&self) -> &BaseConsumer<ReaderContext> {
        &self.consumer
    }

    /// Serves what has gathered while the client was not used: a token that expired, a connection that broke.
    pub fn serve_events(&self) {
        for _ in 0..EVENTS_MAX {
            if self.consumer.poll(Duration::ZERO).is_none() {
                return;
            }
        }
    }

    /// How many partitions the topic has. `None`: there is no such topic.
    ///
    /// # Errors
    /// Kafka does not answer, or does not let the console know of the topic.
    pub fn partition_count(&self, topic: &str) -> anyhow::Result<Option<i32>> {
        let metadata = self
            .consumer
            .fetch_metadata(Some(topic), REQUEST_TIMEOUT)
            .map_err(|err| self.consumer.context().reasons().explain(err))
            .context("Kafka does not answer")?;
        let of_topic = metadata.topics().iter().find(|known| known.name() == topic);
        match of_topic.and_then(|known| known.error()).map(RDKafkaErrorCode::from) {
            None | Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {}
            Some(refused) => bail!("Kafka says nothing of the topic {topic}: {refused}"),
        }
        let partitions = of_topic.map_or(0, |known| known.partitions().len());
        let partitions = i32::try_from(partitions).context("too many partitions")?;
        Ok((partitions > 0).then_some(partitions))
    }

    /// The offsets that the partition has for a reader of committed records: its first one, and the end of what is committed.
    ///
    /// # Errors
    /// Kafka does not answer, or the partition has no leader.
    pub fn bounds(&self, topic: &str, partition: i32) -> anyhow::Result<Window> {
        let (from, to) = self
            .consumer
            .fetch_watermarks(topic, partition, REQUEST_TIMEOUT)
            .with_context(|| format!("Kafka does not tell where partition {partition} begins and ends"))?;
        Ok(Window { partition, from, to })
    }

    /// The bounds of all partitions of the topic. `None`: there is no such topic.
    ///
    /// # Errors
    /// As [`Reader::bounds`].
    pub fn all_bounds(&self, topic: &str) -> anyhow::Result<Option<Vec<Window>>> {
        let Some(count) = self.partition_count(topic)? else {
            return Ok(None);
        };
        let bounds = (0..count).map(|partition| self.bounds(topic, partition));
        bounds.collect::<anyhow::Result<Vec<_>>>().map(Some)
    }

    /// Of each partition, the offset of the first record that is of this time (milliseconds since 1970) or later. Kafka's index of times answers this. A partition
    /// without such a record is left out.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn offsets_at(&self, topic: &str, partitions: &[i32], time_ms: i64) -> anyhow::Result<BTreeMap<i32, i64>> {
        let mut asked = TopicPartitionList::new();
        for partition in partitions {
            asked.add_partition_offset(topic, *partition, Offset::Offset(time_ms.max(0)))?;
        }
        let told = self
            .consumer
            .offsets_for_times(asked, REQUEST_TIMEOUT)
            .context("Kafka does not tell the offsets of a time")?;
        let mut offsets = BTreeMap::new();
        for element in told.elements() {
            element.error().context("Kafka does not tell the offset of a time")?;
            if let Offset::Offset(offset) = element.offset() {
                offsets.insert(element.partition(), offset);
            }
        }
        Ok(offsets)
    }

    /// Visits the committed records of these windows. Those of one partition come in their order. No two windows may be of one partition.
    ///
    /// # Errors
    /// Kafka sends nothing for [`REQUEST_TIMEOUT`], or refuses; an offset is out of the partition's range.
    pub fn read(
        &self,
        topic: &str,
        windows: &[Window],
        deadline: Instant,
        visit: &mut dyn FnMut(&Seen<'_>) -> Visit,
    ) -> anyhow::Result<Read> {
        let mut open: BTreeMap<i32, i64> = windows
            .iter()
            .filter(|window| window.from < window.to)
            .map(|window| (window.partition, window.to))
            .collect();
        if open.is_empty() {
            return Ok(Read::All);
        }
        let starts: Vec<(i32, i64)> = windows
            .iter()
            .filter(|window| window.from < window.to)
            .map(|window| (window.partition, window.from))
            .collect();
        let reading = TopicReader::start(&self.consumer, topic, &starts)?;
        let ended = self.visit_until_ends(&reading, &mut open, deadline, visit);
        drop(reading);
        // Otherwise the client would go on fetching what nobody takes.
        self.consumer
            .unassign()
            .context("Kafka's client does not stop reading")?;
        ended
    }

    fn visit_until_ends(
        &self,
        reading: &TopicReader<'_, ReaderContext>,
        open: &mut BTreeMap<i32, i64>,
        deadline: Instant,
        visit: &mut dyn FnMut(&Seen<'_>) -> Visit,
    ) -> anyhow::Result<Read> {
        while !open.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Read::TimeOver);
            }
            match reading.next(left.min(REQUEST_TIMEOUT))? {
                Next::Record(record) => {
                    let (partition, offset) = (record.partition(), record.offset());
                    // What was fetched beyond the window's end still comes.
                    let Some(to) = open.get(&partition).copied() else {
                        continue;
                    };
                    if offset < to && visit(&Seen::of(&record)) == Visit::Stop {
                        return Ok(Read::Stopped);
                    }
                    if offset + 1 >= to {
                        open.remove(&partition);
                    }
                }
                Next::End { partition, .. } => _ = open.remove(&partition),
                Next::Nothing if left <= REQUEST_TIMEOUT => return Ok(Read::TimeOver),
                Next::Nothing => {
                    let why = self.consumer.context().reasons().refused();
                    match why {
                        Some(refused) => return Err(refused.into()),
                        None => bail!("Kafka sends nothing"),
                    }
                }
            }
        }
        Ok(Read::All)
    }

    /// The record at this offset. Where a transaction's end has the offset, or compaction has removed the record, the next record of the partition comes instead;
    /// `None`: there is none up to the partition's end.
    ///
    /// # Errors
    /// As [`Reader::read`]; or nothing has come in time.
    pub fn record_at(&self, topic: &str, partition: i32, offset: i64) -> anyhow::Result<Option<Record>> {
        let bounds = self.bounds(topic, partition)?;
        if offset >= bounds.to {
            return Ok(None);
        }
        let window = Window {
            from: offset.max(bounds.from),
            ..bounds
        };
        let mut found = None;
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let read = self.read(topic, &[window], deadline, &mut |seen| {
            found = Some(seen.to_record(topic));
            Visit::Stop
        })?;
        if read == Read::TimeOver {
            bail!("the record was not read in time");
        }
        Ok(found)
    }
}
