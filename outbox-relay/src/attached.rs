//! Notices a partition that came with rows in it.
//!
//! `alter table … attach partition` moves no row, so the write-ahead log has the rows under the name that their table had when they were
//! inserted: no stream of the outbox ever has them. A row that is older than the attachment shows it, by its transaction or, in the same one, by
//! its command. That is looked at once for each partition that has come since the slot was last confirmed, so also for those that came while no
//! relay ran. An old transaction that writes to the partition only after it was attached looks the same, and so do rows that were the outbox'
//! own before, so this is no proof.

use std::collections::HashSet;

use crate::config::Config;
use crate::existing_rows::table_name;
use crate::faults::{self, Bug};
use crate::postgres::{Connection, PgError, quote_literal};
use crate::source::text;

/// The partitions that have been looked at.
#[derive(Debug)]
pub struct Attached {
    /// Partitions that an earlier transaction has attached are known.
    catalog_xmin: Option<u32>,
    /// `None` before the first look.
    known: Option<HashSet<String>>,
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
    /// There is no outbox table, a partition was locked (the next look tries again), or the connection broke.
    pub async fn look(&mut self, connection: &mut Connection, config: &Config) -> anyhow::Result<()> {
        let is_before = match self.catalog_xmin {
            // The age counts from now on backwards, and bears the wrap-around of transaction ids.
            Some(xmin) => format!("age(i.xmin) > age('{xmin}'::xid)"),
            None => "true".to_owned(),
        };
        let sql = format!(
            "select c.oid, format('%I.%I', n.nspname, c.relname), {is_before}
             from pg_partition_tree({}) t join pg_class c on c.oid = t.relid
                  join pg_namespace n on n.oid = c.relnamespace join pg_inherits i on i.inhrelid = c.oid
             where t.isleaf",
            quote_literal(&table_name(config))
        );
        let found = connection.rows(&sql).await?;
        let is_first = self.known.is_none();
        let known = self.known.get_or_insert_default();
        for row in &found {
            let (oid, name) = (text(row, 0)?, text(row, 1)?);
            if is_first && (text(row, 2)? == "t" || faults::is_planted(Bug::OverlookPartitionsAtStart)) {
                known.insert(oid.to_owned());
            }
            if known.contains(oid) {
                continue;
            }
            // By oid, in one statement with the row of the catalog: the ages are counted at the same moment.
            let sql = format!(
                "set statement_timeout = '60s';
                 select exists (select from only {name} r, pg_inherits i where i.inhrelid = {oid}
                     and (age(r.xmin) > age(i.xmin) or r.xmin = i.xmin and r.cmin::text::bigint < i.cmin::text::bigint))"
            );
            let answer = match connection.rows(&sql).await {
                Ok(answer) => answer,
                // lock_not_available: somebody has the partition for himself, for now.
                Err(err) if PgError::code_of(&err) == Some("55P03") => return Err(err),
                // A partition that this role may not read, or that takes too long to read: nothing else depends on this look.
                Err(err) if PgError::code_of(&err).is_some() => {
                    tracing::warn!(
                        partition = name,
                        error = format!("{err:#}"),
                        "cannot look whether a new partition came with rows in it, which no stream would have"
                    );
                    known.insert(oid.to_owned());
                    continue;
                }
                Err(err) => return Err(err),
            };
            known.insert(oid.to_owned());
            if answer.first().map(|row| text(row, 0)).transpose()? == Some("t") {
                tracing::warn!(
                    partition = name,
                    "a partition was attached with rows in it: no stream has them, so those that were not in the outbox before are not published; to publish them, detach it and insert its rows into the outbox"
                );
            }
        }
        Ok(())
    }
}
