//! From frames to records: decodes what was read, routes the rows, hands them to the open Kafka transaction.

pub mod batch;
pub mod existing_rows;
mod paused;
pub(crate) mod poison;

use std::collections::HashMap;

use anyhow::Context;
use events::Position;
use rdkafka::message::OwnedHeaders;

use crate::continuity::checkpoint::Lineage;
use crate::continuity::progress::{Progress, RowFate};
use crate::intake::batch::Batch;
use crate::intake::poison::Judge;
use crate::kafka::{HeaderText, Outgoing, Publisher, Sent, Topics, batch_bytes, with_header};
use crate::outbox::messages::MessageOutbox;
use crate::outbox::publication;
use crate::process::faults::{self, Bug};
use crate::process::row_name::{RowName, RowPlace, RowPosition};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use outbox_router::{Column, InvalidOperation, Plan, PlanError, RouterOptions, RowScratch, partition_of_key};
use pg_replication::Lsn;
use pg_replication::pgoutput::{self, EmittedMessage, Message, RelationMessage, Relations, Tuple};
use pg_replication::{Frame, Frames, POSTGRES_EPOCH_US};

pub use self::paused::Claim;
pub(crate) use self::paused::Claims;

/// Name of the header of a record whose row was parked, and which therefore stands behind later rows than its position says.
const PARKED_HEADER: &str = "parked";

/// Why decoding paused.
#[derive(Debug)]
pub enum Pause {
    /// The buffer holds no further whole frame.
    BufferUsed,
    /// The batch takes no further row.
    BatchFull,
    /// librdkafka takes no further row for now.
    QueueFull,
    /// The next row goes to a topic that is not known yet: the route's value and the topic's name.
    UnknownTopic { route: String, topic: String },
    /// The next row cannot be published, now or ever: [`Stop::poison`] tells its position.
    Poison(Stop),
    /// The next row is to be parked, whether or not it could be published.
    Claimed(Claim),
}

/// A table of the stream.
#[derive(Debug)]
enum Table {
    Outbox(Box<Plan>),
    /// The outbox under the name that it had when its rows were written.
    Renamed(String),
    Other,
}

/// Where an event comes from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// Oid of a table of the stream.
    Table(u32),
    Message,
}

/// The decoding side of a running stream.
pub struct Intake {
    pub progress: Progress,
    pub batch: Batch,
    pub topics: Topics,
    /// How far the stream was read.
    pub received: Lsn,
    /// The server asked for an answer.
    pub reply_requested: bool,
    /// Commit time of the transaction that was read last, microseconds since 1970.
    pub newest_commit_us: i64,
    pub rows_skipped: u64,
    pub(crate) claims: Claims,
    publication: String,
    schema: String,
    table: String,
    /// Of the table that the checkpoint pins; it keeps it under any name.
    outbox_oid: Option<u32>,
    options: RouterOptions,
    tables: HashMap<u32, Table>,
    messages: Option<MessageOutbox>,
    scratch: RowScratch,
    record: RecordWriter,
    commit_lsn: Lsn,
    said_truncated: bool,
}

/// Name of the record header that carries a replay's id.
pub const REPLAY_HEADER: &str = "replay";

/// Turns routed rows into Kafka records; also used for rows that are not from the stream.
#[derive(Debug)]
pub struct RecordWriter {
    position_header: Option<String>,
    /// See [`crate::continuity::checkpoint::Lineage::positions_raised_by`].
    positions_raised_by: u64,
    position: HeaderText,
    /// The id of the replay that the records are of.
    replay: Option<String>,
    judge: Judge,
    /// The rows were parked: their records say so.
    is_retry: bool,
}

/// What became of a row.
#[derive(Debug)]
pub enum Written {
    Sent,
    QueueFull,
    UnknownTopic { route: String, topic: String },
}

impl RecordWriter {
    /// For the rows of the stream.
    #[must_use]
    pub fn new(config: &Config, positions_raised_by: u64) -> Self {
        Self {
            positions_raised_by,
            ..Self::by(config, Judge::new(config, false))
        }
    }

