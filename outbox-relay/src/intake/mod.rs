//! From frames to records: decodes the bytes that were read, routes the rows, and hands them to the open Kafka transaction.
//!
//! [`tables`] handles what the stream says about tables, and [`server_says`] the server's notices and errors. [`paused`] has the row at which decoding pauses.

pub mod batch;
pub mod existing_rows;
pub(crate) mod outbox_snapshot;
mod paused;
mod planted;
pub(crate) mod poison;
mod record_writer;
mod server_says;
mod snapshot_tables;
mod tables;
mod undecoded;

use std::collections::HashMap;

use anyhow::Context;
use events::Position;

use crate::continuity::checkpoint::Lineage;
use crate::continuity::progress::{Progress, RowFate};
use crate::intake::batch::Batch;
use crate::kafka::{KnownRoutes, Publisher};
use crate::outbox::messages::MessageOutbox;
use crate::outbox::publication;
use crate::process::faults;
use crate::process::row_name::{RowName, RowPlace, RowPosition};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use outbox_router::{RouterOptions, RowScratch};
use pg_replication::Lsn;
use pg_replication::pgoutput::{self, EmittedMessage, Message, Tuple};
use pg_replication::{Frame, Frames, POSTGRES_EPOCH_US};

pub use self::paused::Claim;
pub(crate) use self::paused::Claims;
pub use self::record_writer::{REPLAY_HEADER, RecordWriter, Written};
pub(crate) use self::server_says::server_error;
use self::tables::Table;

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
    /// The next row can never be published. [`Stop::poison`] has its position.
    Poison(Stop),
    /// The next row has to be parked, even if it could be published.
    Claimed(Claim),
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
    pub known_routes: KnownRoutes,
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
    /// Oid of the table that the checkpoint pins. The table keeps its oid when it is renamed.
    outbox_oid: Option<u32>,
    options: RouterOptions,
    tables: HashMap<u32, Table>,
    messages: Option<MessageOutbox>,
    scratch: RowScratch,
    record: RecordWriter,
    commit_lsn: Lsn,
    has_warned_of_truncation: bool,
}

impl Intake {
    #[must_use]
    pub fn new(config: &Config, progress: Progress, lineage: &Lineage, transaction_bytes: u64) -> Self {
        Self {
            received: progress.published().lsn,
            progress,
            batch: Batch::new(transaction_bytes),
            known_routes: KnownRoutes::default(),
            reply_requested: false,
            newest_commit_us: 0,
            rows_skipped: 0,
            claims: Claims::default(),
            publication: config.source.publication.to_string(),
            schema: config.outbox.schema.clone(),
            table: config.outbox.table.clone(),
            outbox_oid: lineage.outbox.as_deref().and_then(publication::outbox_oid),
            options: config.outbox.router.clone(),
            tables: HashMap::new(),
            messages: MessageOutbox::of(config),
            scratch: RowScratch::default(),
            record: RecordWriter::new(config, lineage.positions_raised_by),
            commit_lsn: Lsn::INVALID,
            has_warned_of_truncation: false,
        }
    }

    /// Decodes as much of `buffer` as can be published now. Returns how many bytes are done, and why it paused. The frame at which it pauses is not done: it
    /// stays in the buffer.
    ///
    /// # Errors
    /// The stream contradicts itself, or it ended. The rows before that stay decoded.
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
                Frame::Data(bytes) => self.handle_message(bytes, publisher),
                Frame::KeepAlive {
                    wal_end,
                    reply_requested,
                } => {
                    self.progress.note_keepalive(wal_end);
                    self.received = self.received.max(wal_end);
                    self.reply_requested |= reply_requested;
                    Ok(None)
                }
                Frame::Notice { code, message } => self.handle_notice(code, message).map(|()| None),
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

    fn handle_message(&mut self, bytes: &[u8], publisher: &mut Publisher) -> Result<Option<Pause>, RelayError> {
        match pgoutput::decode(bytes).context("replication stream")? {
            Message::Insert { relation, tuple } => {
                return self.handle_row(Origin::Table(relation), &tuple, bytes.len(), publisher);
            }
            Message::Emitted(emitted) => return self.handle_emitted_message(&emitted, publisher),
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
            Message::Relation(relation) => self.learn_table(&relation)?,
            Message::Update { relation } => self.handle_update(relation)?,
            Message::Truncate(relations) => self.warn_of_truncation(relations),
            // A delete from the outbox is a purge and no event.
            Message::Delete { .. } | Message::Other => {}
        }
        Ok(None)
    }

    fn handle_row(
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
                    let name = name.clone();
                    return self.refuse_row_under_former_name(&name).map(|()| None);
                }
                None => return Err(anyhow::anyhow!("the stream did not describe table {relation}").into()),
            },
            Origin::Message => match &self.messages {
                Some(outbox) => outbox.plan(),
                None => return Ok(None),
            },
        };
        match self.progress.fate_of_next_row().context("replication stream")? {
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
                if self.claims.may_claim
                    && let Some(claim) =
                        self.claims
                            .find_claim(plan, tuple, &mut self.scratch, &self.known_routes, position)
                {
                    return Ok(Some(Pause::Claimed(claim)));
                }
                match self
                    .record
                    .write(plan, tuple, &mut self.scratch, position, &self.known_routes, publisher)?
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

    /// A message with the outbox's prefix counts as a row of its transaction, in its order among the other rows.
    fn handle_emitted_message(
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
        // A message that is published already need not be read again.
        if let RowFate::Publish { index } = self.progress.fate_of_next_row().context("replication stream")? {
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
        let pause = self.handle_row(Origin::Message, &tuple, emitted.content.len(), publisher);
        if let Some(outbox) = &mut self.messages {
            outbox.give_back(values);
        }
        pause
    }
}
