//! Warns when a partition is attached to the outbox that has rows already.
//!
//! `alter table … attach partition` moves no row. The write-ahead log has those rows under the name that their table had when they were inserted,
//! so no stream of the outbox ever sends them. We notice them by their age: such a row was written by an earlier transaction than the
//! attachment, or by an earlier command of the same transaction. Each new attachment is looked at once.
//!
//! An old row is a hint and no proof. A transaction that began before the attachment and wrote after it leaves rows that look the same. So does a
//! partition that was detached from the outbox and is attached again.
//!
//! **What we cannot notice.** Postgres has no place where a relay could note what it has looked at. So an attachment that is older than the slot's
//! last confirmation counts as looked at. We miss one if the relay confirmed a position behind it and ended before its next look, which is
//! at most `OUTBOX_MAINTENANCE_INTERVAL` later. We don't miss one that is made while no relay runs, since nobody confirms anything then.

use std::collections::HashSet;

use anyhow::Context;

use crate::outbox::rows::{NamedRow, first_row, named_rows};
use crate::outbox::table::table_name;
use crate::settings::Config;
use pg_replication::{Answer, Connection, PgError, quote_literal};

/// The partition's oid, and the transaction that attached it, or attached a partition that it is in. If a table is attached a second time, that is another
/// attachment.
type Attachment = (String, String);

/// The attachments that were looked at.
#[derive(Debug)]
pub struct KnownAttachments {
    /// An earlier relay has looked at everything that was attached by an earlier transaction than this.
    catalog_xmin: Option<u32>,
    /// `None` before the first look.
    known: Option<HashSet<Attachment>>,
}

impl KnownAttachments {
    /// `catalog_xmin` is the slot's, as it was when this relay took the slot.
    #[must_use]
    pub fn since(catalog_xmin: Option<u32>) -> Self {
        Self {
            catalog_xmin,
            known: None,
        }
    }

    /// Warns of each partition that was attached with rows in it since the last look.
    ///
    /// # Errors
    /// There is no outbox table, a partition was locked (the others were looked at, and the next look tries this one again), or the connection
    /// broke.
    pub async fn warn_of_rows_attached(&mut self, connection: &mut Connection, config: &Config) -> anyhow::Result<()> {
        let found = connection.query(&attachments_sql(config, self.catalog_xmin)).await?;
        // This comes first: a look at a partition may fail, and without this the next call would take all old attachments for new ones.
        self.update_known(&found)?;
        let mut locked = None;
        for row in named_rows(&found) {
            if self.knows(row)? {
                continue;
            }
            let (name, xid, command) = (row.text("name")?, row.text("xid")?, row.text("command")?);
            // One statement for both ages, so that they are counted from the same moment.
            let sql = format!(
                "set local statement_timeout = '60s';
                 select exists (select from only {name} r
                     where {row_age} > {age} or r.xmin = '{xid}'::xid and r.cmin::text::bigint < {command})
                     as has_older_rows",
                row_age = transactions_ago("r.xmin"),
                age = transactions_ago(&format!("'{xid}'::xid")),
            );
            match connection.query(&sql).await {
                Ok(answer) if first_row(&answer).context("no answer")?.is_true("has_older_rows")? => tracing::warn!(
                    partition = name,
                    "a partition was attached with rows in it: no stream has them, so those that were not in the outbox before are not published; to publish them, detach it and insert its rows into the outbox"
                ),
                Ok(_) => {}
                // lock_not_available: somebody else has locked the partition. The next call looks at it again.
                Err(err) if PgError::code_of(&err) == Some("55P03") => {
                    locked = Some(err);
                    continue;
                }
                // This role may not read the partition, or reading it takes too long. Nothing depends on it, so we only say so, once.
                Err(err) if PgError::code_of(&err).is_some() => tracing::warn!(
                    partition = name,
                    error = format!("{err:#}"),
                    "cannot look whether a new partition came with rows in it, which no stream would have"
                ),
                Err(err) => return Err(err),
            }
            self.known.get_or_insert_default().insert(attachment(row)?);
        }
        locked.map_or(Ok(()), Err)
    }

