//! Parks rows: puts them aside, so that the rows behind them go on.
//!
//! A parked row is a record of the open Kafka transaction like any other. So it is committed together with the checkpoint that passes it, or not at all.

use std::time::Duration;

use rdkafka::message::OwnedHeaders;
use service::clock::now_us;
use tokio::time::sleep;

use super::Streaming;
use crate::continuity::checkpoint::Checkpoint;
use crate::continuity::parking_note::StoppedAt;
use crate::intake::{Claim, Claims, Intake};
use crate::kafka::{Outgoing, Sent};
use crate::parking::keys::RateLimit;
use crate::parking::log::{Parked, ParkedRowsNeedTable, rows_max};
use crate::parking::record::{Because, Entry, FORMAT};
use crate::parking::topic;
use crate::process::faults;
use crate::process::row_name::RowPosition;
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use crate::settings::poison::{PoisonOrder, PoisonPolicy};

/// What a running stream knows of parked rows.
pub(super) struct Parking {
    /// Rows that are parked, those of the open transaction included.
    pub(super) rows: u64,
    /// Our checkpoint says at which row the relay stops, and no Kafka transaction has committed that yet.
    pub(super) stop_is_new: bool,
    limit: RateLimit,
    counts: ParkedCounts,
    /// An entry may have at most so many bytes. `None` until the parking topic is known to exist.
    entry_bytes_max: Option<usize>,
    needs_table: ParkedRowsNeedTable,
}

/// Rows of one Kafka transaction that were parked, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ParkedCounts {
    poison: u64,
    behind: u64,
    operator: u64,
}

impl ParkedCounts {
    pub(super) fn sum(self) -> u64 {
        self.poison + self.behind + self.operator
    }

    fn add(&mut self, because: Because) {
        match because {
            Because::Poison => self.poison += 1,
            Because::Behind => self.behind += 1,
            Because::Operator => self.operator += 1,
        }
    }
}

impl Parking {
    /// Begins with what was parked before. Also tells the intake which rows have to be parked.
    pub(super) fn resume(config: &Config, parked: Parked, checkpoint: &Checkpoint, intake: &mut Intake) -> Self {
        metrics::describe_gauge!("relay_parked_rows", "Rows that are parked now.");
        metrics::describe_counter!("relay_parked_total", "Rows that were parked, by reason.");
        metrics::gauge!("relay_parked_rows").set(parked.rows as f64);
        let skips = config.poison.poison_order == PoisonOrder::Skip;
        let raised_by = checkpoint.lineage.positions_raised_by;
        intake.claims = Claims::new(parked.keys, checkpoint.parking.ordered(), skips, raised_by);
        Self {
            rows: parked.rows,
            stop_is_new: false,
            limit: RateLimit::new(config.poison.poison_limit, parked.poison_times_us),
            counts: ParkedCounts::default(),
            entry_bytes_max: None,
            needs_table: parked.needs_table,
        }
    }

    pub(super) fn take_counts(&mut self) -> ParkedCounts {
        std::mem::take(&mut self.counts)
    }

    /// Updates the metrics once the transaction in which these rows were parked has committed.
    pub(super) fn note_committed(&self, parked: ParkedCounts) {
        if parked == ParkedCounts::default() {
            return;
        }
        let by_reason = [
            (Because::Poison, parked.poison),
            (Because::Behind, parked.behind),
            (Because::Operator, parked.operator),
        ];
        for (because, rows) in by_reason.into_iter().filter(|(_, rows)| *rows > 0) {
            metrics::counter!("relay_parked_total", "reason" => because.as_str()).increment(rows);
        }
        metrics::gauge!("relay_parked_rows").set(self.rows as f64);
    }
}

