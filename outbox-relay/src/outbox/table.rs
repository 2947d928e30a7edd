//! The outbox table as SQL names it.

use anyhow::Context;

use super::rows::first_row;
use crate::settings::Config;
use pg_replication::{Connection, quote_identifier, quote_literal};

/// The outbox table as SQL names it.
#[must_use]
pub(crate) fn table_name(config: &Config) -> String {
    format!(
        "{}.{}",
        quote_identifier(&config.outbox.schema),
        quote_identifier(&config.outbox.table)
    )
}

/// Whether there is an outbox table; where messages are the outbox, there need not be.
///
/// # Errors
/// The connection broke.
pub(crate) async fn has_table(connection: &mut Connection, config: &Config) -> anyhow::Result<bool> {
    let sql = format!(
        "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                        where n.nspname = {} and c.relname = {}) as has_table",
        quote_literal(&config.outbox.schema),
        quote_literal(&config.outbox.table)
    );
    let answer = connection
        .query(&sql)
        .await
        .context("cannot look for the outbox table")?;
    first_row(&answer).context("no answer")?.is_true("has_table")
}
