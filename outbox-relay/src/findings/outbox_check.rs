//! Finds what is wrong with the outbox table: rows of it that no stream has, columns that the stream leaves out, and updates or deletes that Postgres will
//! refuse to the application.

use std::collections::BTreeSet;

use crate::findings::Finding;
use crate::outbox::rows::named_rows;
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use outbox_router::RouterOptions;
use pg_replication::{Connection, quote_literal};

/// What the catalog says about the outbox table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboxTable {
    /// SCHEMA.TABLE.
    pub name: String,
    /// Tables that inherit the outbox. Partitions are not counted.
    pub heirs: Vec<String>,
    /// Columns whose values the server generates.
    pub generated: Vec<GeneratedColumn>,
    /// The publication publishes stored generated columns as well (PostgreSQL 18 and later).
    pub publishes_generated: bool,
    /// The publication publishes updates or deletes.
    pub publishes_changes: bool,
    /// The table has a column `created_at`, and it is not set by `clock_timestamp()` when a row is inserted.
    pub is_created_at_some_other_time: bool,
    /// The table, or a partition of it, has no replica identity: nothing says which row an update or a delete has changed.
    pub lacks_identity: bool,
}

/// A column whose values the server generates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedColumn {
    pub name: String,
    /// Stored, not virtual: the value is computed when the row is written.
    pub is_stored: bool,
}

/// Asks the server. For a table that does not exist, nothing is wrong.
///
/// # Errors
/// The connection broke.
pub async fn read_outbox_table(connection: &mut Connection, config: &Config) -> anyhow::Result<OutboxTable> {
    let (schema, table) = (
        quote_literal(&config.outbox.schema),
        quote_literal(&config.outbox.table),
    );
    let (publication, is_since_18) = (
        quote_literal(&config.source.publication),
        connection.server_version_num() >= 180_000,
    );
    let generated = if is_since_18 { "p.pubgencols = 's'" } else { "false" };
    let partitions = crate::outbox::publication::partition_tree("o.oid");
    // A partitioned table has no rows of its own, so the replica identity of its partitions counts.
    let sql = format!(
        "with outbox as (select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
                         where n.nspname = {schema} and c.relname = {table}),
              holders as (select oid from outbox union select t.relid from outbox o, lateral {partitions} t)
         select 'heir' as kind, format('%I.%I', n.nspname, c.relname) as name, false as is_stored
         from outbox o join pg_inherits i on i.inhparent = o.oid join pg_class c on c.oid = i.inhrelid
              join pg_namespace n on n.oid = c.relnamespace where not c.relispartition
         union all
         select 'generated', a.attname, a.attgenerated = 's'
         from outbox o join pg_attribute a on a.attrelid = o.oid
         where a.attnum > 0 and not a.attisdropped and a.attgenerated <> ''
         union all
         select 'publishes changes', '', false from pg_publication p where p.pubname = {publication} and (p.pubupdate or p.pubdelete)
         union all
         select 'publishes generated', '', false from pg_publication p where p.pubname = {publication} and {generated}
         union all
         select 'other created_at', '', false from outbox o join pg_attribute a on a.attrelid = o.oid
              left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
         where a.attname = 'created_at' and not a.attisdropped
           and coalesce(pg_get_expr(d.adbin, d.adrelid), '') not like '%clock_timestamp()%'
         union all
         select 'lacks identity', '', false where exists (
             select from holders h join pg_class c on c.oid = h.oid
             where c.relkind = 'r' and (c.relreplident = 'n'
                 or c.relreplident = 'd' and not exists (select from pg_index x where x.indrelid = c.oid and x.indisprimary)
                 or c.relreplident = 'i' and not exists (select from pg_index x where x.indrelid = c.oid and x.indisreplident)))
         order by kind, name"
    );
    let mut outbox = OutboxTable {
        name: format!("{}.{}", config.outbox.schema, config.outbox.table),
        ..OutboxTable::default()
    };
    let answer = connection.query(&sql).await?;
    for row in named_rows(&answer) {
        let name = row.text("name")?.to_owned();
        match row.text("kind")? {
            "heir" => outbox.heirs.push(name),
            "generated" => outbox.generated.push(GeneratedColumn {
                name,
                is_stored: row.is_true("is_stored")?,
            }),
            "publishes changes" => outbox.publishes_changes = true,
            "publishes generated" => outbox.publishes_generated = true,
            "other created_at" => outbox.is_created_at_some_other_time = true,
            "lacks identity" => outbox.lacks_identity = true,
            other => anyhow::bail!("a look at the outbox table has a row of the kind `{other}`"),
        }
    }
    if planted::overlooks_heirs() {
        outbox.heirs.clear();
    }
    Ok(outbox)
}

