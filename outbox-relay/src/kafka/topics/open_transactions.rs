//! Waits for open transactions to end, and recognises a transaction that will never end.
//!
//! An open transaction hides its records from a read_committed reader, and all records behind them.
//!
//! A transaction ends with a marker in each of its partitions. Kafka can lose a marker: brokers of 4.2 to 4.4 leave it out where a partition has no
//! leader at that moment, and call the transaction complete (KAFKA-20734). After that nobody ends the transaction in that partition: its records
//! stay hidden, and all records behind them. A client cannot see whose transaction it is. But the brokers end every transaction that they know of
//! within their `transaction.max.timeout.ms`. So a transaction that stays open for longer has lost its marker.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::kafka::client::KafkaSettings;
use crate::kafka::client::ReaderContext;
use crate::kafka::client::ask;
use crate::process::stop::{RelayError, Stop};
use kafka_client::ends_by;
use kafka_client::{Next, TopicReader};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const READ_STALL_MAX: Duration = Duration::from_secs(30);
const ASK_INTERVAL: Duration = Duration::from_millis(20);
/// Each question goes to every broker twice, so we ask less often the longer we have waited.
const ASK_INTERVAL_MAX: Duration = Duration::from_millis(500);
/// A transaction whose time is over may stay open for so long until the brokers notice it and write its end.
const END_IS_WRITTEN_WITHIN: Duration = Duration::from_secs(15);
/// Stands for an offset that nobody knows, because the partition has no leader.
const UNKNOWN_OFFSET: i64 = -1;
/// How long we wait before the first log line about it.
const LOG_AFTER: Duration = Duration::from_secs(1);
/// How often the log line comes again.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(60);

impl KafkaSettings {
    /// A transaction that is open for longer than this has lost its end. Brokers look every ten seconds for transactions that are too old, and then
    /// need time to write their ends.
    #[must_use]
    pub fn transactions_end_within(&self) -> Duration {
        let allowed = self.transaction_max_timeout;
        allowed + (allowed / 15).max(END_IS_WRITTEN_WITHIN)
    }
}

/// Waits until a read_committed reader sees the partition up to `end`. Blocks.
///
/// # Errors
/// [`Stop::TransactionHangs`]; anything else is worth another try.
pub(in crate::kafka) fn wait_until_committed(
    settings: &KafkaSettings,
    committed: &BaseConsumer<ReaderContext>,
    topic: &str,
    partition: i32,
    end: i64,
    gives_up: &dyn Fn() -> bool,
) -> Result<(), RelayError> {
    let mut wait = Wait::default();
    loop {
        let (_, committed_end) = ask(committed, REQUEST_TIMEOUT, |timeout| {
            committed.fetch_watermarks(topic, partition, timeout)
        })
        .with_context(|| format!("cannot read the end of topic `{topic}`"))?;
        if committed_end >= end {
            return Ok(());
        }
        wait.sleep_before_next_question(settings, topic, partition, committed_end, gives_up)?;
    }
}

/// Waits until a read_committed reader sees these partitions up to their ends, as the ends were when we first asked for them. Blocks.
///
/// To be called after fencing, when no transaction of the relay's own is open. Suppose that a transaction of our producer's id has lost its end in a
/// partition, and the producer goes on there. Then the end of its next transaction ends the lost one too: what was aborted would be committed, or the
/// other way round. A partition without a leader may hide such a transaction as well, so we wait for the leader.
///
/// # Errors
/// [`Stop::TransactionHangs`]; anything else is worth another try.
pub(in crate::kafka) fn wait_until_nothing_is_open(
    settings: &KafkaSettings,
    client: &BaseConsumer<ReaderContext>,
    partitions: &BTreeMap<String, i32>,
    gives_up: &dyn Fn() -> bool,
) -> Result<(), RelayError> {
    let all = partitions.iter().map(|(topic, count)| (topic.clone(), 0..*count));
    // The partitions that we still wait for, each with its end when we first asked.
    let mut first_ends: BTreeMap<(String, i32), Option<i64>> = all
        .flat_map(|(topic, ids)| ids.map(move |id| ((topic.clone(), id), None)))
        .collect();
    let mut wait = Wait::default();
    loop {
        let asked = first_ends.keys().map(|(topic, partition)| (topic.as_str(), *partition));
        let mut readable_ends = BTreeMap::new();
        for ends in ends_by(client, asked)? {
            let topic_partition = (ends.topic, ends.partition);
            if let Some(first_end) = first_ends.get_mut(&topic_partition) {
                let first_end = *first_end.get_or_insert(ends.all);
                if ends.stable >= first_end {
                    first_ends.remove(&topic_partition);
                } else {
                    readable_ends.insert(topic_partition, ends.stable);
                }
            }
        }
        let waits_for = readable_ends.keys().next().or_else(|| first_ends.keys().next());
        let Some((topic, partition)) = waits_for.cloned() else {
            return Ok(());
        };
        // A partition without a leader gives no offset. It gets no new records either.
        let hidden_from = readable_ends
            .get(&(topic.clone(), partition))
            .copied()
            .unwrap_or(UNKNOWN_OFFSET);
        wait.sleep_before_next_question(settings, &topic, partition, hidden_from, gives_up)?;
    }
}

