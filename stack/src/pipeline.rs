//! The whole pipeline: PostgreSQL, Kafka, and the five processes between them.

mod builder;
mod console;
mod kafka_server;
mod postgres_server;
mod programs;

use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use kafka_server::KafkaServer;
use postgres_server::{PostgresServer, VERIFIER};

use crate::process::Process;
use crate::scratch::Scratch;
use crate::{Kafka, Postgres, Program};

pub use builder::{PipelineBuilder, Ports};
pub use console::Console;

/// Users and their outbox.
pub const USERS_DATABASE: &str = "users_db";
/// Posts, their outbox, and the views.
pub const VIEWS_DATABASE: &str = "materialized_view_db";
/// From its start until a program must be ready.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// All parts of a pipeline. Dropping it ends at once what it has started. [`Pipeline::stop`] lets each part end in order, and waits for it.
#[derive(Debug)]
pub struct Pipeline {
    // Rust drops fields in this order, so the programs end before the servers that they talk to.
    pub user_api: Program,
    pub post_api: Program,
    /// Publishes the outbox of [`USERS_DATABASE`].
    pub users_relay: Program,
    /// Publishes the outbox of [`VIEWS_DATABASE`].
    pub posts_relay: Program,
    pub view_builder: Program,
    /// None unless it was asked for: see [`PipelineBuilder::console`].
    pub console: Option<Console>,
    kafka: KafkaServer,
    bootstrap_servers: String,
    postgres: PostgresServer,
    logs: Scratch,
}

/// A part of the pipeline that has ended although nobody stopped it.
#[derive(Debug)]
pub struct UnexpectedEnd {
    /// Name of the part.
    pub name: String,
    pub status: ExitStatus,
    /// The last lines of its log.
    pub log_tail: String,
}

impl Pipeline {
    #[must_use]
    pub fn builder() -> PipelineBuilder {
        PipelineBuilder::new()
    }

    /// The PostgreSQL that the pipeline has started.
    ///
    /// # Errors
    /// The pipeline runs on a server that was there already.
    pub fn postgres(&self) -> anyhow::Result<&Postgres> {
        self.postgres
            .private()
            .context("this pipeline did not start its postgres")
    }

    /// The Kafka that the pipeline has started.
    ///
    /// # Errors
    /// The pipeline runs on a cluster that was there already.
    pub fn kafka(&self) -> anyhow::Result<&Kafka> {
        self.kafka.private().context("this pipeline did not start its kafka")
    }

    /// The address of Kafka, as `HOST:PORT`.
    #[must_use]
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// The URL of `database` for the superuser.
    ///
    /// # Errors
    /// The pipeline was given an address that is not a URL.
    pub fn database_url(&self, database: &str) -> anyhow::Result<String> {
        self.postgres.url_for_superuser(database)
    }

    /// The URL of `database` for the role that `view-builder verify` runs as.
    ///
    /// # Errors
    /// As [`Pipeline::database_url`].
    pub fn verifier_url(&self, database: &str) -> anyhow::Result<String> {
        self.postgres.url_for_role(VERIFIER, database)
    }

