//! `parked retry`: tries again to publish parked rows, in the order of their positions.
//!
//! A row's record and the tombstone of its entry are in one Kafka transaction. So after a kill at any moment, the row is either parked or published. If a row
//! stays parked, the later parked rows of its key stay as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use events::Position;
use service::Shutdown;

use super::parked_row::{complete_from_table, encode_row};
use super::{Session, find_parked_row};
use crate::commands::failed_command;
use crate::continuity::checkpoint::Checkpoint;
use crate::intake::{RecordWriter, Written};
use crate::kafka::{KnownRoutes, Publisher, RefusedRecord};
use crate::parking::keys::TopicKeyHash;
use crate::parking::log::read_entries_off_thread;
use crate::parking::record::{Because, Entry};
use crate::parking::send::send_entry;
use crate::parking::topic::entry_bytes_max;
use crate::process::row_name::RowPosition;
use crate::process::stop::{RelayError, Stop};
use crate::relay::keepalive::{UntilShutdown, keep_stream_alive_during};
use crate::settings::Config;
use crate::topics::checkpoint_topic::commit_checkpoint;
use crate::topics::destination;
use outbox_router::RowScratch;
use pg_replication::pgoutput::Tuple;

/// How many rows and bytes one Kafka transaction has at most, about.
const TRANSACTION_ROWS: usize = 500;
const TRANSACTION_BYTES: usize = 8 << 20;
/// How often we begin again because the broker refused a record. Each time we know one more record that must not be sent.
const ATTEMPTS_MAX: usize = 100;
/// How often we begin again because a topic was not as we expected. For example it takes smaller batches than the producers make.
const TOPIC_ATTEMPTS_MAX: usize = 5;

/// Which rows to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    One(RowPosition),
}

/// Marks an error of a question about a topic. It is worth another try, with new producers.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a topic's settings")]
struct TopicQuestionFailed;

/// What became of the rows.
#[derive(Clone, Copy, Debug, Default)]
struct Retried {
    published: usize,
    stayed: usize,
}

/// Publishes what can be published now.
///
/// # Errors
/// Rows that were to be published stay parked, a relay runs, or nothing can be done now.
pub async fn retry(config: &Config, which: Which, shutdown: &Shutdown) -> Result<String, RelayError> {
    let mut retried = Retried::default();
    for attempts in 1..=ATTEMPTS_MAX {
        match attempt(config, which, &mut retried, shutdown).await {
            // Now we know that record, and its row stays parked with the broker's reason.
            Err(RelayError::Transient(err)) if RefusedRecord::cause_of(&err).is_some() => {
                tracing::info!(
                    reason = format!("{err:#}"),
                    "the broker refused a record; beginning again without it"
                );
                retried.stayed = 0;
            }
            Err(RelayError::Transient(err)) if err.is::<TopicQuestionFailed>() && attempts <= TOPIC_ATTEMPTS_MAX => {
                tracing::info!(reason = format!("{err:#}"), "beginning again");
                retried.stayed = 0;
            }
            Err(err) => return Err(err),
            Ok(()) => {
                let Retried { published, stayed } = retried;
                let report = format!("{published} rows are published, {stayed} stay parked\n");
                if stayed == 0 {
                    return Ok(report);
                }
                let hint = "`outbox-relay parked list` says why";
                return Err(anyhow::anyhow!("{}; {hint}", report.trim_end()).into());
            }
        }
    }
    Err(anyhow::anyhow!(
        "the broker refuses one record after the other; {} rows are published",
        retried.published
    )
    .into())
}

async fn attempt(config: &Config, which: Which, retried: &mut Retried, shutdown: &Shutdown) -> Result<(), RelayError> {
    let Session {
        mut stream,
        publisher,
        checkpoint,
        system,
    } = Session::open(config, shutdown).await?;
    let work = async {
        let mut retry = Retry::new(config, publisher, checkpoint, retried).await?;
        retry.retry_rows(which).await
    };
    let mut until_told = shutdown.clone();
    let outcome = keep_stream_alive_during(&mut stream, work, &mut until_told).await;
    stream.close().await;
    match outcome? {
        UntilShutdown::Done(Ok(())) => Ok(()),
        UntilShutdown::Done(Err(RelayError::Transient(err))) if RefusedRecord::cause_of(&err).is_some() => {
            Err(err.into())
        }
        UntilShutdown::Done(Err(err)) => {
            Err(failed_command::end_failed_transaction(config, &system.identifier, err).await)
        }
        UntilShutdown::ShuttingDown => {
            let told_to_stop = anyhow::anyhow!("told to stop; what is not published yet stays parked").into();
            Err(failed_command::end_failed_transaction(config, &system.identifier, told_to_stop).await)
        }
    }
}

fn mark_topic_question(err: RelayError) -> RelayError {
    match err {
        RelayError::Transient(err) => err.context(TopicQuestionFailed).into(),
        stop => stop,
    }
}

struct Retry<'a> {
    config: &'a Config,
    publisher: Publisher,
    checkpoint: Checkpoint,
    retried: &'a mut Retried,
    writer: RecordWriter,
    known_routes: KnownRoutes,
    scratch: RowScratch,
    entry_bytes_max: usize,
    entries: BTreeMap<RowPosition, Entry>,
    /// Keys of rows that stay parked. Their later rows stay too.
    blocked_keys: BTreeSet<TopicKeyHash>,
    open_rows: usize,
    open_bytes: usize,
    /// How many rows the open transaction publishes.
    open_published: usize,
}

