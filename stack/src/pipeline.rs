//! The whole pipeline: PostgreSQL, Kafka, and the five processes between them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::process::Process;
use crate::random;
use crate::scratch::Scratch;
use crate::{Kafka, KafkaOptions, Postgres, PostgresOptions, Program, metadata, port, postgres};

/// Users and their outbox.
pub const USERS_DATABASE: &str = "users_db";
/// Posts, their outbox, and the views.
pub const VIEWS_DATABASE: &str = "materialized_view_db";
/// The role of each program, as sql/cluster.sql makes them.
const ROLES: [&str; 6] = [
    "user_api",
    "post_api",
    "view_builder",
    "outbox_relay",
    "outbox_maintainer",
    VERIFIER,
];
/// Reads everything that `view-builder verify` compares.
const VERIFIER: &str = "view_verifier";
/// From its start until a program must be ready.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// What the relay is told beside the defaults of Debezium's router: topics `user-events` and `post-events`, and the type as a header.
const ROUTER_OPTIONS: [&str; 2] = [
    "route.topic.replacement=${routedByValue}-events",
    "table.fields.additional.placement=type:header:eventType",
];

/// Where the programs listen; 0 is a free port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    pub user_api: u16,
    pub post_api: u16,
    pub users_relay: u16,
    pub posts_relay: u16,
    pub view_builder: u16,
}

#[derive(Debug)]
enum PostgresChoice {
    Own(PostgresOptions),
    /// A superuser's URL.
    Theirs(String),
}

#[derive(Debug)]
enum KafkaChoice {
    Own(KafkaOptions),
    /// `HOST:PORT`.
    Theirs(String),
}

/// How to start a [`Pipeline`].
#[derive(Debug)]
pub struct PipelineBuilder {
    postgres: PostgresChoice,
    kafka: KafkaChoice,
    ports: Ports,
    logs: Option<PathBuf>,
    environment: Vec<(String, String)>,
}

/// All parts. Dropping it ends what it started; [`Pipeline::stop`] does so with care.
#[derive(Debug)]
pub struct Pipeline {
    // In this order they are dropped: the programs before the servers that they talk to.
    pub user_api: Program,
    pub post_api: Program,
    /// Publishes the outbox of [`USERS_DATABASE`].
    pub users_relay: Program,
    /// Publishes the outbox of [`VIEWS_DATABASE`].
    pub posts_relay: Program,
    pub view_builder: Program,
    kafka: Option<Kafka>,
    postgres: Option<Postgres>,
    superuser_url: String,
    /// The roles'; none: they need none.
    password: Option<String>,
    bootstrap_servers: String,
    logs: Scratch,
}

/// A part that ended although nobody had told it to.
#[derive(Debug)]
pub struct Death {
    pub name: String,
    pub status: std::process::ExitStatus,
    /// Its last lines.
    pub log_tail: String,
    pub log: PathBuf,
}

impl PipelineBuilder {
    /// A private PostgreSQL (the default, on a free port, with a temporary data directory).
    #[must_use]
    pub fn postgres(mut self, options: PostgresOptions) -> Self {
        self.postgres = PostgresChoice::Own(options);
        self
    }

    /// A server that is there already. The URL is a superuser's; the programs' roles get new random passwords.
    #[must_use]
    pub fn postgres_url(mut self, url: &str) -> Self {
        self.postgres = PostgresChoice::Theirs(url.to_owned());
        self
    }

    /// A private Kafka (the default, on a free port, with a temporary data directory).
    #[must_use]
    pub fn kafka(mut self, options: KafkaOptions) -> Self {
        self.kafka = KafkaChoice::Own(options);
        self
    }

    /// A cluster that is there already, as `HOST:PORT`.
    #[must_use]
    pub fn bootstrap_servers(mut self, address: &str) -> Self {
        self.kafka = KafkaChoice::Theirs(address.to_owned());
        self
    }

    #[must_use]
    pub fn ports(mut self, ports: Ports) -> Self {
        self.ports = ports;
        self
    }

