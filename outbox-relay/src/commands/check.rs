//! `check` says what would keep the relay from running, and `status` how far it has published. Both change nothing and confirm nothing.

use std::fmt::Write as _;

use crate::continuity::lineage::verify;
use crate::continuity::other_relays::ensure_written_for_this_server;
use crate::continuity::source::Slot;
use crate::findings::Finding;
use crate::findings::failover;
use crate::findings::outbox_check;
use crate::findings::server_check;
use crate::findings::topic_check;
use crate::outbox::publication::require_usable_publication;
use crate::outbox::rows::{first_row, named_rows};
use crate::outbox::source;
use crate::outbox::table::has_table;
use crate::process::stop::RelayError;
use crate::relay::pause;
use crate::relay::survey::read_last_checkpoint;
use crate::settings::Config;
use outbox_router::{Column, Plan};
use pg_replication::{Connection, Mode, PgError, quote_identifier, quote_literal};

/// Looks at everything that `run` needs. It never fails: what cannot be looked at is reported as a problem.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(config.may_share_transactional_id().map(Finding::Warning));
    match Connection::open(&config.source.target, Mode::Replication).await {
        Ok(mut connection) => {
            // The slot first and then the checkpoint, as `take_survey` does: a relay may be publishing meanwhile, and the slot must not look ahead of
            // the checkpoint.
            let slot = source::find_slot(&mut connection, &config.source.slot).await;
            let last_checkpoint = read_last_checkpoint(config.clone()).await;
            if let Err(err) = check_server(&mut connection, config, &mut findings).await {
                findings.push(Finding::Problem(format!("Postgres: {err:#}")));
            }
            match &last_checkpoint {
                Ok(found) => {
                    findings.push(Finding::Good(format!(
                        "Kafka answers at {}",
                        config.sink.kafka.client.bootstrap_servers
                    )));
                    let parked = found.as_ref().map_or(0, |found| found.checkpoint.parking.rows);
                    if parked > 0 {
                        findings.push(Finding::Warning(format!(
                            "{parked} rows are parked and not published; `outbox-relay parked list` shows them, docs/poison.md says what to do"
                        )));
                    }
                    if let Err(err) = check_lineage(&mut connection, config, slot, found.as_ref(), &mut findings).await
                    {
                        findings.push(Finding::Problem(format!("{err:#}")));
                    }
                    let checkpoint = found.as_ref().map(|found| &found.checkpoint);
                    findings.extend(topic_check::findings(config, checkpoint).await);
                }
                Err(err) => findings.push(Finding::Problem(format!(
                    "Kafka at {}: {err:#}",
                    config.sink.kafka.client.bootstrap_servers
                ))),
            }
        }
        Err(err) => {
            let hint = match PgError::code_of(&err) {
                Some("28P01" | "28000") => "; check user and password, and that pg_hba.conf lets the role connect",
                Some("42501") => "; the role needs the attribute replication: alter role … replication",
                Some("3D000") => "; the database does not exist",
                _ => "",
            };
            findings.push(Finding::Problem(format!("{err:#}{hint}")));
            if let Err(err) = read_last_checkpoint(config.clone()).await {
                findings.push(Finding::Problem(format!(
                    "Kafka at {}: {err:#}",
                    config.sink.kafka.client.bootstrap_servers
                )));
            }
        }
    }
    findings
}

async fn check_server(connection: &mut Connection, config: &Config, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    findings.push(server_check::version_finding(connection.server_version_num()));
    findings.extend(server_check::read_server_settings(connection, config).await?.findings());
    findings.extend(failover::findings(connection, &config.source.slot).await?);
    check_table(connection, config, findings).await?;
    findings.extend(
        outbox_check::read_outbox_table(connection, config)
            .await?
            .findings(&config.outbox.router),
    );
    match require_usable_publication(connection, config).await {
        Ok(_) if config.outbox.message_prefix.is_some() && !has_table(connection, config).await? => {
            findings.push(Finding::Good(format!("publication {} exists", config.source.publication)));
        }
        Ok(_) => findings.push(Finding::Good(format!("publication {} has the inserts of {}.{}", config.source.publication, config.outbox.schema, config.outbox.table))),
        Err(RelayError::Stop(stop)) => findings.push(Finding::Problem(format!(
            "{stop}; `outbox-relay init` makes it, or: create publication {} for table {}.{} with (publish = 'insert', publish_via_partition_root = true)",
            config.source.publication, config.outbox.schema, config.outbox.table
        ))),
        Err(RelayError::Transient(err)) => return Err(err),
    }
    Ok(())
}