impl OutboxTable {
    /// What is wrong with the table, for `check` and the log.
    #[must_use]
    pub fn findings(&self, options: &RouterOptions) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self
            .heirs
            .iter()
            .map(|heir| Finding::Problem(self.describe_heir(heir)))
            .collect();
        findings.extend(self.describe_unpublished_columns(options).map(Finding::Problem));
        if self.publishes_changes && self.lacks_identity {
            findings.push(Finding::Warning(format!(
                "the publication has updates or deletes, and table {name} has no replica identity: Postgres refuses the application's own updates and deletes of the outbox; alter publication … set (publish = 'insert'), which is all that the relay needs, or give it a primary key, or: alter table {name} replica identity full",
                name = self.name
            )));
        }
        if self.is_created_at_some_other_time {
            findings.push(Finding::Warning(format!(
                "created_at of table {name} is not set by clock_timestamp(): where two transactions write one key, the row that committed last may not be the one with the latest created_at; a running relay goes by the commits, but `init` and `recover` publish the rows of the table in the order of created_at, and `recover` may have to ask whether a row of a compacted topic was published; alter table {name} alter created_at set default clock_timestamp()",
                name = self.name
            )));
        }
        findings
    }

    fn describe_heir(&self, heir: &str) -> String {
        format!(
            "table {heir} inherits {name}: a select of {name} shows its rows, and no stream has them under that name, so they are never published; insert into {name} itself, and: alter table {heir} no inherit {name}",
            name = self.name
        )
    }

    /// Describes the columns that the router reads and the stream does not have, each with its cure.
    fn describe_unpublished_columns<'a>(&'a self, options: &'a RouterOptions) -> impl Iterator<Item = String> + 'a {
        let additional = options.additional.iter().map(|additional| &additional.column);
        let read: BTreeSet<&String> = [
            &options.id_column,
            &options.key_column,
            &options.payload_column,
            &options.route_column,
        ]
        .into_iter()
        .chain(additional)
        .collect();
        self.generated
            .iter()
            .filter(move |column| read.contains(&column.name) && !(column.is_stored && self.publishes_generated))
            .map(|GeneratedColumn { name, is_stored }| {
                let table = &self.name;
                let cure = if *is_stored {
                    format!(
                        "let the insert write it: alter table {table} alter {name} drop expression; or, with PostgreSQL 18 and later: alter publication … set (publish_generated_columns = stored)"
                    )
                } else {
                    "put an ordinary column in its place, which the insert writes".to_owned()
                };
                format!(
                    "column `{name}` of table {table} is generated, and the stream does not have it, so the router would not find it; {cure}"
                )
            })
    }
}

/// Refuses a table whose events would not all be published.
///
/// # Errors
/// [`Stop::Publication`] and [`Stop::Config`] say what is wrong and what to do. Any other error is transient.
pub async fn ensure_all_rows_would_be_published(
    connection: &mut Connection,
    config: &Config,
) -> Result<(), RelayError> {
    let table = read_outbox_table(connection, config).await?;
    if let Some(heir) = table.heirs.first() {
        return Err(Stop::Publication {
            publication: config.source.publication.to_string(),
            what: table.describe_heir(heir),
        }
        .into());
    }
    match table.describe_unpublished_columns(&config.outbox.router).next() {
        Some(what) => Err(Stop::Config { what }.into()),
        None => Ok(()),
    }
}

/// Logs what is wrong with the table. A relay that runs goes on.
pub async fn log_findings(config: &Config) {
    let table = async {
        let mut connection = Connection::open(&config.source.target, pg_replication::Mode::Sql).await?;
        read_outbox_table(&mut connection, config).await
    };
    match table.await {
        Ok(table) => {
            for finding in table.findings(&config.outbox.router) {
                if let Finding::Problem(what) | Finding::Warning(what) = finding {
                    tracing::warn!("{what}");
                }
            }
        }
        // The stream does not depend on this check.
        Err(err) => tracing::debug!(error = format!("{err:#}"), "cannot look at the outbox table"),
    }
}

/// The planted bugs of this file. Without the feature `faults` none of them is there.
mod planted {
    use crate::process::faults::{self, Bug};

    pub(super) fn overlooks_heirs() -> bool {
        faults::is_planted(Bug::OverlookHeirs)
    }
}

#[cfg(test)]
mod tests {
    use super::{GeneratedColumn, OutboxTable};
    use crate::findings::Finding;
    use outbox_router::RouterOptions;

    fn findings(table: &OutboxTable, options: &[&str]) -> Vec<Finding> {
        table.findings(&RouterOptions::parse(options).unwrap())
    }

    #[test]
    fn an_heir_is_a_problem() {
        let table = OutboxTable {
            heirs: vec!["public.old".to_owned()],
            ..OutboxTable::default()
        };
        assert!(
            matches!(&findings(&table, &[])[..], [Finding::Problem(what)] if what.contains("public.old") && what.contains("no inherit"))
        );
    }

    #[test]
    fn a_generated_column_is_a_problem_where_the_router_reads_it_and_the_stream_has_it_not() {
        let mut table = OutboxTable {
            generated: ["shown", "stored"]
                .map(|name| GeneratedColumn {
                    name: name.to_owned(),
                    is_stored: true,
                })
                .to_vec(),
            ..OutboxTable::default()
        };
        assert_eq!(findings(&table, &[]), []);
        let options = ["table.fields.additional.placement=stored:header"];
        assert!(
            matches!(&findings(&table, &options)[..], [Finding::Problem(what)] if what.contains("`stored`") && what.contains("publish_generated_columns"))
        );
        table.publishes_generated = true;
        assert_eq!(findings(&table, &options), []);
        table.generated[1].is_stored = false;
        assert!(
            matches!(&findings(&table, &options)[..], [Finding::Problem(what)] if !what.contains("publish_generated_columns"))
        );
    }

    #[test]
    fn changes_that_are_published_need_a_replica_identity() {
        let mut table = OutboxTable {
            lacks_identity: true,
            ..OutboxTable::default()
        };
        assert_eq!(findings(&table, &[]), []);
        table.publishes_changes = true;
        assert!(matches!(&findings(&table, &[])[..], [Finding::Warning(what)] if what.contains("replica identity")));
    }
}