    /// The command `view-builder verify` with `arguments`, not yet started. It writes its result into its log. Apart from the result, it
    /// logs errors alone.
    ///
    /// # Errors
    /// As [`Pipeline::database_url`].
    pub fn verifier(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Program> {
        let arguments = [&["verify"], arguments].concat();
        let mut sources = Vec::new();
        for (topic, database) in [("user-events", USERS_DATABASE), ("post-events", VIEWS_DATABASE)] {
            sources.push(format!("{topic}={}", self.verifier_url(database)?));
        }
        let command = self.view_builder.command_of(name, &arguments);
        Ok(command
            .env("DATABASE_URL", &self.verifier_url(VIEWS_DATABASE)?)
            .env("SOURCES", &sources.join("\n"))
            .env("LOG", "error"))
    }

    /// The directory of the programs' logs.
    #[must_use]
    pub fn logs(&self) -> &Path {
        self.logs.path()
    }

    /// The five programs that move events, in the order in which they are started. The console is not one of them.
    #[must_use]
    pub fn programs(&self) -> [&Program; 5] {
        [
            &self.user_api,
            &self.post_api,
            &self.users_relay,
            &self.posts_relay,
            &self.view_builder,
        ]
    }

    /// Starts the programs, and waits until each is ready.
    ///
    /// # Errors
    /// A program ended or did not get ready. The message has its last log lines.
    pub async fn start_programs(&self) -> anyhow::Result<()> {
        for program in self.programs() {
            program.start()?;
        }
        for program in self.programs() {
            program.wait_ready(READY_DEADLINE).await?;
        }
        if let Some(console) = &self.console {
            console.program.start()?;
            console.program.wait_ready(READY_DEADLINE).await?;
        }
        Ok(())
    }

    /// Runs the migrations of both databases as the superuser.
    ///
    /// # Errors
    /// A migration failed. The message has the last log lines.
    pub async fn migrate(&self) -> anyhow::Result<()> {
        let programs = [(&self.user_api, USERS_DATABASE), (&self.post_api, VIEWS_DATABASE)];
        for (program, database) in programs {
            let url = self.database_url(database)?;
            program.with_env("DATABASE_URL", &url).run(&["migrate"]).await?;
        }
        Ok(())
    }

    /// Runs `outbox-relay init` as the superuser, on `database` with `relay`'s environment. `topic` is `NAME:PARTITIONS`.
    ///
    /// # Errors
    /// The command failed. The message has the last log lines.
    pub async fn init_relay(&self, relay: &Program, database: &str, topic: &str) -> anyhow::Result<()> {
        let url = self.database_url(database)?;
        relay
            .with_env("DATABASE_URL", &url)
            .run(&["init", "--topic", topic])
            .await
    }

    /// Initialises both relays: publication, slot, topic and first checkpoint of each.
    ///
    /// # Errors
    /// As [`Pipeline::init_relay`].
    pub async fn init_relays(&self) -> anyhow::Result<()> {
        self.init_relay(&self.users_relay, USERS_DATABASE, "user-events:8")
            .await?;
        self.init_relay(&self.posts_relay, VIEWS_DATABASE, "post-events:8")
            .await
    }

    /// Waits until a part ends although nobody stopped it.
    pub async fn unexpected_end(&self) -> UnexpectedEnd {
        loop {
            for process in self.processes() {
                if let Some(status) = process.exit_status() {
                    return UnexpectedEnd {
                        name: process.name().to_owned(),
                        status,
                        log_tail: process.log_tail(15),
                    };
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops the programs, then Kafka, then PostgreSQL. Servers that were there before the pipeline go on running.
    ///
    /// # Errors
    /// The first part that did not end in order. The other parts have ended nevertheless.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let programs = self.stop_programs().await;
        let kafka = match self.kafka.private() {
            Some(kafka) => kafka.stop().await,
            None => Ok(()),
        };
        let postgres = match self.postgres.private() {
            Some(postgres) => postgres.stop_fast().await,
            None => Ok(()),
        };
        programs.and(kafka).and(postgres)
    }

    /// Stops all programs at once, and leaves the servers running.
    ///
    /// # Errors
    /// The first program that did not end in order. The other programs have ended nevertheless.
    pub async fn stop_programs(&self) -> anyhow::Result<()> {
        let console = self.console.iter().map(|console| &console.program);
        let all = self.programs().into_iter().chain(console);
        let ended = futures_util::future::join_all(all.map(Program::stop)).await;
        ended.into_iter().collect()
    }

    /// The processes of all parts that the pipeline has started.
    fn processes(&self) -> Vec<Arc<Process>> {
        let servers = [
            self.postgres.private().and_then(Postgres::process),
            self.kafka.private().and_then(Kafka::process),
        ];
        let console = self.console.iter().map(|console| &console.program);
        let programs = self.programs().into_iter().chain(console).map(Program::process);
        servers.into_iter().chain(programs).flatten().collect()
    }
}