impl<'a> Retry<'a> {
    async fn new(
        config: &'a Config,
        publisher: Publisher,
        checkpoint: Checkpoint,
        retried: &'a mut Retried,
    ) -> Result<Self, RelayError> {
        let entries = read_entries_off_thread(config).await?;
        let entry_bytes_max = if entries.is_empty() {
            0
        } else {
            entry_bytes_max(config).await.map_err(mark_topic_question)?
        };
        Ok(Self {
            config,
            publisher,
            checkpoint,
            retried,
            writer: RecordWriter::for_parked_rows(config),
            known_routes: KnownRoutes::default(),
            scratch: RowScratch::default(),
            entry_bytes_max,
            entries,
            blocked_keys: BTreeSet::new(),
            open_rows: 0,
            open_bytes: 0,
            open_published: 0,
        })
    }

    async fn retry_rows(&mut self, which: Which) -> Result<(), RelayError> {
        let wanted: Vec<RowPosition> = match which {
            Which::All => self.entries.keys().copied().collect(),
            Which::One(position) => {
                let entry = find_parked_row(&self.entries, position)?;
                let mut before = self.entries.values().take_while(|other| other.position < position);
                if let Some(first) =
                    before.find(|other| other.topic_key.is_some() && other.topic_key == entry.topic_key)
                {
                    return Err(Stop::Config {
                        what: format!(
                            "nothing was changed: the row at {} of the same key is parked before it; retry or discard that one first",
                            first.position
                        ),
                    }
                    .into());
                }
                vec![position]
            }
        };
        for position in wanted {
            self.retry_row(position).await?;
            if self.open_rows >= TRANSACTION_ROWS || self.open_bytes >= TRANSACTION_BYTES {
                self.commit().await?;
            }
        }
        if self.open_rows > 0 {
            self.commit().await?;
        }
        Ok(())
    }

    async fn retry_row(&mut self, position: RowPosition) -> Result<(), RelayError> {
        let Some(mut entry) = self.entries.get(&position).cloned() else {
            return Ok(());
        };
        if entry
            .topic_key
            .is_some_and(|topic_key| self.blocked_keys.contains(&topic_key))
        {
            self.retried.stayed += 1;
            return Ok(());
        }
        let before = entry.clone();
        match self.write(&mut entry).await? {
            Ok(bytes) => {
                send_entry(&mut self.publisher, self.config, position, None).await?;
                self.entries.remove(&position);
                self.open_rows += 1;
                self.open_bytes += bytes;
                self.open_published += 1;
                tracing::info!(position = %position, id = before.id.as_deref().unwrap_or("none"), "publishing a parked row");
            }
            Err(reason) => {
                self.retried.stayed += 1;
                self.blocked_keys.extend(entry.topic_key);
                let mut renewed = Entry {
                    reason,
                    parked_because: Because::Poison,
                    ..before.clone()
                };
                let key_bytes = Entry::record_key(&self.config.checkpoint_key(), &position).len();
                let value = renewed.fit(self.entry_bytes_max.saturating_sub(key_bytes));
                tracing::warn!(position = %position, reason = renewed.reason, "a row stays parked");
                if let Some(value) = value.filter(|_| renewed != before) {
                    send_entry(&mut self.publisher, self.config, position, Some(&value)).await?;
                    self.open_rows += 1;
                    self.open_bytes += value.len();
                }
            }
        }
        Ok(())
    }

    /// Routes a row and hands it to the publisher. Returns the row's bytes, or why it cannot become a record.
    async fn write(&mut self, entry: &mut Entry) -> Result<Result<usize, String>, RelayError> {
        if let Err(reason) = complete_from_table(self.config, entry).await? {
            return Ok(Err(reason));
        }
        let (plan, column_count, bytes) = match encode_row(self.config, &entry.row) {
            Ok(row) => row,
            Err(reason) => return Ok(Err(reason)),
        };
        let position = Position {
            commit_lsn: entry.position.commit_lsn.0,
            index: entry.position.index,
            commit_timestamp_us: entry.committed_us,
        };
        let tuple = Tuple::from_encoded(column_count, &bytes);
        loop {
            let (known_routes, publisher) = (&self.known_routes, &mut self.publisher);
            match self
                .writer
                .write(&plan, &tuple, &mut self.scratch, position, known_routes, publisher)
            {
                Ok(Written::Sent) => return Ok(Ok(bytes.len())),
                Ok(Written::QueueFull) => {
                    self.publisher.poll();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(Written::UnknownTopic { route, topic }) => {
                    let lineage = &mut self.checkpoint.lineage;
                    let found = destination::find_destination(self.config, lineage, &route, &topic).await;
                    let found = found.map_err(mark_topic_question)?;
                    self.known_routes.insert(route, found);
                }
                Err(RelayError::Stop(stop)) if stop.row_position().is_some() => return Ok(Err(stop.row_reason())),
                Err(err) => return Err(err),
            }
        }
    }

    async fn commit(&mut self) -> Result<(), RelayError> {
        self.checkpoint.parking.rows = self.entries.len() as u64;
        self.checkpoint.incarnation = uuid::Uuid::new_v4().to_string();
        commit_checkpoint(&mut self.publisher, self.config, &self.checkpoint).await?;
        self.retried.published += std::mem::take(&mut self.open_published);
        (self.open_rows, self.open_bytes) = (0, 0);
        if self.publisher.is_disturbed() {
            // librdkafka may have sent the EndTxn twice, and the late one could end the next transaction.
            return Err(anyhow::anyhow!("the connection to kafka was disturbed; run this again").into());
        }
        Ok(())
    }
}
