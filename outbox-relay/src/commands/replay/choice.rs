//! Which rows to replay, and what the operator is told about them beforehand.

use std::fmt::Write as _;

use anyhow::Context;

use crate::commands::planted;
use crate::intake::outbox_snapshot::OutboxSnapshot;
use crate::outbox::rows::{first_row, named_rows};
use crate::parking::log::read_entries_off_thread;
use crate::process::stop::{RelayError, Stop};
use crate::settings::{Config, ReplayOptions};
use outbox_router::Plan;
use pg_replication::{quote_identifier, quote_literal};

/// The plan names at most so many keys.
const KEYS_SHOWN: usize = 10;

/// SQL for the chosen rows.
pub(super) fn chosen_rows_condition(
    config: &Config,
    options: &ReplayOptions,
    has_created_at: bool,
) -> Result<String, Stop> {
    let mut terms = Vec::new();
    let below = if planted::replays_to_inclusive() { "<=" } else { "<" };
    for (flag, operator, moment) in [("--from", ">=", &options.from), ("--to", below, &options.to)] {
        let Some(moment) = moment else { continue };
        if !has_created_at {
            return Err(Stop::Config {
                what: format!("{flag}: the outbox table has no column created_at to go by; choose by --key or --id"),
            });
        }
        terms.push(format!("created_at {operator} {}::timestamptz", quote_literal(moment)));
    }
    for (values, column) in [
        (&options.keys, &config.outbox.router.key_column),
        (&options.ids, &config.outbox.router.id_column),
    ] {
        if values.is_empty() {
            continue;
        }
        let values: Vec<String> = values.iter().map(|value| quote_literal(value)).collect();
        terms.push(format!("{}::text in ({})", quote_identifier(column), values.join(", ")));
    }
    if terms.is_empty() {
        return Err(Stop::Config {
            what: "choose rows by --from, --to, --key or --id".to_owned(),
        });
    }
    Ok(terms.join(" and "))
}

/// SQL for the rows that are parked. A retry publishes them for the first time, so a replay must not publish them before.
pub(super) async fn parked_rows_condition(config: &Config) -> Result<String, RelayError> {
    let entries = read_entries_off_thread(config).await?;
    let ids: Vec<String> = entries
        .values()
        .filter_map(|entry| entry.id.as_deref())
        .map(quote_literal)
        .collect();
    if ids.is_empty() {
        return Ok("false".to_owned());
    }
    let id = quote_identifier(&config.outbox.router.id_column);
    // Postgres hashes the list once. A row without an id is not in the list.
    Ok(format!("coalesce({id}::text in ({}), false)", ids.join(", ")))
}

/// What will be published.
pub(super) struct Planned {
    pub(super) rows: u64,
    /// What the operator is told.
    pub(super) text: String,
}

/// Counts the rows that `chosen` takes, by topic and by key.
///
/// # Errors
/// A value that the operator gave does not fit its column's type, the options do not fit the table, or the connection broke.
pub(super) async fn plan(config: &Config, snapshot: &mut OutboxSnapshot, chosen: &str) -> Result<Planned, RelayError> {
    let is_parked = parked_rows_condition(config).await?;
    let answer = snapshot
        .summary("count(*) as rows", &format!("{chosen} and {is_parked}"), "")
        .await?;
    let parked: u64 = first_row(&answer).context("no count")?.parse("rows")?;
    let condition = &format!("{chosen} and not {is_parked}");
    let route = format!("{}::text", quote_identifier(&config.outbox.router.route_column));
    let key = format!("{}::text", quote_identifier(&config.outbox.router.key_column));
    let answer = snapshot
        .summary(
            &format!("{route} as route, count(*) as rows, count(distinct {key}) as keys"),
            condition,
            "group by 1 order by 1",
        )
        .await?;
    let router = Plan::new(&config.outbox.router, snapshot.columns().to_vec())
        .map_err(|err| Stop::Config { what: err.to_string() })?;
    let (mut rows, mut text_of_plan) = (0, String::new());
    if parked > 0 {
        let _infallible = writeln!(
            text_of_plan,
            "{parked} of the chosen rows are parked and left out: `outbox-relay parked retry` publishes them"
        );
    }
    for row in named_rows(&answer) {
        let rows_of_topic: u64 = row.parse("rows")?;
        rows += rows_of_topic;
        let (topic, keys) = (router.topic(row.text("route")?), row.text("keys")?);
        // Writing to a String cannot fail.
        let _infallible = writeln!(text_of_plan, "{topic:<30} {rows_of_topic} rows of {keys} keys");
    }
    if rows == 0 {
        return Ok(Planned {
            rows,
            text: text_of_plan,
        });
    }
    let keys = snapshot
        .summary(
            &format!("{key} as key, count(*) as rows"),
            condition,
            &format!("group by 1 order by 2 desc, 1 limit {KEYS_SHOWN}"),
        )
        .await?;
    let _infallible = writeln!(text_of_plan, "keys with the most rows:");
    for row in named_rows(&keys) {
        let key = row.nullable("key")?.unwrap_or("(none)");
        let _infallible = writeln!(text_of_plan, "  {key}: {}", row.text("rows")?);
    }
    let _infallible = writeln!(
        text_of_plan,
        "they are published again, behind what is in the topics, in the order of the rows, without a position and with a header `replay`"
    );
    Ok(Planned {
        rows,
        text: text_of_plan,
    })
}