    /// For the rows of the outbox table.
    #[must_use]
    pub fn of_table_rows(config: &Config, positions_raised_by: u64) -> Self {
        Self {
            positions_raised_by,
            ..Self::by(config, Judge::new(config, true))
        }
    }

    /// For records that are published again: without a position, with the replay's id as the header `replay`.
    #[must_use]
    pub fn of_replay(config: &Config, replay: &str) -> Self {
        Self {
            position_header: None,
            replay: Some(replay.to_owned()),
            ..Self::by(config, Judge::new(config, true))
        }
    }

    fn by(config: &Config, judge: Judge) -> Self {
        Self {
            position_header: config.sink.position_header.clone(),
            positions_raised_by: 0,
            position: HeaderText::default(),
            replay: None,
            judge,
            is_retry: false,
        }
    }

    /// For parked rows, at the positions that they had in the stream.
    #[must_use]
    pub fn of_parked_rows(config: &Config) -> Self {
        Self {
            is_retry: true,
            ..Self::new(config, 0)
        }
    }

    /// Routes one row and hands it to the publisher.
    ///
    /// # Errors
    /// The row cannot be a record ([`Stop::Row`], [`Stop::RecordTooLarge`]), or Kafka's client refused it.
    pub fn write(
        &mut self,
        plan: &Plan,
        tuple: &Tuple<'_>,
        scratch: &mut RowScratch,
        position: Position,
        topics: &Topics,
        publisher: &mut Publisher,
    ) -> Result<Written, RelayError> {
        let Self {
            position_header,
            positions_raised_by,
            position: text,
            replay,
            judge,
            is_retry,
        } = self;
        let published_position = Position {
            commit_lsn: position.commit_lsn.saturating_add(*positions_raised_by),
            ..position
        };
        let routed = plan.route(tuple, scratch, |routed, additional| {
            let destination = match topics.get(routed.route) {
                Some(Ok(destination)) => destination,
                Some(Err(why)) => return Err(judge.nowhere(why, position, routed.id).into()),
                None => {
                    return Ok(Written::UnknownTopic {
                        route: routed.route.to_owned(),
                        topic: plan.topic(routed.route),
                    });
                }
            };
            let partitions = destination.partitions;
            let partition = match (routed.partition, &routed.key) {
                (Some(partition), _) if (0..partitions).contains(&partition) => partition,
                (Some(partition), _) => {
                    let topic = &destination.topic;
                    return Err(Stop::Row {
                        row: judge.name(position, Some(routed.id)),
                        what: format!("partition {partition} is not one of the {partitions} of topic `{topic}`"),
                    }
                    .into());
                }
                (None, Some(key)) => partition_of_key(key, partitions),
                // Any partition will do for a row without a key; the id spreads them evenly.
                (None, None) => partition_of_key(routed.id.as_bytes(), partitions),
            };
            let mut headers = with_header(OwnedHeaders::new_with_capacity(4), "id", Some(routed.id.as_bytes()));
            for (name, value) in additional {
                headers = with_header(headers, name, value.as_deref());
            }
            if let Some(name) = position_header {
                headers = with_header(headers, name, Some(text.write(&published_position)));
            }
            if let Some(replay) = replay {
                headers = with_header(headers, REPLAY_HEADER, Some(replay.as_str()));
            }
            if *is_retry {
                headers = with_header(headers, PARKED_HEADER, Some("retry"));
            }
            let bytes = routed.key.as_deref().map_or(0, <[u8]>::len) + routed.value.as_deref().map_or(0, <[u8]>::len);
            let too_large = |judge: &Judge, limit: String| Stop::RecordTooLarge {
                row: judge.name(position, Some(routed.id)),
                topic: destination.topic.clone(),
                size: bytes,
                limit,
            };
            let batch_bytes_max = destination.batch_bytes_max;
            // Counted exactly only where it may matter: headers are read back from C.
            if bytes as u64 > batch_bytes_max / 2
                && batch_bytes(routed.key.as_deref(), routed.value.as_deref(), &headers) > batch_bytes_max
                && !faults::is_planted(Bug::IgnoreDeliveryError)
            {
                let limit =
                    format!("{batch_bytes_max} (max.message.bytes of the topic, which counts headers and framing too)");
                return Err(too_large(judge, limit).into());
            }
            judge.allow(&routed, destination, position)?;
            let outgoing = Outgoing {
                topic: &destination.topic,
                partition,
                key: routed.key.as_deref(),
                value: routed.value.as_deref(),
                timestamp_ms: position.commit_timestamp_us / 1_000,
            };
            match publisher.send(outgoing, headers)? {
                Sent::Queued => Ok(Written::Sent),
                Sent::QueueFull => Ok(Written::QueueFull),
                Sent::TooLarge => {
                    let limit = publisher.message_bytes_max();
                    Err(too_large(judge, format!("{limit} (message.max.bytes of --kafka-property)")).into())
                }
            }
        });
        match routed {
            Ok(outcome) => outcome,
            Err(err) => Err(Stop::Row {
                row: self.judge.name(position, plan.id_of(tuple)),
                what: err.to_string(),
            }
            .into()),
        }
    }
}

