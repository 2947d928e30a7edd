//! Notices a partition that came with rows in it.
//!
//! `alter table … attach partition` moves no row, so the write-ahead log has the rows under the name that their table had when they were
//! inserted: no stream of the outbox ever has them. A row that is older than the attachment shows it, by its transaction or, in the same one, by
//! its command. That is looked at once for each attachment that has come since the slot was last confirmed. An old transaction that writes to the
//! partition only after it was attached looks the same, and so do rows that were the outbox' own before, so this is no proof.
//!
//! **What is not told.** What was attached before the slot's last confirmation counts as looked at, since no catalog tells what a relay has said.
//! So an attachment is not told where a relay confirmed beyond it and ended before its next look, which is up to
//! `OUTBOX_MAINTENANCE_INTERVAL` later. One that comes while no relay runs is told: nobody confirms beyond it.

use std::collections::HashSet;

use anyhow::Context;

use crate::outbox::rows::{NamedRow, first_row, named_rows};
use crate::outbox::table::table_name;
use crate::settings::Config;
use pg_replication::{Answer, Connection, PgError, quote_literal};

/// A partition and the transaction that attached it, or what it is part of: the same table, attached again, is another one.
type Attachment = (String, String);

/// The attachments that have been looked at.
#[derive(Debug)]
pub struct Attached {
    /// Those of an earlier transaction are known.
    catalog_xmin: Option<u32>,
    /// `None` before the first look.
    known: Option<HashSet<Attachment>>,
}

impl Attached {
    /// `catalog_xmin` is the slot's, as it was when this relay began to lead: what was attached before, an earlier relay has looked at.
    #[must_use]
    pub fn since(catalog_xmin: Option<u32>) -> Self {
        Self {
            catalog_xmin,
            known: None,
        }
    }

    /// Warns of each partition that is new since the last look and came with rows.
    ///
    /// # Errors
    /// There is no outbox table, a partition was locked (the others were looked at, and the next look tries this one again), or the connection
    /// broke.
    pub async fn warn_of_rows_attached(&mut self, connection: &mut Connection, config: &Config) -> anyhow::Result<()> {
        let found = connection.query(&leaves_sql(config, self.catalog_xmin)).await?;
        // Before any partition is looked at, which may fail: the next look would take those that are left for new.
        self.take_note(&found)?;
        let mut busy = None;
        for row in named_rows(&found) {
            if self.knows(row)? {
                continue;
            }
            let (name, xid, command) = (row.text("name")?, row.text("xid")?, row.text("command")?);
            // The ages in one statement, so that they are counted at the same moment.
            let sql = format!(
                "set local statement_timeout = '60s';
                 select exists (select from only {name} r
                     where {row_age} > {age} or r.xmin = '{xid}'::xid and r.cmin::text::bigint < {command})
                     as has_older_rows",
                row_age = age("r.xmin"),
                age = age(&format!("'{xid}'::xid")),
            );
            match connection.query(&sql).await {
                Ok(answer) if first_row(&answer).context("no answer")?.is_true("has_older_rows")? => tracing::warn!(
                    partition = name,
                    "a partition was attached with rows in it: no stream has them, so those that were not in the outbox before are not published; to publish them, detach it and insert its rows into the outbox"
                ),
                Ok(_) => {}
                // lock_not_available: somebody has the partition for himself, for now.
                Err(err) if PgError::code_of(&err) == Some("55P03") => {
                    busy = Some(err);
                    continue;
                }
                // A partition that this role may not read, or that takes too long to read: nothing else depends on this look.
                Err(err) if PgError::code_of(&err).is_some() => tracing::warn!(
                    partition = name,
                    error = format!("{err:#}"),
                    "cannot look whether a new partition came with rows in it, which no stream would have"
                ),
                Err(err) => return Err(err),
            }
            self.known.get_or_insert_default().insert(attachment(row)?);
        }
        busy.map_or(Ok(()), Err)
    }

    /// Forgets what is not attached any more, and at the first look knows what was attached before.
    fn take_note(&mut self, found: &Answer) -> anyhow::Result<()> {
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

/// The partitions that have rows: oid, name, transaction and command of the attachment, and whether that was there before `catalog_xmin`. Of the
/// attachments by which a partition of a partition belongs to the outbox, the last one counts. From the catalog alone: `pg_partition_tree` waits
/// for each partition's lock, so that one that is locked would hide all others.
fn leaves_sql(config: &Config, catalog_xmin: Option<u32>) -> String {
    let is_before = match catalog_xmin {
        Some(xmin) => format!("{} > {}", age("t.xid"), age(&format!("'{xmin}'::xid"))),
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
        age = age("t.xid"),
    )
}

/// How many transactions ago: `age()` counts backwards from now on, modulo 2^32, and takes the upper half for the future. But no row is from
/// there. A frozen row, which keeps its transaction's number for ever, may be older than 2^31 transactions, and then its age is negative. One
/// that is older than 2^32 looks young again: that costs a look, and maybe a false word, at a start.
fn age(xid: &str) -> String {
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
