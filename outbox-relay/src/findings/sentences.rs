//! Sentences that `check` and `status` share.

use std::fmt::Display;

use crate::process::stop::Stop;
use crate::settings::Config;
use pg_replication::PgError;

/// Postgres does not answer, or refuses, and what to look at.
pub(crate) fn postgres_is_away(err: &anyhow::Error) -> String {
    let hint = match PgError::code_of(err) {
        Some("28P01" | "28000") => "; check user and password, and that pg_hba.conf lets the role connect",
        Some("42501") => "; the role needs the attribute replication: alter role … replication",
        Some("3D000") => "; the database does not exist",
        _ => "",
    };
    format!("{err:#}{hint}")
}

/// Kafka does not answer, or refuses.
pub(crate) fn kafka_is_away(config: &Config, err: impl Display) -> String {
    format!("Kafka at {}: {err:#}", config.sink.kafka.client.bootstrap_servers)
}

/// The publication is missing or does not publish the outbox.
pub(crate) fn publication_is_unusable(config: &Config, stop: &Stop) -> String {
    format!(
        "{stop}; `outbox-relay init` makes it, or: create publication {} for table {}.{} with (publish = 'insert', publish_via_partition_root = true)",
        config.source.publication, config.outbox.schema, config.outbox.table
    )
}

/// So many rows are parked.
pub(crate) fn rows_are_parked(rows: u64) -> String {
    format!(
        "{rows} rows are parked and not published; `outbox-relay parked list` shows them, docs/poison.md says what to do"
    )
}
