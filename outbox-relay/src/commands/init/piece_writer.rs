//! Writes existing rows in Kafka transactions of bounded size, each with a checkpoint that says how far the rows are published.

use service::Shutdown;

use crate::continuity::checkpoint::{Checkpoint, ExistingRowsProgress};
use crate::intake::existing_rows::ExistingRowsWriter;
use crate::process::faults;
use crate::process::stop::RelayError;
use crate::settings::Config;
use crate::topics::checkpoint_topic::commit_checkpoint;
use pg_replication::Answer;

/// Most rows and bytes of one Kafka transaction. A smaller outbox is published in a single one.
const PIECE_ROWS: u64 = 5_000;
const PIECE_BYTES: usize = 16 << 20;

/// Writes rows piece by piece. A piece is a Kafka transaction that ends with a checkpoint.
pub(super) struct PieceWriter<'a> {
    config: &'a Config,
    checkpoint: &'a mut Checkpoint,
    writer: ExistingRowsWriter<'a>,
    /// How far the rows are published once the open transaction has committed.
    pub(super) progress: ExistingRowsProgress,
    open_rows: u64,
    open_bytes: usize,
    shutdown: &'a Shutdown,
}

impl<'a> PieceWriter<'a> {
    pub(super) fn new(
        config: &'a Config,
        checkpoint: &'a mut Checkpoint,
        writer: ExistingRowsWriter<'a>,
        progress: ExistingRowsProgress,
        shutdown: &'a Shutdown,
    ) -> Self {
        Self {
            config,
            checkpoint,
            writer,
            progress,
            open_rows: 0,
            open_bytes: 0,
            shutdown,
        }
    }

    /// How many rows this attempt has written.
    pub(super) fn rows(&self) -> u64 {
        self.writer.rows
    }

    /// The topics that rows were written to, with their partitions.
    pub(super) fn topics(&self) -> impl Iterator<Item = (&String, i32)> {
        let partitions = self.writer.lineage().partitions.iter();
        partitions.map(|(topic, partitions)| (topic, *partitions))
    }

    /// Whether the open transaction must be committed before another row is written.
    pub(super) fn is_full(&self) -> bool {
        self.open_rows >= PIECE_ROWS || self.open_bytes >= PIECE_BYTES
    }

    /// Writes rows. If the open transaction is full, it is committed before them.
    ///
    /// # Errors
    /// A row cannot be a record; else as [`PieceWriter::commit_open`].
    pub(super) async fn write(&mut self, answer: &Answer) -> Result<(), RelayError> {
        if self.is_full() {
            self.commit_open().await?;
        }
        self.write_into_open(answer).await
    }

    /// Writes rows into the open transaction, even if it is full.
    ///
    /// # Errors
    /// A row cannot be a record; anything else is worth another try.
    pub(super) async fn write_into_open(&mut self, answer: &Answer) -> Result<(), RelayError> {
        self.writer.write(answer).await?;
        self.open_rows += answer.rows.len() as u64;
        self.progress.rows += answer.rows.len() as u64;
        self.open_bytes += answer.rows.iter().flatten().flatten().map(String::len).sum::<usize>();
        Ok(())
    }

    /// Commits the open transaction, if there is one, with a checkpoint that says how far the rows are published.
    ///
    /// # Errors
    /// Worth another try. If the piece has committed, that goes on behind it.
    pub(super) async fn commit_open(&mut self) -> Result<(), RelayError> {
        if self.open_rows == 0 {
            return Ok(());
        }
        (self.open_rows, self.open_bytes) = (0, 0);
        self.checkpoint.existing_rows = Some(self.progress.clone());
        self.checkpoint.lineage.clone_from(self.writer.lineage());
        faults::point("init.piece-written")?;
        commit_checkpoint(self.writer.publisher(), self.config, self.checkpoint).await?;
        faults::point("init.piece-committed")?;
        if self.shutdown.is_triggered() {
            return Err(anyhow::anyhow!("told to stop; run init again, it goes on from here").into());
        }
        if self.writer.publisher().is_disturbed() {
            // librdkafka may have sent the EndTxn twice, and the late one could end the next transaction.
            return Err(
                anyhow::anyhow!("the connection to kafka was disturbed; run init again, it goes on from here").into(),
            );
        }
        Ok(())
    }
}