    /// Where the programs' logs go; a temporary directory by default.
    #[must_use]
    pub fn logs(mut self, directory: &Path) -> Self {
        self.logs = Some(directory.to_owned());
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
    /// A part could not be obtained, started, or did not get ready; the message says which and has its last log lines.
    pub async fn start(self) -> anyhow::Result<Pipeline> {
        let pipeline = self.prepare().await?;
        pipeline.start_programs().await?;
        Ok(pipeline)
    }

    /// Everything but the programs' start: servers, databases, roles, tables, slots, topics.
    ///
    /// # Errors
    /// As [`PipelineBuilder::start`].
    pub async fn prepare(self) -> anyhow::Result<Pipeline> {
        let binaries = binaries()?;
        let logs = Scratch::kept_or_temporary(self.logs.as_deref(), "outbox-logs-")?;
        let (postgres, kafka) = tokio::try_join!(start_postgres(&self.postgres), start_kafka(&self.kafka))?;
        let superuser_url = match (&self.postgres, &postgres) {
            (PostgresChoice::Theirs(url), _) => url.clone(),
            (_, Some(postgres)) => postgres.url("postgres", "postgres"),
            _ => bail!("no postgres"),
        };
        let bootstrap_servers = match (&self.kafka, &kafka) {
            (KafkaChoice::Theirs(address), _) => address.clone(),
            (_, Some(kafka)) => kafka.bootstrap_servers(),
            _ => bail!("no kafka"),
        };
        tracing::info!("making the databases, roles and tables");
        postgres::run_script(&superuser_url, &root().join("sql/cluster.sql")).await?;
        let password = match self.postgres {
            PostgresChoice::Own(_) => None,
            PostgresChoice::Theirs(_) => Some(set_passwords(&superuser_url).await?),
        };
        let programs = Programs {
            binaries: &binaries,
            logs: logs.path(),
            superuser_url: &superuser_url,
            password: password.as_deref(),
            bootstrap_servers: &bootstrap_servers,
            environment: &self.environment,
        };
        let pipeline = Pipeline {
            user_api: programs.api("user-api", "user_api", USERS_DATABASE, self.ports.user_api)?,
            post_api: programs.api("post-api", "post_api", VIEWS_DATABASE, self.ports.post_api)?,
            users_relay: programs.relay("users_relay", USERS_DATABASE, self.ports.users_relay)?,
            posts_relay: programs.relay("posts_relay", VIEWS_DATABASE, self.ports.posts_relay)?,
            view_builder: programs.view_builder(self.ports.view_builder)?,
            kafka,
            postgres,
            superuser_url,
            password,
            bootstrap_servers,
            logs,
        };
        pipeline.migrate().await?;
        tracing::info!("making the replication slots and the topics");
        pipeline.init_relays().await?;
        Ok(pipeline)
    }
}

impl Pipeline {
    #[must_use]
    pub fn builder() -> PipelineBuilder {
        PipelineBuilder {
            postgres: PostgresChoice::Own(PostgresOptions::default()),
            kafka: KafkaChoice::Own(KafkaOptions::default()),
            ports: Ports::default(),
            logs: None,
            environment: Vec::new(),
        }
    }

    /// The private PostgreSQL.
    ///
    /// # Errors
    /// The pipeline runs on somebody else's.
    pub fn postgres(&self) -> anyhow::Result<&Postgres> {
        self.postgres
            .as_ref()
            .context("this pipeline did not start its postgres")
    }

    /// The private Kafka.
    ///
    /// # Errors
    /// The pipeline runs on somebody else's.
    pub fn kafka(&self) -> anyhow::Result<&Kafka> {
        self.kafka.as_ref().context("this pipeline did not start its kafka")
    }

    #[must_use]
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// The superuser's URL of `database`.
    ///
    /// # Errors
    /// The URL that the pipeline was given is none.
    pub fn database_url(&self, database: &str) -> anyhow::Result<String> {
        url_for(&self.superuser_url, None, database)
    }

    /// The URL of `database` for the role that `view-builder verify` runs as.
    ///
    /// # Errors
    /// The URL that the pipeline was given is none.
    pub fn verifier_url(&self, database: &str) -> anyhow::Result<String> {
        url_for(
            &self.superuser_url,
            Some((VERIFIER, self.password.as_deref())),
            database,
        )
    }

