//! What the stream says of tables: how they look, and what happens to the outbox beside inserts.

use anyhow::Context;

use super::Intake;
use super::planted;
use crate::continuity::progress::RowFate;
use crate::process::stop::{RelayError, Stop};
use outbox_router::{Column, InvalidOperation, Plan, PlanError};
use pg_replication::pgoutput::{RelationMessage, Relations};

/// A table of the stream.
#[derive(Debug)]
pub(super) enum Table {
    Outbox(Box<Plan>),
    /// The outbox under the name that it had when its rows were written.
    Renamed(String),
    Other,
}

impl Intake {
    /// Sent before a table's first row of a session and after each change of its columns.
    pub(super) fn learn_table(&mut self, relation: &RelationMessage<'_>) -> Result<(), RelayError> {
        if relation.schema != self.schema || relation.name != self.table {
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
    pub(super) fn refuse_row_under_former_name(&self, name: &str) -> Result<(), RelayError> {
        match self.progress.fate_of_next_row().context("replication stream")? {
            RowFate::Skip => Ok(()),
            RowFate::Publish { .. } => Err(Stop::OutboxRenamed {
                table: format!("{}.{}", self.schema, self.table),
                name: name.to_owned(),
                commit_lsn: self.commit_lsn,
            }
            .into()),
        }
    }

    pub(super) fn handle_update(&self, relation: u32) -> Result<(), RelayError> {
        let is_of_outbox = matches!(self.tables.get(&relation), Some(Table::Outbox(_)));
        // What an earlier run has gone past is nothing to stop at again.
        if !is_of_outbox
            || matches!(
                self.progress.fate_of_next_row().context("replication stream")?,
                RowFate::Skip
            )
        {
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
    pub(super) fn warn_of_truncation(&mut self, relations: Relations<'_>) {
        let is_outbox = |oid| matches!(self.tables.get(&oid), Some(Table::Outbox(_)));
        if !self.said_truncated && relations.iter().any(is_outbox) {
            self.said_truncated = true;
            tracing::warn!(
                "the outbox was truncated: every row that was committed before is published all the same, since it is in the stream; but should the slot be lost, `outbox-relay recover` would miss those rows"
            );
        }
    }
}