impl Intake {
    #[must_use]
    pub fn new(config: &Config, progress: Progress, lineage: &Lineage, transaction_bytes: u64) -> Self {
        Self {
            received: progress.published().lsn,
            progress,
            batch: Batch::new(transaction_bytes),
            topics: Topics::default(),
            reply_requested: false,
            newest_commit_us: 0,
            rows_skipped: 0,
            claims: Claims::default(),
            publication: config.source.publication.clone(),
            schema: config.outbox.schema.clone(),
            table: config.outbox.table.clone(),
            outbox_oid: lineage.outbox.as_deref().and_then(publication::outbox_oid),
            options: config.outbox.router.clone(),
            tables: HashMap::new(),
            messages: MessageOutbox::of(config),
            scratch: RowScratch::default(),
            record: RecordWriter::new(config, lineage.positions_raised_by),
            commit_lsn: Lsn::INVALID,
            said_truncated: false,
        }
    }

    /// Decodes as much of `buffer` as can be published now. Returns the bytes that are done with, and why it paused. A frame
    /// that it pauses at stays in the buffer, untouched.
    ///
    /// # Errors
    /// The stream contradicts itself or ended; what was decoded before stays decoded.
    pub fn decode(&mut self, buffer: &[u8], publisher: &mut Publisher) -> Result<(usize, Pause), RelayError> {
        let mut frames = Frames::new(buffer);
        loop {
            if self.batch.is_full() {
                return Ok((frames.consumed(), Pause::BatchFull));
            }
            let Some((frame, length)) = frames.peek().context("replication stream")? else {
                return Ok((frames.consumed(), Pause::BufferUsed));
            };
            let pause = match frame {
                Frame::Data(bytes) => self.message(bytes, publisher),
                Frame::KeepAlive {
                    wal_end,
                    reply_requested,
                } => {
                    self.progress.keepalive(wal_end);
                    self.received = self.received.max(wal_end);
                    self.reply_requested |= reply_requested;
                    Ok(None)
                }
                Frame::Notice { code, message } => self.notice(code, message).map(|()| None),
                Frame::Error { code, message } => Err(server_error(&self.publication, code, message)),
                Frame::Done => Err(anyhow::anyhow!("the server ended the stream").into()),
            };
            match pause {
                Ok(None) => frames.advance(length),
                Ok(Some(pause)) => return Ok((frames.consumed(), pause)),
                Err(RelayError::Stop(stop)) if stop.poison().is_some() => {
                    return Ok((frames.consumed(), Pause::Poison(stop)));
                }
                Err(err) => return Err(err),
            }
        }
    }

    fn message(&mut self, bytes: &[u8], publisher: &mut Publisher) -> Result<Option<Pause>, RelayError> {
        match pgoutput::decode(bytes).context("replication stream")? {
            Message::Insert { relation, tuple } => {
                return self.row(Origin::Table(relation), &tuple, bytes.len(), publisher);
            }
            Message::Emitted(emitted) => return self.emitted(&emitted, publisher),
            Message::Begin {
                commit_lsn,
                commit_timestamp,
            } => {
                self.progress.begin(commit_lsn).context("replication stream")?;
                self.commit_lsn = commit_lsn;
                self.newest_commit_us = commit_timestamp + POSTGRES_EPOCH_US;
            }
            Message::Commit { commit_lsn, end_lsn } => {
                self.progress
                    .commit(commit_lsn, end_lsn)
                    .context("replication stream")?;
                self.received = self.received.max(end_lsn);
            }
            Message::Relation(relation) => self.relation(&relation)?,
            Message::Update { relation } => self.update(relation)?,
            Message::Truncate(relations) => self.truncated(relations),
            // A purge of the outbox: no event.
            Message::Delete { .. } | Message::Other => {}
        }
        Ok(None)
    }