/// Somebody gave up waiting while a transaction was open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an open transaction hides partition {partition} of topic `{topic}` from offset {offset} on")]
pub(crate) struct StillHidden {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// The first offset that is hidden.
    pub(crate) offset: i64,
}

/// How long we have waited for one open transaction.
#[derive(Debug, Default)]
struct Wait {
    transaction: Option<OpenTransaction>,
    log_lines: u32,
}

/// The transaction that we wait for. Records of the partition are hidden from `offset` on.
#[derive(Debug)]
struct OpenTransaction {
    topic: String,
    partition: i32,
    offset: i64,
    /// When we saw it first.
    seen_at: Instant,
}

impl Wait {
    /// Sleeps until it is time to ask again. Writes a log line when the wait is long.
    fn sleep_before_next_question(
        &mut self,
        settings: &KafkaSettings,
        topic: &str,
        partition: i32,
        offset: i64,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<(), RelayError> {
        if gives_up() {
            let told_to_stop = if offset == UNKNOWN_OFFSET {
                anyhow::anyhow!("told to stop")
            } else {
                anyhow::Error::new(StillHidden {
                    topic: topic.to_owned(),
                    partition,
                    offset,
                })
            };
            return Err(told_to_stop.into());
        }
        let seen_at = match &self.transaction {
            Some(known) if (known.topic.as_str(), known.partition, known.offset) == (topic, partition, offset) => {
                known.seen_at
            }
            // The transaction that we waited for has ended. Now we wait for another one.
            _ => {
                let seen_at = Instant::now();
                *self = Self {
                    transaction: Some(OpenTransaction {
                        topic: topic.to_owned(),
                        partition,
                        offset,
                        seen_at,
                    }),
                    log_lines: 0,
                };
                seen_at
            }
        };
        let open_for = seen_at.elapsed();
        if offset != UNKNOWN_OFFSET && open_for > settings.transactions_end_within() {
            return Err(transaction_hangs(settings, topic, partition, offset).into());
        }
        if open_for > LOG_AFTER + LOG_AGAIN_AFTER * self.log_lines {
            self.log_lines += 1;
            let seconds = open_for.as_secs();
            if offset == UNKNOWN_OFFSET {
                tracing::warn!(
                    topic,
                    partition,
                    seconds,
                    "waiting for a partition that has no leader, or whose leader does not answer"
                );
            } else {
                tracing::info!(
                    topic,
                    partition,
                    offset,
                    seconds,
                    "waiting for an open transaction, which hides what lies behind it"
                );
            }
        }
        std::thread::sleep((open_for / 10).clamp(ASK_INTERVAL, ASK_INTERVAL_MAX));
        Ok(())
    }
}

/// Whether a record from `offset` to the end of the partition has a key that `is_wanted`. Reads hidden records as well. Blocks.
///
/// # Errors
/// Worth another try.
pub(crate) fn partition_has_key(
    settings: &KafkaSettings,
    (topic, partition, offset): (&str, i32, i64),
    is_wanted: impl Fn(&str) -> bool,
    gives_up: &dyn Fn() -> bool,
) -> Result<bool, RelayError> {
    let uncommitted = settings.open_reader("read_uncommitted")?;
    let (_, end) = ask(&uncommitted, REQUEST_TIMEOUT, |timeout| {
        uncommitted.fetch_watermarks(topic, partition, timeout)
    })
    .with_context(|| format!("cannot read the end of topic `{topic}`"))?;
    let reader = TopicReader::start(&uncommitted, topic, &[(partition, offset)])?;
    let mut moved_at = Instant::now();
    while moved_at.elapsed() < READ_STALL_MAX && !gives_up() {
        match reader.next(Duration::from_millis(100))? {
            Next::Record(record) => {
                moved_at = Instant::now();
                let key = record.key().and_then(|key| std::str::from_utf8(key).ok());
                if key.is_some_and(&is_wanted) {
                    return Ok(true);
                }
            }
            Next::End { offset, .. } if offset >= end => return Ok(false),
            Next::End { .. } | Next::Nothing => {}
        }
    }
    Err(anyhow::anyhow!("topic `{topic}` gives nothing from offset {offset} on").into())
}

/// [`Stop::TransactionHangs`], which began at `offset`.
fn transaction_hangs(settings: &KafkaSettings, topic: &str, partition: i32, offset: i64) -> Stop {
    Stop::TransactionHangs {
        topic: topic.to_owned(),
        partition,
        offset,
        bootstrap_servers: settings.client.bootstrap_servers.clone(),
        allowed_minutes: settings.transaction_max_timeout.as_secs() / 60,
    }
}
