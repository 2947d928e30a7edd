//! `check` says what would keep the relay from running. It changes nothing and confirms nothing.

use std::fmt::Write as _;

use crate::continuity::source::Slot;
use crate::findings::Finding;
use crate::findings::failover;
use crate::findings::lineage_check;
use crate::findings::outbox_check;
use crate::findings::sentences;
use crate::findings::server_check;
use crate::findings::topic_check;
use crate::outbox::publication::require_usable_publication;
use crate::outbox::rows::named_rows;
use crate::outbox::source;
use crate::outbox::table::has_table;
use crate::process::stop::RelayError;
use crate::relay::survey::read_last_checkpoint;
use crate::settings::Config;
use outbox_router::{Column, Plan};
use pg_replication::{Connection, Mode, quote_identifier, quote_literal};

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
                        findings.push(Finding::Warning(sentences::rows_are_parked(parked)));
                    }
                    if let Err(err) = check_lineage(&mut connection, config, slot, found.as_ref(), &mut findings).await
                    {
                        findings.push(Finding::Problem(format!("{err:#}")));
                    }
                    let checkpoint = found.as_ref().map(|found| &found.checkpoint);
                    findings.extend(topic_check::findings(config, checkpoint).await);
                }
                Err(err) => findings.push(Finding::Problem(sentences::kafka_is_away(config, err))),
            }
        }
        Err(err) => {
            findings.push(Finding::Problem(sentences::postgres_is_away(&err)));
            if let Err(err) = read_last_checkpoint(config.clone()).await {
                findings.push(Finding::Problem(sentences::kafka_is_away(config, err)));
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
            findings.push(Finding::Good(format!(
                "publication {} exists",
                config.source.publication
            )));
        }
        Ok(_) => findings.push(Finding::Good(format!(
            "publication {} has the inserts of {}.{}",
            config.source.publication, config.outbox.schema, config.outbox.table
        ))),
        Err(RelayError::Stop(stop)) => {
            findings.push(Finding::Problem(sentences::publication_is_unusable(config, &stop)));
        }
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
    findings.push(match lineage_check::ensure_continues(config, &source, found) {
        Ok(checkpoint) => Finding::Good(format!(
            "slot {} continues the checkpoint {checkpoint}",
            config.source.slot
        )),
        Err(stop) => Finding::Problem(stop.to_string()),
    });
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