    fn row(
        &mut self,
        origin: Origin,
        tuple: &Tuple<'_>,
        bytes: usize,
        publisher: &mut Publisher,
    ) -> Result<Option<Pause>, RelayError> {
        let plan = match origin {
            Origin::Table(relation) => match self.tables.get(&relation) {
                Some(Table::Outbox(plan)) => plan,
                Some(Table::Other) => return Ok(None),
                Some(Table::Renamed(name)) => {
                    return self.ensure_is_published(name).map(|()| None);
                }
                None => return Err(anyhow::anyhow!("the stream did not describe table {relation}").into()),
            },
            Origin::Message => match &self.messages {
                Some(outbox) => outbox.plan(),
                None => return Ok(None),
            },
        };
        match self.progress.row().context("replication stream")? {
            RowFate::Skip => {
                faults::point("skip")?;
                self.rows_skipped += 1;
            }
            RowFate::Publish { index } => {
                let position = Position {
                    commit_lsn: self.commit_lsn.0,
                    index,
                    commit_timestamp_us: self.newest_commit_us,
                };
                if self.claims.any
                    && let Some(claim) = self.claims.on(plan, tuple, &mut self.scratch, &self.topics, position)
                {
                    return Ok(Some(Pause::Claimed(claim)));
                }
                match self
                    .record
                    .write(plan, tuple, &mut self.scratch, position, &self.topics, publisher)?
                {
                    Written::Sent => self.batch.add(bytes, self.newest_commit_us),
                    Written::QueueFull => return Ok(Some(Pause::QueueFull)),
                    Written::UnknownTopic { route, topic } => return Ok(Some(Pause::UnknownTopic { route, topic })),
                }
            }
        }
        self.progress.row_decoded().context("replication stream")?;
        Ok(None)
    }

    /// A message with the outbox' prefix is a row of its transaction, in its place among the others.
    fn emitted(
        &mut self,
        emitted: &EmittedMessage<'_>,
        publisher: &mut Publisher,
    ) -> Result<Option<Pause>, RelayError> {
        let Some(outbox) = &mut self.messages else {
            return Ok(None);
        };
        if !outbox.takes(emitted) {
            return Ok(None);
        }
        let (mut values, mut column_count) = (outbox.take_buffer(), 0);
        // What is published already need not be understood again.
        if let RowFate::Publish { index } = self.progress.row().context("replication stream")? {
            let position = RowPosition {
                commit_lsn: self.commit_lsn,
                index,
            };
            match outbox.read(emitted.content, &mut values) {
                Ok(columns) => column_count = columns,
                Err(err) => {
                    outbox.give_back(values);
                    return Err(Stop::Row {
                        row: RowName {
                            place: RowPlace::Stream(position),
                            id: None,
                        },
                        what: format!("it is a message, and {err}"),
                    }
                    .into());
                }
            }
        }
        let tuple = Tuple::from_encoded(column_count, &values);
        let pause = self.row(Origin::Message, &tuple, emitted.content.len(), publisher);
        if let Some(outbox) = &mut self.messages {
            outbox.give_back(values);
        }
        pause
    }

