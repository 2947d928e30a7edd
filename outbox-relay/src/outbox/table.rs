//! The outbox table as SQL names it.

use crate::settings::Config;
use pg_replication::quote_identifier;

/// The outbox table as SQL names it.
#[must_use]
pub(crate) fn table_name(config: &Config) -> String {
    format!(
        "{}.{}",
        quote_identifier(&config.schema),
        quote_identifier(&config.table)
    )
}
