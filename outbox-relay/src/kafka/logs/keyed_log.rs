//! Reads a compacted topic of one partition. Several relays keep records in it, under keys that begin with the relay's name.

use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::planted;
use crate::kafka::client::KafkaSettings;
use crate::kafka::client::ReaderContext;
use crate::kafka::client::ask;
use crate::kafka::topics::wait_until_committed;
use crate::process::stop::RelayError;
use kafka_client::{Next, TopicReader};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const READ_STALL_MAX: Duration = Duration::from_secs(30);

/// A compacted topic of one partition.
#[derive(Clone, Copy, Debug)]
pub struct KeyedLog<'a> {
    pub settings: &'a KafkaSettings,
    pub topic: &'a str,
}

/// Takes the key and the value of a record.
pub(crate) type OnRecord<'e> = dyn FnMut(&str, Option<&[u8]>) -> anyhow::Result<()> + 'e;

impl KeyedLog<'_> {
    /// Gives the committed records whose key begins with `prefix` to `on_record`, in their order. The value of a tombstone is `None`. The topic must exist.
    ///
    /// It reads up to the end that a read_uncommitted reader sees when the read begins. So no open transaction can hide a record. If it is called after
    /// fencing, it reads every record of this relay. Blocks.
    ///
    /// # Errors
    /// [`crate::process::stop::Stop::TransactionHangs`], or an error of `on_record`. Any other error is worth another try.
    pub fn read(
        &self,
        prefix: &str,
        gives_up: &dyn Fn() -> bool,
        on_record: &mut OnRecord<'_>,
    ) -> Result<(), RelayError> {
        let committed = self.open("read_committed")?;
        let uncommitted = self.open("read_uncommitted")?;
        let (low, end) = self.watermarks(&uncommitted)?;
        wait_until_committed(self.settings, &committed, self.topic, 0, end, gives_up)?;
        if low >= end {
            return Ok(());
        }
        let reader = TopicReader::start(&committed, self.topic, &[(0, low)])?;
        let mut moved_at = Instant::now();
        loop {
            match reader
                .next(Duration::from_millis(100))
                .with_context(|| self.cannot("read"))?
            {
                // A broker that lags behind reports the end of the topic too early.
                Next::End { offset, .. } if offset >= end || planted::believes_any_end() => return Ok(()),
                Next::End { .. } | Next::Nothing => {}
                Next::Record(record) => {
                    moved_at = Instant::now();
                    let key = record.key().and_then(|key| std::str::from_utf8(key).ok());
                    if let Some(key) = key.filter(|key| key.starts_with(prefix)) {
                        on_record(key, record.value())?;
                    }
                }
            }
            if gives_up() {
                return Err(anyhow::anyhow!("told to stop").into());
            }
            if moved_at.elapsed() >= READ_STALL_MAX {
                return Err(anyhow::anyhow!("topic `{}` gives nothing", self.topic).into());
            }
        }
    }

    fn open(&self, isolation_level: &str) -> anyhow::Result<BaseConsumer<ReaderContext>> {
        Ok(self.settings.open_reader(isolation_level)?)
    }

    fn watermarks(&self, reader: &BaseConsumer<ReaderContext>) -> anyhow::Result<(i64, i64)> {
        ask(reader, REQUEST_TIMEOUT, |timeout| {
            reader.fetch_watermarks(self.topic, 0, timeout)
        })
        .with_context(|| self.cannot("read the end of"))
    }

    fn cannot(&self, what: &str) -> String {
        format!("cannot {what} topic `{}`", self.topic)
    }
}