async fn check_table(connection: &mut Connection, config: &Config, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    let table = format!(
        "{}.{}",
        quote_identifier(&config.outbox.schema),
        quote_identifier(&config.outbox.table)
    );
    let sql = format!(
        "select attname, atttypid from pg_attribute where attrelid = to_regclass({}) and attnum > 0 and not attisdropped order by attnum",
        quote_literal(&table)
    );
    let mut columns = Vec::new();
    let answer = connection.query(&sql).await?;
    for row in named_rows(&answer) {
        columns.push(Column {
            name: row.text("attname")?.to_owned(),
            type_oid: row.parse("atttypid")?,
        });
    }
    findings.push(if columns.is_empty() && config.outbox.message_prefix.is_some() {
        Finding::Good("there is no outbox table; messages are the outbox".to_owned())
    } else if columns.is_empty() {
        Finding::Problem(format!(
            "table {}.{} does not exist",
            config.outbox.schema, config.outbox.table
        ))
    } else {
        match Plan::new(&config.outbox.router, columns) {
            Ok(_) => Finding::Good(format!(
                "table {}.{} has the router's columns",
                config.outbox.schema, config.outbox.table
            )),
            Err(err) => Finding::Problem(err.to_string()),
        }
    });
    Ok(())
}

async fn check_lineage(
    connection: &mut Connection,
    config: &Config,
    slot: anyhow::Result<Option<Slot>>,
    found: Option<&crate::kafka::StoredCheckpoint>,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<()> {
    let system = source::identify_server(connection).await?;
    let publication = match require_usable_publication(connection, config).await {
        Ok(publication) => publication,
        // `check_server` has reported it.
        Err(RelayError::Stop(_)) => return Ok(()),
        Err(RelayError::Transient(err)) => return Err(err),
    };
    let source = source::describe_source(config, &system, slot?, &publication);
    findings.push(
        match verify(
            &source,
            found.map(|found| &found.checkpoint),
            config.names_for_messages(),
        ) {
            Ok(checkpoint) => {
                let written_ms = found.and_then(|found| found.written_ms);
                match ensure_written_for_this_server(&source, checkpoint, written_ms) {
                    Ok(()) => Finding::Good(format!(
                        "slot {} continues the checkpoint {}",
                        config.source.slot, checkpoint.published.lsn
                    )),
                    Err(stop) => Finding::Problem(stop.to_string()),
                }
            }
            Err(stop) => Finding::Problem(stop.to_string()),
        },
    );
    Ok(())
}

/// The findings as text for a person, one a line.
#[must_use]
pub fn report(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let (mark, what) = match finding {
            Finding::Good(what) => ("ok      ", what),
            Finding::Warning(what) => ("warning ", what),
            Finding::Problem(what) => ("PROBLEM ", what),
        };
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{mark} {what}");
    }
    text
}

/// Describes slot, checkpoint and lag, one fact a line.
///
/// # Errors
/// Postgres or Kafka does not answer.
pub async fn status(config: &Config) -> Result<String, RelayError> {
    let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
    let found = read_last_checkpoint(config.clone()).await?;
    let system = source::identify_server(&mut connection).await?;
    let sql = format!(
        "select coalesce(active_pid::text, 'nobody') as reader,
                coalesce(confirmed_flush_lsn::text, '-') as confirmed,
                coalesce(wal_status, '-') as wal_status,
                coalesce(pg_size_pretty(pg_current_wal_lsn() - restart_lsn), '-') as wal_kept,
                coalesce(pg_size_pretty(safe_wal_size), 'unlimited') as wal_left
         from pg_replication_slots where slot_name = {}",
        quote_literal(&config.source.slot)
    );
    let answer = connection.query(&sql).await?;
    let mut lines = vec![
        (
            "database",
            format!(
                "{} of cluster {}, timeline {}",
                config.source.target.database, system.identifier, system.timeline
            ),
        ),
        ("server's WAL ends at", system.wal_end.to_string()),
    ];
    match first_row(&answer) {
        None => lines.push(("slot", format!("{} does not exist", config.source.slot))),
        Some(row) => lines.extend([
            (
                "slot",
                format!("{}, read by backend {}", config.source.slot, row.text("reader")?),
            ),
            ("confirmed", row.text("confirmed")?.to_owned()),
            ("WAL status", row.text("wal_status")?.to_owned()),
            ("WAL kept for the slot", row.text("wal_kept")?.to_owned()),
            ("WAL left before it is lost", row.text("wal_left")?.to_owned()),
        ]),
    }
    match found {
        None => lines.push(("checkpoint", format!("none in topic {}", config.sink.checkpoint_topic))),
        Some(found) => {
            let published = found.checkpoint.published;
            let partial = published.partial.map_or(String::new(), |partial| {
                format!(
                    ", and {} rows of the transaction at {}",
                    partial.rows, partial.commit_lsn
                )
            });
            lines.push((
                "published",
                format!("{}{partial} (offset {})", published.lsn, found.offset),
            ));
            lines.push(("parked rows", found.checkpoint.parking.rows.to_string()));
            if let Some(stopped) = &found.checkpoint.parking.stopped {
                lines.push(("stopped at row", format!("{}: {}", stopped.position, stopped.reason)));
            }
            lines.push((
                "not yet published",
                format!("{} bytes of WAL", system.wal_end.bytes_since(published.lsn)),
            ));
        }
    }
    if let Some(record) = pause::read_pause(config).await? {
        lines.push(("paused", record.describe()));
    }
    // There are lines always, so there is a longest name.
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    Ok(lines.iter().fold(String::new(), |text, (name, value)| {
        text + &format!("{name:width$}  {value}\n")
    }))
}
