//! Writes rows of the outbox table to Kafka as records. These rows did not come from the stream.
//!
//! The table does not say in which order the rows were committed. `created_at` is the nearest order. The events of a key keep the order of their commits
//! unless two transactions write the same key at the same time. A writer that locks the key's own row prevents that.

use std::time::Duration;

use anyhow::Context;
use events::Position;
use service::clock::now_us;

use super::planted;
use crate::continuity::checkpoint::Lineage;
use crate::intake::outbox_snapshot::columns_of;
use crate::intake::{RecordWriter, Written};
use crate::kafka::{KnownRoutes, Publisher};
use crate::parking::behind::ParksBehind;
use crate::process::row_name::RowPosition;
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use crate::topics::destination;
use outbox_router::{Plan, RowScratch};
use pg_replication::Answer;
use pg_replication::Lsn;
use pg_replication::pgoutput::Tuple;

/// Makes records of rows that do not come from the stream.
pub(crate) struct ExistingRowsWriter<'a> {
    config: &'a Config,
    lineage: &'a mut Lineage,
    publisher: &'a mut Publisher,
    known_routes: KnownRoutes,
    record: RecordWriter,
    scratch: RowScratch,
    /// Rows that were written, or parked.
    pub(crate) rows: u64,
    /// The LSN in their positions.
    lsn: Lsn,
    /// Decides which rows go to the parking topic instead. `None`: no row does.
    pub(crate) parks: Option<ParksBehind>,
}

/// The LSN in the positions of rows that were in the table before a slot was made. The rows' own commits are not known any more. So they count as the rows
/// 0, 1, 2… of one transaction right before `consistent_point`, where the slot's stream begins.
///
/// Positions stay unique and ascend, even if a slot is made again and again:
///
/// - **Below everything that the slot sends.** A commit record may start at the consistent point itself, and then has that LSN. None can start one byte
///   before: the consistent point is the end of the record of running transactions that made the slot consistent, and this byte is that record's last one.
/// - **Above everything that was published before.** A new slot begins with a record of running transactions, written where the WAL ends at that moment. An
///   earlier relay is fenced by then, and has published only commits that were in the WAL. The rows of an earlier `init` or `recover` have the byte below an
///   earlier consistent point, which was in the WAL as well. All of that lies below the start of the new record, and so below its last byte.
///
/// This holds within one history of the WAL. After an operator has accepted another cluster, or a lost piece of the timeline, positions may come again.
pub(crate) fn lsn_before(consistent_point: Lsn) -> Lsn {
    if planted::puts_existing_rows_at_consistent_point() {
        return consistent_point;
    }
    Lsn(consistent_point.0.saturating_sub(1))
}

impl<'a> ExistingRowsWriter<'a> {
    #[must_use]
    pub(crate) fn new(
        config: &'a Config,
        lineage: &'a mut Lineage,
        publisher: &'a mut Publisher,
        consistent_point: Lsn,
    ) -> Self {
        Self {
            config,
            record: RecordWriter::for_table_rows(config, lineage.positions_raised_by),
            lineage,
            publisher,
            known_routes: KnownRoutes::default(),
            scratch: RowScratch::default(),
            rows: 0,
            lsn: lsn_before(consistent_point),
            parks: None,
        }
    }

    /// Makes records that have the header `replay` and no position.
    #[must_use]
    pub(crate) fn for_replay(
        config: &'a Config,
        lineage: &'a mut Lineage,
        publisher: &'a mut Publisher,
        replay: &str,
    ) -> Self {
        let mut writer = Self::new(config, lineage, publisher, Lsn::INVALID);
        writer.record = RecordWriter::for_replay(config, replay);
        writer
    }

    /// The publisher, between two rows.
    pub(crate) fn publisher(&mut self) -> &mut Publisher {
        self.publisher
    }

    /// The lineage with the topics that were written to.
    #[must_use]
    pub(crate) fn lineage(&self) -> &Lineage {
        self.lineage
    }

    /// Writes the rows of `answer` into the open Kafka transaction.
    ///
    /// # Errors
    /// A row cannot be a record; anything else is worth another try.
    pub(crate) async fn write(&mut self, answer: &Answer) -> Result<(), RelayError> {
        let columns = columns_of(answer);
        let column_count = u16::try_from(columns.len()).context("too many columns")?;
        let plan =
            Plan::new(&self.config.outbox.router, columns).map_err(|err| Stop::Config { what: err.to_string() })?;
        for row in &answer.rows {
            let values: Vec<Option<&[u8]>> = row.iter().map(|value| value.as_deref().map(str::as_bytes)).collect();
            let bytes = Tuple::encode(&values).context("a row of the outbox table")?;
            self.write_row(&plan, &Tuple::from_encoded(column_count, &bytes))
                .await?;
        }
        Ok(())
    }

    async fn write_row(&mut self, plan: &Plan, tuple: &Tuple<'_>) -> Result<(), RelayError> {
        let position = Position {
            commit_lsn: self.lsn.0,
            index: self.rows,
            commit_timestamp_us: now_us(),
        };
        if let Some(parks) = &mut self.parks {
            let row_position = RowPosition {
                commit_lsn: self.lsn,
                index: self.rows,
            };
            let row_position = row_position.raised_by(self.lineage.positions_raised_by);
            if parks
                .park_if_behind(self.config, self.publisher, plan, tuple, row_position)
                .await?
            {
                self.rows += 1;
                return Ok(());
            }
        }
        loop {
            match self.record.write(
                plan,
                tuple,
                &mut self.scratch,
                position,
                &self.known_routes,
                self.publisher,
            )? {
                Written::Sent => break,
                Written::QueueFull => {
                    self.publisher.poll();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Written::UnknownTopic { route, topic } => {
                    let found = destination::find_destination(self.config, self.lineage, &route, &topic).await?;
                    self.known_routes.insert(route, found);
                }
            }
        }
        self.rows += 1;
        Ok(())
    }
}
