//! Reads a topic by Kafka's own console consumer, which shares no code with ours.

use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::process::{Ending, Process};
use crate::scratch::Scratch;

/// The console consumer prints this for a null key or value: U+2400, which our JSON never contains.
const NULL: &str = "\u{2400}";
/// If the caller knows that the topic has a record, the consumer must print one within this time.
const FIRST_RECORD_DEADLINE: Duration = Duration::from_secs(60);

/// Which records a consumer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Records of committed transactions.
    Committed,
    /// All records, also those of aborted and open transactions.
    Uncommitted,
}

/// One record of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Names and values, in the order of the record.
    pub headers: Vec<(String, String)>,
    pub key: Option<String>,
    pub value: Option<String>,
}

impl Record {
    /// The value of the first header with this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The value as JSON.
    ///
    /// # Errors
    /// It is null, or not JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        let value = self.value.as_deref().context("a null value")?;
        serde_json::from_str(value).with_context(|| format!("not JSON: {value}"))
    }
}

/// A running console consumer. Dropping it ends it.
#[derive(Debug)]
pub struct Consumer {
    process: Process,
    directory: Scratch,
}

impl Consumer {
    pub(crate) fn start(
        mut java: Command,
        bootstrap_servers: &str,
        topic: &str,
        isolation: Isolation,
    ) -> anyhow::Result<Self> {
        let directory = Scratch::temporary("outbox-consumer-")?;
        let isolation = match isolation {
            Isolation::Committed => "read_committed",
            Isolation::Uncommitted => "read_uncommitted",
        };
        java.arg("org.apache.kafka.tools.consumer.ConsoleConsumer")
            .args(["--bootstrap-server", bootstrap_servers, "--topic", topic])
            .args(["--from-beginning", "--isolation-level", isolation])
            .arg("--property")
            .arg(format!("null.literal={NULL}"));
        for printed in ["timestamp", "partition", "offset", "headers", "key", "value"] {
            java.arg("--property").arg(format!("print.{printed}=true"));
        }
        let log = directory.path().join("consumer.log");
        java.stdout(File::create(directory.path().join("records"))?)
            .stderr(File::create(&log)?);
        let process = Process::spawn_with_stdout("console consumer", &mut java, &log, Ending::Kill)?;
        Ok(Self { process, directory })
    }

    /// All records that it has printed so far.
    ///
    /// # Errors
    /// The consumer has ended, or has printed something that is not a record.
    pub fn records(&self) -> anyhow::Result<Vec<Record>> {
        if let Some(status) = self.process.exit_status() {
            bail!("the console consumer ended ({status}): {}", self.process.log_tail(5));
        }
        let text = fs::read(self.directory.path().join("records"))?;
        let text = String::from_utf8(text).context("the console consumer printed no UTF-8")?;
        // The last line may not be complete yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(parse).collect()
    }

    /// Waits until no record has come for `quiet`, and returns all records. For an empty topic this takes a minute, because the consumer might still
    /// be starting.
    ///
    /// # Errors
    /// As [`Consumer::records`].
    pub async fn read_until_quiet(&self, quiet: Duration) -> anyhow::Result<Vec<Record>> {
        let start = Instant::now();
        // The length of the output shows whether records have come. Parsing a large topic again and again would take longer than reading it.
        let (mut printed, mut last_news) = (0, start);
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = fs::metadata(self.directory.path().join("records"))?.len();
            if now > printed {
                (printed, last_news) = (now, Instant::now());
            }
            let patience = if printed > 0 { quiet } else { FIRST_RECORD_DEADLINE };
            if last_news.elapsed() > patience || !self.process.is_running() {
                return self.records();
            }
        }
    }
}

/// Parses a line such as `CreateTime:1795344833217\tPartition:0\tOffset:5\tid:…,eventType:…\tKEY\tVALUE`.
fn parse(line: &str) -> anyhow::Result<Record> {
    let wrong = || format!("no record of the console consumer: {line}");
    let mut fields = line.splitn(6, '\t');
    let mut next = || fields.next().with_context(wrong);
    let (timestamp, partition, offset) = (next()?, next()?, next()?);
    let (headers, key, value) = (next()?, next()?, next()?);
    let number = |text: &str, name: &str| -> anyhow::Result<i64> {
        text.strip_prefix(name)
            .and_then(|rest| rest.parse().ok())
            .with_context(wrong)
    };
    let nullable = |text: &str| (text != NULL).then(|| text.to_owned());
    Ok(Record {
        timestamp_ms: number(timestamp, "CreateTime:")?,
        partition: i32::try_from(number(partition, "Partition:")?)?,
        offset: number(offset, "Offset:")?,
        headers: match headers {
            "NO_HEADERS" => Vec::new(),
            some => some
                .split(',')
                .map(|header| {
                    let (name, value) = header.split_once(':').with_context(wrong)?;
                    Ok((name.to_owned(), value.to_owned()))
                })
                .collect::<anyhow::Result<_>>()?,
        },
        key: nullable(key),
        value: nullable(value),
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_printed_record_is_read_back() {
        let record =
            parse("CreateTime:1795344833217\tPartition:3\tOffset:5\tid:ab-cd,position:0/1:0:7\t42\t{\"a\": \"b\tc\"}")
                .expect("a record");
        assert_eq!(record.partition, 3);
        assert_eq!(record.offset, 5);
        assert_eq!(record.timestamp_ms, 1_795_344_833_217);
        assert_eq!(record.header("position"), Some("0/1:0:7"));
        assert_eq!(record.key.as_deref(), Some("42"));
        assert_eq!(record.value.as_deref(), Some("{\"a\": \"b\tc\"}"));
    }

    #[test]
    fn a_null_value_is_none() {
        let record = parse("CreateTime:1\tPartition:0\tOffset:0\tNO_HEADERS\tk\t\u{2400}").expect("a record");
        assert_eq!(record.value, None);
        assert!(record.headers.is_empty());
    }
}