    /// Forgets what is no longer attached. The first call notes what was attached before this relay took the slot.
    fn update_known(&mut self, found: &Answer) -> anyhow::Result<()> {
        if let Some(known) = &mut self.known {
            let attached = named_rows(found)
                .map(attachment)
                .collect::<anyhow::Result<HashSet<_>>>()?;
            known.retain(|attachment| attached.contains(attachment));
            return Ok(());
        }
        let mut known = HashSet::new();
        for row in named_rows(found) {
            if row.is_true("was_there_before")? || planted::overlooks_partitions_at_start() {
                known.insert(attachment(row)?);
            } else if planted::forgets_partitions_behind_a_new_one() {
                break;
            }
        }
        self.known = Some(known);
        Ok(())
    }

    fn knows(&self, row: NamedRow<'_>) -> anyhow::Result<bool> {
        let attachment = attachment(row)?;
        Ok(self.known.as_ref().is_some_and(|known| known.contains(&attachment)))
    }
}

fn attachment(row: NamedRow<'_>) -> anyhow::Result<Attachment> {
    let mut xid = row.text("xid")?;
    if planted::knows_partitions_by_oid() {
        xid = "";
    }
    Ok((row.text("oid")?.to_owned(), xid.to_owned()))
}

/// SQL for the partitions that have rows of their own: oid, name, the transaction and the command that attached them, and whether that was before
/// `catalog_xmin`. A partition of a partition belongs to the outbox by several attachments, of which the last one counts.
///
/// It reads the catalog alone. `pg_partition_tree` would wait for the lock of each partition, so a single locked one would hide all others.
fn attachments_sql(config: &Config, catalog_xmin: Option<u32>) -> String {
    let is_before = match catalog_xmin {
        Some(xmin) => format!(
            "{} > {}",
            transactions_ago("t.xid"),
            transactions_ago(&format!("'{xmin}'::xid"))
        ),
        None => "true".to_owned(),
    };
    format!(
        "with recursive tree(oid, xid, command) as (
             select inhrelid, xmin, cmin::text::bigint from pg_inherits
             where inhparent = {root}::regclass and not inhdetachpending
             union
             select i.inhrelid, a.xid, a.command
             from tree t join pg_inherits i on i.inhparent = t.oid and not i.inhdetachpending
                  cross join lateral (values (t.xid, t.command), (i.xmin, i.cmin::text::bigint)) a(xid, command)
         )
         select distinct on (t.oid) t.oid as oid, format('%I.%I', n.nspname, c.relname) as name, t.xid as xid, t.command as command,
                {is_before} as was_there_before
         from tree t join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace
         where c.relispartition and c.relkind <> 'p'
         order by t.oid, {age}, t.command desc",
        root = quote_literal(&table_name(config)),
        age = transactions_ago("t.xid"),
    )
}

/// SQL for how many transactions ago `xid` was.
///
/// Postgres' `age()` is negative for more than 2^31 transactions ago, since it takes such a number for one of the future. No row is from the future, but a
/// frozen row keeps its old transaction number for ever, so 2^32 is added. A row of more than 2^32 transactions ago looks young. That costs a needless
/// look at a start, and maybe a needless warning.
fn transactions_ago(xid: &str) -> String {
    format!("(age({xid}) + case when age({xid}) < 0 then 4294967296 else 0 end)")
}

/// The planted bugs of this file. Without the feature `faults` none of them is there.
mod planted {
    use crate::process::faults::{self, Bug};

    pub(super) fn overlooks_partitions_at_start() -> bool {
        faults::is_planted(Bug::OverlookPartitionsAtStart)
    }

    pub(super) fn forgets_partitions_behind_a_new_one() -> bool {
        faults::is_planted(Bug::ForgetPartitionsBehindANewOne)
    }

    pub(super) fn knows_partitions_by_oid() -> bool {
        faults::is_planted(Bug::KnowPartitionsByOid)
    }
}