impl Streaming<'_> {
    /// The next row cannot be published. Parks it if the operator or the settings want that; stops if not.
    pub(super) async fn handle_poison_row(&mut self, stop: Stop) -> Result<(), RelayError> {
        let reason = stop.row_reason();
        let is_ordered = stop
            .row_position()
            .is_some_and(|position| self.intake.claims.is_ordered(position));
        if is_ordered {
            return self.park(Because::Operator, reason).await;
        }
        if self.config.poison.poison == PoisonPolicy::Stop {
            return Err(stop.into());
        }
        if !self.parking.limit.allows(now_us()) && !planted::parks_without_limit() {
            // A stop that names no row of the stream is returned as it is.
            let too_many = stop
                .row_position()
                .map(|position| self.too_many_poison_rows(position, &stop));
            return Err(too_many.unwrap_or(stop).into());
        }
        self.park(Because::Poison, reason).await
    }

    /// Parks the next row, even if it could be published.
    pub(super) async fn handle_claimed_row(&mut self, claim: Claim) -> Result<(), RelayError> {
        match claim {
            Claim::Behind(first) => {
                self.park(Because::Behind, format!("the row at {first} of its key is parked"))
                    .await
            }
            Claim::Ordered => {
                // The operator's order is part of the checkpoint's note about the stop, so the note exists.
                let stopped = self.checkpoint.parking.stopped.as_ref();
                let reason = stopped.map_or_else(String::new, |stopped| stopped.reason.clone());
                self.park(Because::Operator, reason).await
            }
        }
    }

    /// If the relay stops at a row, the next checkpoint says so. The command `park` takes orders about that row alone.
    pub(super) fn note_stop(&mut self, stop: &Stop) {
        let Some(position) = stop.row_position() else {
            return;
        };
        let note = StoppedAt {
            position,
            reason: stop.row_reason(),
            exit_code: Some(stop.exit_code()),
            park: false,
        };
        let known = self.checkpoint.parking.stopped.as_ref();
        if known.is_none_or(|known| known.position != position) {
            self.checkpoint.parking.stopped = Some(note);
            self.parking.stop_is_new = true;
        }
    }

    /// Sends the next row to the parking topic and passes it. If the producer's queue is full, it only waits a moment, and the loop calls it again.
    async fn park(&mut self, because: Because, reason: String) -> Result<(), RelayError> {
        let entry_bytes_max = self.entry_bytes_max().await?;
        let row = self.intake.paused_row(self.stream.buffer())?;
        let (position, topic_key) = (row.row_position(), row.topic_key());
        if self.parking.rows >= rows_max() {
            let what = format!(
                "{} rows are parked, as many as may be; publish them by `outbox-relay parked retry --all` or give them up by `outbox-relay parked discard`, and start again",
                rows_max()
            );
            return Err(Stop::TooManyParked { position, what }.into());
        }
        let parked_us = now_us();
        let parked_at = position.raised_by(self.checkpoint.lineage.positions_raised_by);
        let key = Entry::record_key(&self.config.checkpoint_key(), &parked_at);
        let mut entry = Entry {
            format: FORMAT,
            position: parked_at,
            committed_us: row.position.commit_timestamp_us,
            parked_us,
            parked_because: because,
            reason,
            id: row.id.clone(),
            topic: row.topic.clone(),
            key: row.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned()),
            topic_key,
            row: row.row.clone(),
        };
        let sent = match entry.fit(entry_bytes_max.saturating_sub(key.len())) {
            None => Sent::TooLarge,
            Some(value) => {
                if entry.row.needs_table() {
                    self.parking.needs_table.set();
                }
                self.send_entry(&key, &value, parked_us / 1_000)?
            }
        };
        match sent {
            Sent::Queued => {}
            Sent::QueueFull => {
                self.publisher.poll();
                sleep(Duration::from_millis(1)).await;
                return Ok(());
            }
            Sent::TooLarge => {
                let what = format!(
                    "it does not fit into topic `{}` even without its values; raise that topic's max.message.bytes and start again",
                    self.config.sink.parking_topic
                );
                return Err(Stop::TooManyParked { position, what }.into());
            }
        }
        faults::point("park.sent")?;
        self.intake.pass_paused_row(&row)?;
        self.intake.claims.note_parked(topic_key, position);
        self.stream.consume(row.length);
        self.parking.rows += 1;
        self.parking.counts.add(because);
        if because == Because::Poison {
            self.parking.limit.count(parked_us);
        }
        if because != Because::Behind {
            tracing::warn!(
                position = %parked_at,
                id = entry.id.as_deref().unwrap_or("none"),
                topic = entry.topic.as_deref().unwrap_or("none"),
                omitted = entry.row.omitted().join(", "),
                parked.because = because.as_str(),
                reason = entry.reason,
                "parked a row that cannot be published; `outbox-relay parked list` shows it"
            );
        }
        Ok(())
    }

    /// How many bytes an entry may have at most. Makes the parking topic the first time.
    async fn entry_bytes_max(&mut self) -> Result<usize, RelayError> {
        if let Some(bytes) = self.parking.entry_bytes_max {
            return Ok(bytes);
        }
        topic::create(self.config).await?;
        let bytes = topic::entry_bytes_max(self.config).await?;
        self.parking.entry_bytes_max = Some(bytes);
        Ok(bytes)
    }

    /// Sends an entry to the parking topic, in the open transaction.
    fn send_entry(&mut self, key: &str, value: &str, timestamp_ms: i64) -> Result<Sent, RelayError> {
        faults::point("park.before")?;
        let topic = &self.config.sink.parking_topic;
        if planted::parks_outside_transaction() {
            self.publisher.send_outside(topic, key, value)?;
            return Ok(Sent::Queued);
        }
        let outgoing = Outgoing {
            topic,
            partition: 0,
            key: Some(key.as_bytes()),
            value: Some(value.as_bytes()),
            timestamp_ms,
        };
        self.publisher.send(outgoing, OwnedHeaders::new())
    }

    fn too_many_poison_rows(&self, position: RowPosition, cause: &Stop) -> Stop {
        Stop::TooManyParked {
            position,
            what: format!(
                "more than {} poison rows came within a minute (--poison-limit), so that something is wrong with all rows, as a topic's setting would be; this one's reason: {}; mend it and start again; `outbox-relay park {position}` parks this row, and a larger --poison-limit more of them",
                self.config.poison.poison_limit,
                cause.row_reason()
            ),
        }
    }
}

/// The planted bugs of this file. Without the feature `faults` none of them is there.
mod planted {
    use crate::process::faults::{self, Bug};

    pub(super) fn parks_without_limit() -> bool {
        faults::is_planted(Bug::ParkWithoutLimit)
    }

    pub(super) fn parks_outside_transaction() -> bool {
        faults::is_planted(Bug::ParkOutsideTransaction)
    }
}
