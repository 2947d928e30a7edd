//! What the stream says about tables: which columns they have, and updates and truncations of the outbox.

use anyhow::Context;

use super::Intake;
use super::planted;
use crate::continuity::progress::RowFate;
use crate::process::stop::{RelayError, Stop};
use outbox_router::{Column, InvalidOperation, Plan, PlanError};
use pg_replication::pgoutput::{RelationMessage, Relations};

/// A table that the stream has told us about.
#[derive(Debug)]
pub(super) enum Table {
    Outbox(Box<Plan>),
    /// The outbox, but its rows were written while it had another name. This is that name.
    Renamed(String),
    Other,
}

impl Intake {
    /// Remembers a table's columns. The server sends them before the table's first row of a session, and after each change of the columns.
    pub(super) fn learn_table(&mut self, relation: &RelationMessage<'_>) -> Result<(), RelayError> {
        let has_outbox_name = relation.schema == self.schema && relation.name == self.table;
        if !has_outbox_name {
            if self.outbox_oid == Some(relation.oid) && !planted::knows_outbox_by_name() {
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
            .map_err(|err: PlanError| self.stop_of_unfit_table(&err))?;
        self.tables.insert(relation.oid, Table::Outbox(Box::new(plan)));
        Ok(())
    }

    /// The options do not fit the table as it was when a transaction wrote to it. Either the options are wrong, or somebody has altered the table. To bring
    /// a column back does not help: the write-ahead log keeps the rows as they were written.
    fn stop_of_unfit_table(&self, err: &PlanError) -> Stop {
        Stop::Config {
            what: format!(
                "{err}; that is how the transaction at {} found the table: correct the option and start again, or, where the table was altered, make it as it was, and `outbox-relay recover --compare-anyway` publishes what was written meanwhile",
                self.commit_lsn
            ),
        }
    }

    /// The outbox had another name when the next row was written to it. The relay stops if that row is not published yet. Meanwhile another table, or a
    /// view of this one, may have had the outbox's name, and its rows would be in no stream.
    pub(super) fn refuse_row_under_former_name(&mut self, name: &str) -> Result<(), RelayError> {
        match self.progress.fate_of_next_row().context("replication stream")? {
            RowFate::Skip => {
                self.rows_skipped += 1;
                // Without being counted, this row would have the rows behind it skipped as well, although they are not published.
                Ok(self.progress.row_decoded().context("replication stream")?)
            }
            RowFate::Publish { .. } => Err(Stop::OutboxRenamed {
                table: format!("{}.{}", self.schema, self.table),
                name: name.to_owned(),
                commit_lsn: self.commit_lsn,
            }
            .into()),
        }
    }

    /// Warns of an updated outbox row, or stops, as the option `table.op.invalid.behavior` says.
    pub(super) fn handle_update(&self, relation: u32) -> Result<(), RelayError> {
        let is_of_outbox = matches!(self.tables.get(&relation), Some(Table::Outbox(_)));
        if !is_of_outbox {
            return Ok(());
        }
        // The relay must not stop again at an update that an earlier run has passed.
        if matches!(
            self.progress.fate_of_next_row().context("replication stream")?,
            RowFate::Skip
        ) {
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

    /// Warns of a truncation, once. It is no event, and no row is lost: the rows that were written before it come before it in the stream.
    pub(super) fn warn_of_truncation(&mut self, relations: Relations<'_>) {
        let is_outbox = |oid| matches!(self.tables.get(&oid), Some(Table::Outbox(_)));
        if !self.has_warned_of_truncation && relations.iter().any(is_outbox) {
            self.has_warned_of_truncation = true;
            tracing::warn!(
                "the outbox was truncated: every row that was committed before is published all the same, since it is in the stream; but should the slot be lost, `outbox-relay recover` would miss those rows"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use pg_replication::Lsn;
    use pg_replication::pgoutput::{self, Message};

    use super::Intake;
    use crate::continuity::checkpoint::tests::example;
    use crate::continuity::progress::{Partial, Progress, Published, RowFate};
    use crate::process::stop::{RelayError, Stop};
    use crate::settings::{Cli, Command, Config};

    /// The oid of the outbox that [`example`] pins.
    const OUTBOX: u32 = 16_390;

    fn config() -> Config {
        let arguments = ["outbox-relay", "check", "--database-url", "postgres://u@h/d"];
        match Cli::try_parse_from(arguments).unwrap().command {
            Command::Check(settings) => settings.check().unwrap(),
            _ => panic!("no check"),
        }
    }

    /// What the server says about the table with the outbox's oid, without columns.
    fn relation_message(name: &str) -> Vec<u8> {
        let mut bytes = vec![b'R'];
        bytes.extend(OUTBOX.to_be_bytes());
        bytes.extend(b"public\0");
        bytes.extend(name.as_bytes());
        bytes.extend(b"\0d\0\0");
        bytes
    }

    #[test]
    fn published_rows_under_a_former_name_are_counted_and_the_next_row_stops_the_relay() {
        let cut = Published {
            lsn: Lsn(100),
            partial: Some(Partial {
                commit_lsn: Lsn(200),
                rows: 2,
            }),
        };
        let mut intake = Intake::new(&config(), Progress::resume(cut), &example().lineage, 1 << 16);
        let bytes = relation_message("former");
        let Ok(Message::Relation(relation)) = pgoutput::decode(&bytes) else {
            panic!("no relation");
        };
        assert!(intake.learn_table(&relation).is_ok());
        intake.progress.begin(Lsn(200)).unwrap();
        for _ in 0..2 {
            assert_eq!(intake.progress.fate_of_next_row(), Ok(RowFate::Skip));
            assert!(intake.refuse_row_under_former_name("public.former").is_ok());
        }
        assert_eq!(intake.rows_skipped, 2);
        // If the two did not count, the third row would be skipped as well, although it is not published.
        let third = intake.refuse_row_under_former_name("public.former");
        assert!(matches!(third, Err(RelayError::Stop(Stop::OutboxRenamed { .. }))));
    }
}
