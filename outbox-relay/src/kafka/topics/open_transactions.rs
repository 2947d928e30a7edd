//! Waiting for open transactions, which hide from a read_committed reader what lies behind them, and telling one that Kafka has forgotten.
//!
//! A transaction ends with a marker in each of its partitions. Kafka can lose one: brokers of 4.2 to 4.4 leave it out where a partition has no
//! leader at that moment, and call the transaction complete (KAFKA-20734). Nobody ends it after that: the records of that partition stay
//! hidden, and all that come behind them. No client can tell whose transaction it is; but every one that the brokers know of ends by
//! their `transaction.max.timeout.ms`, so one that stays open for longer is lost.

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
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// A look asks every broker twice, so that it is taken less often the longer it takes.
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(500);
/// How long after its time is over a transaction may take to end.
const ENDS_WRITTEN_WITHIN: Duration = Duration::from_secs(15);
/// In place of an offset, where the partition has no leader.
const UNKNOWN: i64 = -1;
/// Until the wait is said, and then said again.
const SAID_AFTER: Duration = Duration::from_secs(1);
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

impl KafkaSettings {
    /// A transaction that is open for longer than this has lost its end. Brokers look for those that are too old every ten seconds, and then
    /// have to write their ends.
    #[must_use]
    pub fn transactions_end_within(&self) -> Duration {
        let allowed = self.transaction_max_timeout;
        allowed + (allowed / 15).max(ENDS_WRITTEN_WITHIN)
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
        wait.go_on(settings, topic, partition, committed_end, gives_up)?;
    }
}

/// Waits until readers of what is committed see these partitions up to where they ended when they were first asked about. Blocks.
///
/// To be called after fencing, when no transaction of the relay's own is open. A producer that goes on in a partition where a transaction of its id
/// has lost its end would end that, too, by the end of its next one there: what was aborted would be committed, or the other way round.
/// A partition that has no leader may have one that nobody has told yet.
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
    let mut open: BTreeMap<(String, i32), Option<i64>> = all
        .flat_map(|(topic, ids)| ids.map(move |id| ((topic.clone(), id), None)))
        .collect();
    let mut wait = Wait::default();
    loop {
        let places = open.keys().map(|(topic, partition)| (topic.as_str(), *partition));
        let mut stable = BTreeMap::new();
        for ends in ends_by(client, places)? {
            let place = (ends.topic, ends.partition);
            if let Some(end) = open.get_mut(&place) {
                let end = *end.get_or_insert(ends.all);
                if ends.stable >= end {
                    open.remove(&place);
                } else {
                    stable.insert(place, ends.stable);
                }
            }
        }
        let Some((topic, partition)) = stable.keys().next().or_else(|| open.keys().next()).cloned() else {
            return Ok(());
        };
        // Without a leader it tells nothing, and gets no records either.
        let from = stable.get(&(topic.clone(), partition)).copied().unwrap_or(UNKNOWN);
        wait.go_on(settings, &topic, partition, from, gives_up)?;
    }
}

/// The patience of a wait for the first open transaction.
#[derive(Debug, Default)]
struct Wait {
    /// The partition, the offset from which on records are hidden, and since when that is known.
    first: Option<(String, i32, i64, Instant)>,
    said: u32,
}

impl Wait {
    fn go_on(
        &mut self,
        settings: &KafkaSettings,
        topic: &str,
        partition: i32,
        from: i64,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<(), RelayError> {
        if gives_up() {
            return Err(anyhow::anyhow!("told to stop").into());
        }
        let since = match &self.first {
            Some((was_topic, was_partition, was_from, since))
                if (was_topic.as_str(), *was_partition, *was_from) == (topic, partition, from) =>
            {
                *since
            }
            // That one has ended, and another follows.
            _ => {
                let now = Instant::now();
                *self = Self {
                    first: Some((topic.to_owned(), partition, from, now)),
                    said: 0,
                };
                now
            }
        };
        let open_for = since.elapsed();
        if from != UNKNOWN && open_for > settings.transactions_end_within() {
            return Err(transaction_hangs(settings, topic, partition, from).into());
        }
        if open_for > SAID_AFTER + SAID_AGAIN_AFTER * self.said {
            self.said += 1;
            let seconds = open_for.as_secs();
            if from == UNKNOWN {
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
                    offset = from,
                    seconds,
                    "waiting for an open transaction, which hides what lies behind it"
                );
            }
        }
        std::thread::sleep((open_for / 10).clamp(LOOK_INTERVAL, LOOK_INTERVAL_MAX));
        Ok(())
    }
}

/// Whether one of the records from `offset` to the end of the partition, which may be hidden, has a key that `is_wanted`. Blocks.
///
/// # Errors
/// Worth another try.
pub(crate) fn holds_key(
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