    /// The command `view-builder verify` with `arguments`, not started. Its answer is its log, in which failures only stand beside.
    ///
    /// # Errors
    /// As [`Pipeline::verifier_url`].
    pub fn verifier(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Program> {
        let arguments = [&["verify"], arguments].concat();
        let sources = [("user-events", USERS_DATABASE), ("post-events", VIEWS_DATABASE)];
        let mut lines = Vec::new();
        for (topic, database) in sources {
            lines.push(format!("{topic}={}", self.verifier_url(database)?));
        }
        let command = self.view_builder.command_of(name, &arguments);
        Ok(command
            .env("DATABASE_URL", &self.verifier_url(VIEWS_DATABASE)?)
            .env("SOURCES", &lines.join("\n"))
            .env("LOG", "error"))
    }

    /// The directory of the programs' logs.
    #[must_use]
    pub fn logs(&self) -> &Path {
        self.logs.path()
    }

    /// All five, in the order of their start.
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

    /// Starts the programs and waits until each is ready.
    ///
    /// # Errors
    /// One ended or did not get ready; the message has its last log lines.
    pub async fn start_programs(&self) -> anyhow::Result<()> {
        for program in self.programs() {
            program.start()?;
        }
        for program in self.programs() {
            program.wait_ready(READY_DEADLINE).await?;
        }
        Ok(())
    }

    /// Runs the migrations of both databases as the superuser.
    ///
    /// # Errors
    /// One failed; the message has the last log lines.
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
    /// It failed; the message has the last log lines.
    pub async fn init_relay(&self, relay: &Program, database: &str, topic: &str) -> anyhow::Result<()> {
        let url = self.database_url(database)?;
        relay
            .with_env("DATABASE_URL", &url)
            .run(&["init", "--topic", topic])
            .await
    }

    /// Initializes both relays: publication, slot, topic and first checkpoint of each.
    ///
    /// # Errors
    /// One failed; the message has the last log lines.
    pub async fn init_relays(&self) -> anyhow::Result<()> {
        self.init_relay(&self.users_relay, USERS_DATABASE, "user-events:8")
            .await?;
        self.init_relay(&self.posts_relay, VIEWS_DATABASE, "post-events:8")
            .await
    }

    /// Waits until a part ends by itself.
    pub async fn death(&self) -> Death {
        loop {
            for process in self.processes() {
                if let Some(status) = process.exit_status() {
                    return Death {
                        name: process.name().to_owned(),
                        status,
                        log_tail: process.log_tail(15),
                        log: process.log().to_owned(),
                    };
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends the programs, then Kafka, then PostgreSQL.
    ///
    /// # Errors
    /// The first part that did not end as it should; all the others have been ended nevertheless.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let programs = self.stop_programs().await;
        let kafka = match &self.kafka {
            Some(kafka) => kafka.stop().await,
            None => Ok(()),
        };
        let postgres = match &self.postgres {
            Some(postgres) => postgres.stop_fast().await,
            None => Ok(()),
        };
        programs.and(kafka).and(postgres)
    }

    /// Ends the programs, all at once, and leaves the servers.
    ///
    /// # Errors
    /// The first program that did not end as it should; all the others have been ended nevertheless.
    pub async fn stop_programs(&self) -> anyhow::Result<()> {
        let ended = futures_util::future::join_all(self.programs().map(Program::stop)).await;
        ended.into_iter().collect()
    }

    fn processes(&self) -> Vec<Arc<Process>> {
        let servers = [
            self.postgres.as_ref().and_then(Postgres::process),
            self.kafka.as_ref().and_then(Kafka::process),
        ];
        let programs = self.programs().map(Program::process);
        servers.into_iter().chain(programs).flatten().collect()
    }
}

/// What all programs of one pipeline share.
struct Programs<'a> {
    binaries: &'a Path,
    logs: &'a Path,
    superuser_url: &'a str,
    password: Option<&'a str>,
    bootstrap_servers: &'a str,
    environment: &'a [(String, String)],
}

impl Programs<'_> {
    fn program(&self, name: &str, binary: &str, role: &str, database: &str, port: u16) -> anyhow::Result<Program> {
        let log = self.logs.join(format!("{name}.log"));
        let binary = self.binaries.join(binary);
        let url = url_for(self.superuser_url, Some((role, self.password)), database)?;
        let program = Program::new(name, &binary, log, port)
            .env("DATABASE_URL", &url)
            .env("LOG_FORMAT", "text");
        let own = self.environment.iter();
        Ok(own.fold(program, |program, (name, value)| program.env(name, value)))
    }

    fn api(&self, name: &str, role: &str, database: &str, wanted: u16) -> anyhow::Result<Program> {
        let port = port::given_or_free(wanted)?;
        let program = self.program(name, name, role, database, port)?;
        Ok(program.env("LISTEN", &format!("127.0.0.1:{port}")))
    }

    fn relay(&self, slot: &str, database: &str, wanted: u16) -> anyhow::Result<Program> {
        let port = port::given_or_free(wanted)?;
        let name = slot.replace('_', "-");
        let program = self.program(&name, "outbox-relay", "outbox_relay", database, port)?;
        let maintainer = url_for(self.superuser_url, Some(("outbox_maintainer", self.password)), database)?;
        Ok(program
            .argument("run")
            .env("MAINTENANCE_DATABASE_URL", &maintainer)
            .env("KAFKA_BOOTSTRAP_SERVERS", self.bootstrap_servers)
            .env("OUTBOX_SLOT", slot)
            .env("ROUTER_OPTIONS", &ROUTER_OPTIONS.join("\n"))
            .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}")))
    }

    fn view_builder(&self, wanted: u16) -> anyhow::Result<Program> {
        let port = port::given_or_free(wanted)?;
        let name = "view-builder";
        let program = self.program(name, name, "view_builder", VIEWS_DATABASE, port)?;
        Ok(program
            .argument("run")
            .env("KAFKA_BOOTSTRAP_SERVERS", self.bootstrap_servers)
            .env("VIEWS", &root().join("sql/views").to_string_lossy())
            .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}")))
    }
}

async fn start_postgres(choice: &PostgresChoice) -> anyhow::Result<Option<Postgres>> {
    match choice {
        PostgresChoice::Own(options) => {
            let postgres = Postgres::start(options.clone()).await?;
            tracing::info!("PostgreSQL {} is up on port {}", postgres.version(), postgres.port());
            Ok(Some(postgres))
        }
        PostgresChoice::Theirs(url) => {
            check_postgres(url).await?;
            Ok(None)
        }
    }
}

async fn start_kafka(choice: &KafkaChoice) -> anyhow::Result<Option<Kafka>> {
    match choice {
        KafkaChoice::Own(options) => {
            let kafka = Kafka::start(options.clone()).await?;
            tracing::info!("Apache Kafka is up on port {}", kafka.port());
            Ok(Some(kafka))
        }
        KafkaChoice::Theirs(address) => {
            let brokers = metadata::brokers(address).await?;
            ensure!(brokers > 0, "the Kafka cluster at {address} has no broker");
            Ok(None)
        }
    }
}

/// Refuses a server that cannot carry the pipeline, by name of what is wrong.
async fn check_postgres(url: &str) -> anyhow::Result<()> {
    let client = postgres::connect(url).await?;
    let row = client
        .query_one(
            "select current_setting('server_version_num')::int / 10000,
                    current_setting('wal_level'),
                    rolsuper
             from pg_roles where rolname = current_user",
            &[],
        )
        .await?;
    let (version, wal_level, superuser): (i32, String, bool) = (row.get(0), row.get(1), row.get(2));
    ensure!(
        (15..=18).contains(&version),
        "this is PostgreSQL {version}; the pipeline needs 15-18"
    );
    ensure!(
        wal_level == "logical",
        "wal_level is {wal_level}; it must be logical: alter system set wal_level = logical, then restart the server"
    );
    ensure!(
        superuser,
        "the user of the PostgreSQL URL is no superuser, and cannot make the databases, roles and slots"
    );
    Ok(())
}

/// A server with passwords would refuse the roles as sql/cluster.sql makes them.
async fn set_passwords(url: &str) -> anyhow::Result<String> {
    let password = random::password()?;
    let statements = ROLES.map(|role| format!("alter role {role} password '{password}';"));
    postgres::connect(url)
        .await?
        .batch_execute(&statements.concat())
        .await?;
    Ok(password)
}

/// `url` with another database and, if given, another user.
fn url_for(url: &str, user: Option<(&str, Option<&str>)>, database: &str) -> anyhow::Result<String> {
    let mut url = url::Url::parse(url)
        .context("the PostgreSQL URL is none: expected postgres://USER:PASSWORD@HOST:PORT/DATABASE")?;
    url.set_path(database);
    if let Some((user, password)) = user {
        let changed = url.set_username(user).and_then(|()| url.set_password(password));
        changed.map_err(|()| anyhow::anyhow!("the PostgreSQL URL has no host"))?;
    }
    Ok(url.to_string())
}

/// The checkout that this crate was compiled in: its SQL is read from there.
#[must_use]
pub fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// The directory of the built programs: cargo puts them beside the quick start, and tests one directory below.
///
/// # Errors
/// They are not built.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let found = own.ancestors().skip(1).take(3).find(|directory| {
        ["user-api", "post-api", "outbox-relay", "view-builder"]
            .iter()
            .all(|name| directory.join(name).is_file())
    });
    found.map(Path::to_owned).with_context(|| {
        format!(
            "the programs are not built beside {}: run cargo build --release --workspace",
            own.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::url_for;

    #[test]
    fn a_url_changes_its_database_and_user_only() {
        assert_eq!(
            url_for(
                "postgres://root:secret@db:5433/postgres?sslmode=require",
                Some(("user_api", Some("p"))),
                "users_db"
            )
            .expect("a URL"),
            "postgres://user_api:p@db:5433/users_db?sslmode=require"
        );
        assert_eq!(
            url_for("postgres://postgres@127.0.0.1:1/postgres", None, "users_db").expect("a URL"),
            "postgres://postgres@127.0.0.1:1/users_db"
        );
    }
}
