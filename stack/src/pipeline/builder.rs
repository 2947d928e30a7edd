//! How a pipeline is to be started, and its start.

use std::path::{Path, PathBuf};

use super::console::Console;
use super::kafka_server::{KafkaChoice, KafkaServer};
use super::postgres_server::{PostgresChoice, PostgresServer};
use super::programs::Programs;
use super::{Pipeline, USERS_DATABASE, VIEWS_DATABASE};
use crate::scratch::Scratch;
use crate::{KafkaOptions, PostgresOptions, checkout};

/// The port that each program listens on; 0 is a free port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    pub user_api: u16,
    pub post_api: u16,
    pub users_relay: u16,
    pub posts_relay: u16,
    pub view_builder: u16,
    /// The console's pages.
    pub console: u16,
    /// The console's `/livez`, `/readyz` and `/metrics`.
    pub console_admin: u16,
}

/// Whether a pipeline has a console.
#[derive(Debug)]
enum ConsoleChoice {
    None,
    /// Its settings and its token are kept in this directory, or in a temporary one.
    Started(Option<PathBuf>),
}

/// How to start a [`Pipeline`].
#[derive(Debug)]
pub struct PipelineBuilder {
    postgres: PostgresChoice,
    kafka: KafkaChoice,
    ports: Ports,
    logs: Option<PathBuf>,
    console: ConsoleChoice,
    environment: Vec<(String, String)>,
}

impl PipelineBuilder {
    pub(super) fn new() -> Self {
        Self {
            postgres: PostgresChoice::Private(PostgresOptions::default()),
            kafka: KafkaChoice::Private(KafkaOptions::default()),
            ports: Ports::default(),
            logs: None,
            console: ConsoleChoice::None,
            environment: Vec::new(),
        }
    }

    /// A private PostgreSQL with these options. The default is a free port and a temporary data directory.
    #[must_use]
    pub fn postgres(mut self, options: PostgresOptions) -> Self {
        self.postgres = PostgresChoice::Private(options);
        self
    }

    /// A PostgreSQL that is there already. The URL is a superuser's; the programs' roles get a new random password.
    #[must_use]
    pub fn postgres_url(mut self, superuser_url: &str) -> Self {
        self.postgres = PostgresChoice::Existing(superuser_url.to_owned());
        self
    }

    /// A private Kafka with these options. The default is a free port and a temporary data directory.
    #[must_use]
    pub fn kafka(mut self, options: KafkaOptions) -> Self {
        self.kafka = KafkaChoice::Private(options);
        self
    }

    /// A Kafka cluster that is there already, as `HOST:PORT`.
    #[must_use]
    pub fn bootstrap_servers(mut self, address: &str) -> Self {
        self.kafka = KafkaChoice::Existing(address.to_owned());
        self
    }

    #[must_use]
    pub fn ports(mut self, ports: Ports) -> Self {
        self.ports = ports;
        self
    }

    /// The directory for the programs' logs. The default is a temporary one.
    #[must_use]
    pub fn logs(mut self, directory: &Path) -> Self {
        self.logs = Some(directory.to_owned());
        self
    }

    /// Also starts the console. Its settings and the token of an operator are kept in `directory`. The default is a temporary one.
    #[must_use]
    pub fn console(mut self, directory: Option<&Path>) -> Self {
        self.console = ConsoleChoice::Started(directory.map(Path::to_owned));
        self
    }

    /// A variable for every program, such as `LOG`.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts everything, and waits until every program is ready.
    ///
    /// # Errors
    /// A part could not be obtained or started, or did not get ready. The message says which part, and has its last log lines.
    pub async fn start(self) -> anyhow::Result<Pipeline> {
        let pipeline = self.prepare().await?;
        pipeline.start_programs().await?;
        Ok(pipeline)
    }

    /// Makes everything that the programs need (servers, databases, roles, tables, slots, topics), and starts no program.
    ///
    /// # Errors
    /// As [`PipelineBuilder::start`].
    pub async fn prepare(self) -> anyhow::Result<Pipeline> {
        let programs_directory = checkout::programs_directory()?;
        let logs = Scratch::kept_or_temporary(self.logs.as_deref(), "outbox-logs-")?;
        let (postgres, kafka) = tokio::try_join!(
            PostgresServer::start_or_check(self.postgres),
            KafkaServer::start_or_check(self.kafka)
        )?;
        tracing::info!("making the databases, roles and tables");
        postgres.make_databases_and_roles().await?;
        let bootstrap_servers = kafka.bootstrap_servers();
        let programs = Programs {
            directory: &programs_directory,
            logs: logs.path(),
            postgres: &postgres,
            bootstrap_servers: &bootstrap_servers,
            environment: &self.environment,
        };
        let mut pipeline = Pipeline {
            user_api: programs.user_api(self.ports.user_api)?,
            post_api: programs.post_api(self.ports.post_api)?,
            users_relay: programs.relay("users_relay", USERS_DATABASE, self.ports.users_relay)?,
            posts_relay: programs.relay("posts_relay", VIEWS_DATABASE, self.ports.posts_relay)?,
            view_builder: programs.view_builder(self.ports.view_builder)?,
            console: None,
            kafka,
            bootstrap_servers,
            postgres,
            logs,
        };
        pipeline.migrate().await?;
        tracing::info!("making the replication slots and the topics");
        pipeline.init_relays().await?;
        if let ConsoleChoice::Started(directory) = &self.console {
            let directory = Scratch::kept_or_temporary(directory.as_deref(), "outbox-console-")?;
            let console = Console::prepare(&pipeline, &programs_directory, directory, self.ports, &self.environment);
            pipeline.console = Some(console.await?);
        }
        Ok(pipeline)
    }
}