    /// Sent before a table's first row of a session and after each change of its columns.
    fn relation(&mut self, relation: &RelationMessage<'_>) -> Result<(), RelayError> {
        if relation.schema != self.schema || relation.name != self.table {
            if self.outbox_oid == Some(relation.oid) && !faults::is_planted(Bug::KnowOutboxByName) {
                let name = format!("{}.{}", relation.schema, relation.name);
                self.tables.insert(relation.oid, Table::Renamed(name));
                return Ok(());
            }
            tracing::debug!(
                table = relation.name,
                "the publication has another table; its rows are ignored"
            );
            self.tables.insert(relation.oid, Table::Other);
            return Ok(());
        }
        let columns: Result<Vec<Column>, _> = relation
            .columns()
            .map(|column| {
                column.map(|column| Column {
                    name: column.name.to_owned(),
                    type_oid: column.type_oid,
                })
            })
            .collect();
        let plan = columns
            .map_err(Into::into)
            .and_then(|columns| Plan::new(&self.options, columns))
            .map_err(|err: PlanError| self.unfit_table(&err))?;
        self.tables.insert(relation.oid, Table::Outbox(Box::new(plan)));
        Ok(())
    }

    /// The options do not fit the table as it was when a transaction wrote to it: they are wrong, or somebody has altered the table. Bringing a column
    /// back changes nothing about what the write-ahead log has.
    fn unfit_table(&self, err: &PlanError) -> Stop {
        Stop::Config {
            what: format!(
                "{err}; that is how the transaction at {} found the table: correct the option and start again, or, where the table was altered, make it as it was, and `outbox-relay recover --compare-anyway` publishes what was written meanwhile",
                self.commit_lsn
            ),
        }
    }

    /// The outbox had another name when the next row was written to it, and that name is no outbox of ours: the row is to be published, and whatever
    /// had the outbox' name meanwhile (another table, a view of this one) may have rows that are in no stream.
    fn ensure_is_published(&self, name: &str) -> Result<(), RelayError> {
        match self.progress.row().context("replication stream")? {
            RowFate::Skip => Ok(()),
            RowFate::Publish { .. } => Err(Stop::OutboxRenamed {
                table: format!("{}.{}", self.schema, self.table),
                name: name.to_owned(),
                commit_lsn: self.commit_lsn,
            }
            .into()),
        }
    }

    fn update(&self, relation: u32) -> Result<(), RelayError> {
        let is_of_outbox = matches!(self.tables.get(&relation), Some(Table::Outbox(_)));
        // What an earlier run has gone past is nothing to stop at again.
        if !is_of_outbox || matches!(self.progress.row().context("replication stream")?, RowFate::Skip) {
            return Ok(());
        }
        match self.options.invalid_operation {
            InvalidOperation::Warn => {
                tracing::warn!("an outbox row was updated; only inserts are events, so it is ignored")
            }
            InvalidOperation::Error => {
                tracing::error!("an outbox row was updated; only inserts are events, so it is ignored")
            }
            InvalidOperation::Fatal => {
                let commit_lsn = self.commit_lsn;
                return Err(Stop::RowUpdated { commit_lsn }.into());
            }
        }
        Ok(())
    }

    /// No event, and no loss: what was written before is in the stream before. Said once.
    fn truncated(&mut self, relations: Relations<'_>) {
        let is_outbox = |oid| matches!(self.tables.get(&oid), Some(Table::Outbox(_)));
        if !self.said_truncated && relations.iter().any(is_outbox) {
            self.said_truncated = true;
            tracing::warn!(
                "the outbox was truncated: every row that was committed before is published all the same, since it is in the stream; but should the slot be lost, `outbox-relay recover` would miss those rows"
            );
        }
    }

    /// PostgreSQL 18 skips a missing publication with a warning, and everything in it: silent loss, were it not looked at here.
    fn notice(&self, code: &str, message: &str) -> Result<(), RelayError> {
        if code == "55000" || message.contains("skipped loading publication") {
            return Err(Stop::Publication {
                publication: self.publication.clone(),
                what: message.to_owned(),
            }
            .into());
        }
        if !message.is_empty() {
            tracing::info!(postgres.code = code, "the server says: {message}");
        }
        Ok(())
    }
}

/// Why the server has ended a stream of `publication`, by its error.
pub(crate) fn server_error(publication: &str, code: &str, message: &str) -> RelayError {
    // The message may be in the server's language; it quotes the publication's name in any.
    if code == "42704" && message.contains(publication) {
        return Stop::Publication {
            publication: publication.to_owned(),
            what: format!("{message}: it is missing at the position that the slot is reading"),
        }
        .into();
    }
    anyhow::anyhow!("the server ended the stream: {message} (SQLSTATE {code})").into()
}
