//! How each program of a pipeline is called: its binary, arguments and environment.

use std::path::Path;

use super::postgres_server::PostgresServer;
use super::{USERS_DATABASE, VIEWS_DATABASE};
use crate::{Program, checkout, port};

/// The options for the relay's router that differ from Debezium's defaults. The topics are `user-events` and `post-events`, and each record
/// has its event's type in a header.
pub(super) const ROUTER_OPTIONS: [&str; 2] = [
    "route.topic.replacement=${routedByValue}-events",
    "table.fields.additional.placement=type:header:eventType",
];

/// What all programs of one pipeline share.
pub(super) struct Programs<'a> {
    /// The directory of the built programs.
    pub(super) directory: &'a Path,
    pub(super) logs: &'a Path,
    pub(super) postgres: &'a PostgresServer,
    pub(super) bootstrap_servers: &'a str,
    /// Variables for every program.
    pub(super) environment: &'a [(String, String)],
}

impl Programs<'_> {
    /// user-api. A `port` of 0 is a free one, here and below.
    ///
    /// # Errors
    /// No port is free, or the pipeline was given a wrong URL.
    pub(super) fn user_api(&self, port: u16) -> anyhow::Result<Program> {
        self.api("user-api", "user_api", USERS_DATABASE, port)
    }

    /// post-api.
    ///
    /// # Errors
    /// As [`Programs::user_api`].
    pub(super) fn post_api(&self, port: u16) -> anyhow::Result<Program> {
        self.api("post-api", "post_api", VIEWS_DATABASE, port)
    }

    /// The relay that reads `database` through `slot`.
    ///
    /// # Errors
    /// As [`Programs::user_api`].
    pub(super) fn relay(&self, slot: &str, database: &str, port: u16) -> anyhow::Result<Program> {
        let port = port::given_or_free(port)?;
        let name = slot.replace('_', "-");
        let program = self.program(&name, "outbox-relay", "outbox_relay", database, port)?;
        let maintainer_url = self.postgres.url_for_role("outbox_maintainer", database)?;
        Ok(program
            .argument("run")
            .env("MAINTENANCE_DATABASE_URL", &maintainer_url)
            .env("KAFKA_BOOTSTRAP_SERVERS", self.bootstrap_servers)
            .env("OUTBOX_SLOT", slot)
            .env("ROUTER_OPTIONS", &ROUTER_OPTIONS.join("\n"))
            .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}")))
    }

    /// view-builder.
    ///
    /// # Errors
    /// As [`Programs::user_api`].
    pub(super) fn view_builder(&self, port: u16) -> anyhow::Result<Program> {
        let port = port::given_or_free(port)?;
        let program = self.program("view-builder", "view-builder", "view_builder", VIEWS_DATABASE, port)?;
        Ok(program
            .argument("run")
            .env("KAFKA_BOOTSTRAP_SERVERS", self.bootstrap_servers)
            .env("VIEWS", &checkout::root().join("sql/views").to_string_lossy())
            .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}")))
    }

    fn api(&self, name: &str, role: &str, database: &str, port: u16) -> anyhow::Result<Program> {
        let port = port::given_or_free(port)?;
        let program = self.program(name, name, role, database, port)?;
        Ok(program.env("LISTEN", &format!("127.0.0.1:{port}")))
    }

    fn program(&self, name: &str, binary: &str, role: &str, database: &str, port: u16) -> anyhow::Result<Program> {
        let log = self.logs.join(format!("{name}.log"));
        let binary = self.directory.join(binary);
        let program = Program::new(name, &binary, log, port)
            .env("DATABASE_URL", &self.postgres.url_for_role(role, database)?)
            .env("LOG_FORMAT", "text");
        let variables = self.environment.iter();
        Ok(variables.fold(program, |program, (name, value)| program.env(name, value)))
    }
}
