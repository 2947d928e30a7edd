//! Notices a partition that came with rows in it.
//!
//! `alter table … attach partition` moves no row, so the write-ahead log has the rows under the name that their table had when they were
//! inserted: no stream of the outbox ever has them. A row that is older than the attachment shows it, by its transaction or, in the same one, by
//! its command. That is looked at once for each partition that comes while the relay leads. An old transaction that writes to the partition only
//! after it was attached looks the same, so this is no proof.

use std::collections::HashSet;

use crate::config::Config;
use crate::existing_rows::table_name;
use crate::postgres::{Connection, PgError, quote_literal};
use crate::source::text;

/// The partitions that have been looked at.
#[derive(Debug, Default)]
pub struct Attached(Option<HashSet<String>>);

impl Attached {
    /// Names of the partitions that are new since the last look and came with rows. The first look only takes note of those that are there.
    ///
    /// # Errors
    /// There is no outbox table, or the connection broke.
    pub async fn look(&mut self, connection: &mut Connection, config: &Config) -> anyhow::Result<Vec<String>> {
        let sql = format!(
            "select c.oid, format('%I.%I', n.nspname, c.relname)
             from pg_partition_tree({}) t join pg_class c on c.oid = t.relid
                  join pg_namespace n on n.oid = c.relnamespace
             where t.isleaf",
            quote_literal(&table_name(config))
        );
        let found = connection.rows(&sql).await?;
        let Some(known) = &mut self.0 else {
            let oids: Result<_, _> = found.iter().map(|row| text(row, 0).map(str::to_owned)).collect();
            self.0 = Some(oids?);
            return Ok(Vec::new());
        };
        let mut filled = Vec::new();
        for row in &found {
            let (oid, name) = (text(row, 0)?, text(row, 1)?);
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
                // A partition that this role may not read, or that is locked: nothing else depends on this look.
                Err(err) if PgError::code_of(&err).is_some() => {
                    tracing::debug!(
                        partition = name,
                        error = format!("{err:#}"),
                        "cannot look at a new partition"
                    );
                    known.insert(oid.to_owned());
                    continue;
                }
                Err(err) => return Err(err),
            };
            known.insert(oid.to_owned());
            if answer.first().map(|row| text(row, 0)).transpose()? == Some("t") {
                filled.push(name.to_owned());
            }
        }
        Ok(filled)
    }
}
