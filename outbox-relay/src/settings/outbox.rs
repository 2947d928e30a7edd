//! What is asked of the outbox: where its rows are, and how a row becomes a record.

use clap::Args;

use crate::process::stop::Stop;
use outbox_router::RouterOptions;

#[derive(Clone, Debug, Args)]
pub struct OutboxSettings {
    /// The outbox table, SCHEMA.TABLE; empty for none, with --message-prefix.
    #[arg(long, env = "OUTBOX_TABLE", default_value = "public.outbox")]
    pub table: String,
    /// Publish what pg_logical_emit_message(true, PREFIX, content) writes, too: content is a JSON object with the outbox' columns. The
    /// table may then be missing. Empty for none.
    #[arg(long, env = "OUTBOX_MESSAGE_PREFIX", value_name = "PREFIX")]
    pub message_prefix: Option<String>,
    /// Router option by Debezium's name, NAME=VALUE, repeatable; in the environment one a line.
    #[arg(
        long = "set",
        env = "ROUTER_OPTIONS",
        value_name = "NAME=VALUE",
        value_delimiter = '\n'
    )]
    pub router_options: Vec<String>,
}

/// [`OutboxSettings`], checked.
#[derive(Clone, Debug)]
pub struct OutboxConfig {
    /// Empty where there is no table, as [`OutboxConfig::table`] is.
    pub schema: String,
    pub table: String,
    /// Prefix of the logical decoding messages that are events.
    pub message_prefix: Option<String>,
    pub router: RouterOptions,
}

impl OutboxSettings {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Stop::Config`] names the setting that is wrong, and what would be right.
    pub fn check(&self) -> Result<OutboxConfig, Stop> {
        let message_prefix = self.message_prefix.clone().filter(|prefix| !prefix.is_empty());
        let (schema, table) = match self.table.as_str() {
            "" => ("", ""),
            name => name.split_once('.').unwrap_or(("public", name)),
        };
        let has_no_table = self.table.is_empty() && message_prefix.is_some();
        if !has_no_table && (schema.is_empty() || table.is_empty()) {
            return Err(Stop::Config {
                what: format!("--table `{}`: expected SCHEMA.TABLE", self.table),
            });
        }
        Ok(OutboxConfig {
            schema: schema.to_owned(),
            table: table.to_owned(),
            message_prefix,
            router: RouterOptions::parse(&self.router_options).map_err(|err| Stop::Config { what: err.to_string() })?,
        })
    }
}
