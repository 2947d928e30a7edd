//! The outbox table as SQL names it.

use crate::postgres::quote_identifier;
use crate::settings::Config;

/// The outbox table as SQL names it.
#[must_use]
pub(crate) fn table_name(config: &Config) -> String {
    format!(
        "{}.{}",
        quote_identifier(&config.schema),
        quote_identifier(&config.table)
    )
}
