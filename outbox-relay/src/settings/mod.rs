//! The relay's settings: each a flag and an environment variable.

pub mod parking;
pub mod poison;

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use service::Secret;

use crate::continuity::lineage::Names;
use crate::kafka::{CheckpointLog, Delivery, KafkaSettings, NewTopic};
use crate::process::faults::{self, Bug};
use crate::process::stop::Stop;
use crate::settings::parking::{ParkArgs, ParkedCommand};
use crate::settings::poison::PoisonOptions;
use outbox_router::RouterOptions;
use pg_replication::{Connection, InvalidUrl, Password, Target};

/// Publishes the rows of a Postgres outbox table to Kafka, exactly once, in commit order.
///
/// It reads a logical replication slot (pgoutput), so that an event is published if and only if its transaction committed. Records and
/// the checkpoint that says up to where everything is published travel in one Kafka transaction; a reader with
/// isolation.level=read_committed sees each event once.
#[derive(Debug, Parser)]
#[command(version, after_long_help = Stop::EXIT_CODES, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say all that is wrong with database, publication, slot, role and cluster, and how to mend it; changes nothing.
    Check(Settings),
    /// Create publication, slot, topics and the first checkpoint; safe to repeat. Needs a role that owns the table and may replicate.
    Init(InitArgs),
    /// Publish until stopped. A second relay of the same slot waits as a warm standby.
    Run(RunArgs),
    /// Print slot, checkpoint and lag.
    Status(Settings),
    /// Go on after a stop (exit codes 10 to 21): make the slot anew, compare the outbox with the topics, publish what is missing. Says first
    /// what it will do. Needs a role that may replicate and read the outbox.
    Recover(RecoverArgs),
    /// Publish chosen rows of the outbox again, marked by a header. A running relay goes on beside it. Says first what it will do.
    Replay(ReplayArgs),
    /// Have the relay stop publishing, for as long as it takes; it keeps the slot, and stays paused over restarts. Postgres keeps the WAL meanwhile.
    Pause(PauseArgs),
    /// Have a paused relay publish again.
    Resume(Settings),
    /// Put aside the row at which the relay has stopped: the next `run` parks exactly this one, and goes on behind it.
    Park(ParkArgs),
    /// Look at parked rows, publish them after all, or give them up.
    #[command(subcommand)]
    Parked(ParkedCommand),
    /// Ask the relay that serves ADMIN_LISTEN whether it is ready: 0 if it is, 1 if not.
    Health(HealthArgs),
}

#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Where the outbox is: postgresql://user:password@host:port/database. Several hosts, HOST:PORT,HOST:PORT, are tried in their order
    /// until one is the primary (target_session_attrs: primary, read-write or any). Parameters: target_session_attrs, sslmode, sslrootcert, sslcert, sslkey,
    /// channel_binding, passwordfile, host (a directory is a Unix socket), connect_timeout (seconds), application_name, options.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Secret,
    /// Kafka's bootstrap servers, HOST:PORT separated by commas.
    #[arg(long = "kafka", env = "KAFKA_BOOTSTRAP_SERVERS", default_value = "localhost:9092")]
    pub kafka: String,
    /// Logical replication slot; unique in its cluster. One relay reads one slot.
    #[arg(long, env = "OUTBOX_SLOT", default_value = "outbox_relay")]
    pub slot: String,
    /// Publication that has the inserts of the outbox table.
    #[arg(long, env = "OUTBOX_PUBLICATION", default_value = "outbox")]
    pub publication: String,
    /// The outbox table, SCHEMA.TABLE; empty for none, with --message-prefix.
    #[arg(long, env = "OUTBOX_TABLE", default_value = "public.outbox")]
    pub table: String,
    /// Publish what pg_logical_emit_message(true, PREFIX, content) writes, too: content is a JSON object with the outbox' columns. The
    /// table may then be missing. Empty for none.
    #[arg(long, env = "OUTBOX_MESSAGE_PREFIX", value_name = "PREFIX")]
    pub message_prefix: Option<String>,
    /// Topic of the checkpoints: compacted, one partition; several relays may share it.
    #[arg(long, env = "CHECKPOINT_TOPIC", default_value = "outbox-relay-checkpoints")]
    pub checkpoint_topic: String,
    /// Topic of parked rows: compacted, one partition; several relays may share it.
    #[arg(long, env = "PARKING_TOPIC", default_value = "outbox-relay-parked")]
    pub parking_topic: String,
    /// Router option by Debezium's name, NAME=VALUE, repeatable; in the environment one a line.
    #[arg(
        long = "set",
        env = "ROUTER_OPTIONS",
        value_name = "NAME=VALUE",
        value_delimiter = '\n'
    )]
    pub router_options: Vec<String>,
    /// librdkafka property, NAME=VALUE, repeatable; in the environment one a line. For TLS, SASL, compression, message.max.bytes …
    #[arg(
        long = "kafka-property",
        env = "KAFKA_PROPERTIES",
        value_name = "NAME=VALUE",
        value_delimiter = '\n',
        hide_env_values = true
    )]
    pub kafka_properties: Vec<String>,
    /// librdkafka property whose value is in a file, NAME=PATH, repeatable; in the environment one a line. For passwords.
    #[arg(
        long = "kafka-property-file",
        env = "KAFKA_PROPERTY_FILES",
        value_name = "NAME=PATH",
        value_delimiter = '\n'
    )]
    pub kafka_property_files: Vec<String>,
    /// File of the JWT for SASL OAUTHBEARER (sasl.mechanism=OAUTHBEARER); read again for each refresh, so whatever issues tokens may write there.
    #[arg(long, env = "KAFKA_OAUTH_TOKEN_FILE", value_name = "PATH")]
    pub kafka_oauth_token_file: Option<std::path::PathBuf>,
    /// The brokers' transaction.max.timeout.ms, in milliseconds (1000 to 86400000). A transaction that is open for longer has lost its end,
    /// and hides what lies behind it for ever: the relay then stops with exit code 36 (docs/exit-codes.md). No transaction of the relay's is
    /// allowed a longer time.
    #[arg(long, env = "KAFKA_TRANSACTION_MAX_TIMEOUT_MS", value_name = "MS", default_value_t = crate::kafka::TRANSACTION_MAX_TIMEOUT_MS, value_parser = clap::value_parser!(u64).range(1_000..=86_400_000))]
    pub kafka_transaction_max_timeout_ms: u64,
    /// What readers of the topics are promised.
    #[arg(long, env = "DELIVERY", value_enum, default_value_t = Delivery::ExactlyOnce)]
    pub delivery: Delivery,
    /// Name of the record header that carries commit LSN, index in the transaction and commit time; empty for none.
    #[arg(long, env = "POSITION_HEADER", default_value = events::POSITION_HEADER)]
    pub position_header: String,
    /// Create a topic when the first record for it comes, with --topic-partitions and --topic-config. Otherwise the relay stops there.
    #[arg(long, env = "CREATE_TOPICS", default_value_t = true, action = clap::ArgAction::Set)]
    pub create_topics: bool,
    /// Partitions of a topic that the relay creates (1 to 10000).
    #[arg(long, env = "TOPIC_PARTITIONS", default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub topic_partitions: i32,
    /// Setting of a topic that the relay creates, NAME=VALUE, repeatable; in the environment one a line.
    #[arg(
        long = "topic-config",
        env = "TOPIC_CONFIG",
        value_name = "NAME=VALUE",
        value_delimiter = '\n',
        default_value = "cleanup.policy=compact\nmin.compaction.lag.ms=604800000"
    )]
    pub topic_config: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub init: InitOptions,
    #[command(flatten)]
    pub accept: AcceptOptions,
    #[command(flatten)]
    pub poison: PoisonOptions,
}

/// How to go on after a stop that the relay cannot prove to be harmless. Each is refused where there is nothing of its kind, or where
/// something else is broken as well that is not accepted. All of them fence a relay that still runs, and log the old and the new position.
#[derive(Clone, Debug, Default, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own on the command line"
)]
#[command(next_help_heading = "Going on after a stop (never done by itself)")]
pub struct AcceptOptions {
    /// After exit code 13, slot recreated, advanced or read by somebody else: go on from the slot's confirmed position. Events between the
    /// checkpoint and there are not published.
    #[arg(long)]
    pub accept_slot_gap: bool,
    /// After exit codes 10 and 11, slot gone or lost: make a new one. With --existing-rows publish, every row that is in the outbox
    /// now is published, also those that were published before; with skip, none is. Rows that come later are published once.
    #[arg(long)]
    pub accept_new_slot: bool,
    /// After exit code 14, slot without a checkpoint: go on from the slot's confirmed position. No event is lost; those that were published
    /// and not yet confirmed are published a second time.
    #[arg(long)]
    pub accept_checkpoint_loss: bool,
    /// After exit codes 15 and 21, a last checkpoint that cannot be read or is older: go on from the furthest one that can be read, exactly
    /// once; where none is left, as --accept-checkpoint-loss does.
    #[arg(long)]
    pub accept_garbled_checkpoint: bool,
    /// After exit code 17, another timeline: go on from the checkpoint. Events that the new timeline's server never had stay published, and
    /// what a promoted standby had and its slot did not hand out is not.
    #[arg(long)]
    pub accept_timeline: bool,
    /// After exit code 18, database restored from an older backup: go on from the slot's confirmed position as the backup has it. No event
    /// that was written since the restore is lost; those between that position and the backup's end are published a second time.
    #[arg(long)]
    pub accept_older_database: bool,
    /// After exit code 16, another database cluster: go on from this cluster's slot, at its confirmed position. A relay that still runs
    /// on the former cluster is fenced, and stops.
    #[arg(long)]
    pub accept_cluster: bool,
    /// After exit code 24, a relay of another server publishes as this one: this server is the right one, go on from the checkpoint.
    #[arg(long)]
    pub accept_server: bool,
    /// After exit code 19, other numbers of partitions: go on from the checkpoint. Later events of a key may be in another partition than
    /// the earlier ones.
    #[arg(long)]
    pub accept_partitions: bool,
    /// After exit code 20, publication altered or made anew: where it was altered, go on from the checkpoint, without the events that the
    /// alteration hid; where it was dropped, make it if it is missing, and go on from the end of the WAL, without what was written since the
    /// checkpoint.
    #[arg(long)]
    pub accept_publication: bool,
    /// After exit code 23, topic deleted and made anew: go on from the checkpoint with the topic as it is now. What had been published to the
    /// former one is gone with it, and is not published again.
    #[arg(long)]
    pub accept_topic_recreated: bool,
    /// After exit code 35, parked rows missing from the parking topic: go on without them. They are published nowhere.
    #[arg(long)]
    pub accept_parked_loss: bool,
    /// After exit code 42, recover needed, or begun and not finished: go on from the checkpoint without comparing. What was published behind it comes
    /// twice, and what an operator aborted on Kafka is not published. For an outbox without a table, of which recover can compare nothing.
    #[arg(long)]
    pub accept_unfinished_recovery: bool,
}

#[derive(Clone, Debug, Args)]
pub struct InitOptions {
    /// What to do with the rows that are in the outbox already.
    #[arg(long, env = "EXISTING_ROWS", value_enum, default_value_t = ExistingRows::Publish)]
    pub existing_rows: ExistingRows,
    /// Topic to create where it is missing, NAME or NAME:PARTITIONS, repeatable; in the environment one a line.
    #[arg(
        long = "topic",
        env = "TOPICS",
        value_name = "NAME[:PARTITIONS]",
        value_delimiter = '\n'
    )]
    pub topics: Vec<String>,
    /// Continue an existing, inactive pgoutput slot of this database from its confirmed position, instead of making one.
    #[arg(long)]
    pub adopt_slot: bool,
    /// Publish this outbox although the checkpoint topic says that another slot publishes it: each row is published by both.
    #[arg(long)]
    pub another_slot: bool,
    /// Make the slot a failover slot, which standbys keep a copy of, so that the relay goes on after a promotion (PostgreSQL 17 and
    /// later; docs/failover.md says what the servers have to be set to). An existing slot is made one.
    #[arg(long, env = "OUTBOX_FAILOVER")]
    pub failover: bool,
    /// When an init that was interrupted goes on: what to do with rows that it may have published before, and removed from their topic since. Needed
    /// only where a topic is cleaned sooner than init was finished.
    #[arg(long, value_enum)]
    pub undecided: Option<Undecided>,
}

#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub replay: ReplayOptions,
}

/// Which rows to replay: those for which all that is given holds.
#[derive(Clone, Debug, Args)]
pub struct ReplayOptions {
    /// Rows with this created_at or a later one: a moment as Postgres reads it, like 2026-11-25T08:00:00Z. (A row does not say at which LSN it was committed.)
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Rows with an earlier created_at.
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Rows with this key, repeatable.
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// Rows with this event id, repeatable.
    #[arg(long = "id", value_name = "ID")]
    pub ids: Vec<String>,
    /// Do not ask. Needed where there is no terminal.
    #[arg(long)]
    pub yes: bool,
}

#[derive(Clone, Debug, Args)]
pub struct PauseArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// Why, for those who find the relay paused: one line, up to 500 characters.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

#[derive(Clone, Debug, Args)]
pub struct RecoverArgs {
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub recover: RecoverOptions,
    #[command(flatten)]
    pub poison: PoisonOptions,
}

#[derive(Clone, Debug, Args)]
pub struct RecoverOptions {
    /// Do not ask. Needed where there is no terminal.
    #[arg(long)]
    pub yes: bool,
    /// Compare the outbox with the topics also where nothing is found to be broken: rows may have been hidden in a way that leaves no trace.
    #[arg(long)]
    pub compare_anyway: bool,
    /// Go on although a topic has another number of partitions than the checkpoint knows: later events of a key go to another partition than its
    /// earlier ones, so let the topic's readers come to its end before. Nothing is lost or comes twice.
    #[arg(long)]
    pub accept_partitions: bool,
    /// Compare only rows whose created_at is not before this moment, as Postgres reads it: 2026-11-28 09:30+01. Older rows count as published,
    /// which you have to know; a transaction may commit long after it has inserted its row. Without it all rows are compared.
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// As --since, from the commit of the record whose header `position` has this value, as it stands there:
    /// 16/B374D848:0:1795344833217210. Refused where it is above all that is known to be published.
    #[arg(long, value_name = "LSN:INDEX:MICROSECONDS", conflicts_with = "since")]
    pub since_position: Option<events::Position>,
    /// What to do with rows that may have been published and removed from their topic since; without it, recover ends before it changes anything.
    #[arg(long, value_enum)]
    pub undecided: Option<Undecided>,
    /// Make the new slot a failover slot (PostgreSQL 17 and later).
    #[arg(long)]
    pub failover: bool,
    /// Another slot publishes this outbox, too, and that is wanted. Without it, recover ends where this slot has no checkpoint and another one has.
    #[arg(long)]
    pub another_slot: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Undecided {
    /// Publish them: they may come a second time.
    Publish,
    /// Leave them: they may be lost.
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExistingRows {
    /// Publish them once, in the order of their created_at (clock of their insert), before anything newer.
    Publish,
    /// Leave them.
    Skip,
}

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// Do `init` first where neither slot nor checkpoint exists yet.
    #[arg(long)]
    pub init: bool,
    #[command(flatten)]
    pub init_options: InitOptions,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:8083")]
    pub admin_listen: SocketAddr,
    /// After a stop for good (exit codes 2 to 39), keep answering /readyz and /metrics for so long before the process ends, in seconds, so that
    /// relay_stopped_exit_code can be scraped. Nothing is read, published or confirmed meanwhile, and the slot is free.
    #[arg(long, env = "LINGER_STOPPED", value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub linger_stopped: u64,
    /// Largest Kafka transaction, in bytes of outbox rows (65536 to 1073741824); bounds the relay's memory. A single larger row still goes.
    #[arg(long, env = "TRANSACTION_BYTES", default_value_t = 16 << 20, value_parser = clap::value_parser!(u64).range(65_536..=1 << 30))]
    pub transaction_bytes: u64,
    #[command(flatten)]
    pub poison: PoisonOptions,
    #[command(flatten)]
    pub maintenance: MaintenanceOptions,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct HealthArgs {
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:8083")]
    pub admin_listen: SocketAddr,
}

/// How the relay keeps the outbox table in order.
#[derive(Clone, Debug, Args)]
pub struct MaintenanceOptions {
    /// Days after which a partition of the outbox is dropped, once everything in it is confirmed; `off` or 0 keeps everything.
    #[arg(long, env = "OUTBOX_RETAIN", value_name = "DAYS", default_value = "7")]
    pub retain: String,
    /// Daily partitions of the outbox that are made ahead (0 to 366); 0 makes none.
    #[arg(long, env = "OUTBOX_PARTITIONS_AHEAD", value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(u16).range(0..=366))]
    pub partitions_ahead: u16,
    /// Who makes and drops partitions: a URL of the same database with a role that owns the outbox table. Default: --database-url.
    #[arg(long, env = "MAINTENANCE_DATABASE_URL", hide_env_values = true)]
    pub maintenance_url: Option<Secret>,
    /// How often partitions are looked after, in seconds (1 to 86400).
    #[arg(long, env = "OUTBOX_MAINTENANCE_INTERVAL", value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub maintenance_interval: u32,
    /// In an outbox without partitions, delete rows that are older than --retain, by created_at, once they are confirmed.
    #[arg(long, env = "OUTBOX_PURGE_ROWS", default_value_t = false, action = clap::ArgAction::Set)]
    pub purge_rows: bool,
}

/// The settings once everything in them is checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub target: Target,
    pub kafka: KafkaSettings,
    pub slot: String,
    pub publication: String,
    /// Empty where there is no table, as [`Config::table`] is.
    pub schema: String,
    pub table: String,
    /// Prefix of the logical decoding messages that are events.
    pub message_prefix: Option<String>,
    pub checkpoint_topic: String,
    pub parking_topic: String,
    /// As `run` and `init` are told; other commands do not ask.
    pub poison: PoisonOptions,
    pub router: RouterOptions,
    pub delivery: Delivery,
    /// `None`: no such header.
    pub position_header: Option<String>,
    pub create_topics: bool,
    /// For topics that the relay creates; the name is filled in.
    pub topic_template: NewTopic,
    /// How `run` keeps the outbox table in order; other commands do not.
    pub maintenance: Option<Maintenance>,
}

/// [`MaintenanceOptions`], checked.
#[derive(Clone, Debug)]
pub struct Maintenance {
    pub target: Target,
    /// `None`: nothing is dropped.
    pub retain_days: Option<u16>,
    pub partitions_ahead: u16,
    pub interval: Duration,
    pub purge_rows: bool,
}

impl MaintenanceOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// [`Stop::Config`] names the option that is wrong, and what would be right.
    pub fn check(&self, database: &Target) -> Result<Maintenance, Stop> {
        let target = match &self.maintenance_url {
            None => database.clone(),
            Some(url) => target(url).map_err(|err| Stop::Config {
                what: format!("--maintenance-url: {err}"),
            })?,
        };
        if target.database != database.database {
            return Err(Stop::Config {
                what: format!(
                    "--maintenance-url is of database `{}`, the outbox is in `{}`",
                    target.database, database.database
                ),
            });
        }
        let days = match self.retain.trim() {
            "off" => 0,
            text => text
                .parse::<u16>()
                .ok()
                .filter(|days| *days <= 3_650)
                .ok_or_else(|| Stop::Config {
                    what: format!("--retain `{text}`: expected days from 1 to 3650, or `off`"),
                })?,
        };
        Ok(Maintenance {
            target,
            retain_days: (days > 0).then_some(days),
            partitions_ahead: self.partitions_ahead,
            interval: Duration::from_secs(self.maintenance_interval.into()),
            purge_rows: self.purge_rows,
        })
    }
}

impl Settings {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Stop::Config`] names the setting that is wrong, and what would be right.
    pub fn check(&self) -> Result<Config, Stop> {
        fn config(err: impl std::fmt::Display) -> Stop {
            Stop::Config { what: err.to_string() }
        }
        let slot_is_valid = (1..=63).contains(&self.slot.len())
            && self
                .slot
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if !slot_is_valid {
            return Err(config(format!(
                "--slot `{}`: expected 1 to 63 of a-z, 0-9 and _",
                self.slot
            )));
        }
        let message_prefix = self.message_prefix.clone().filter(|prefix| !prefix.is_empty());
        let (schema, table) = match self.table.as_str() {
            "" => ("", ""),
            name => name.split_once('.').unwrap_or(("public", name)),
        };
        let has_no_table = self.table.is_empty() && message_prefix.is_some();
        if !has_no_table && (schema.is_empty() || table.is_empty()) {
            return Err(config(format!("--table `{}`: expected SCHEMA.TABLE", self.table)));
        }
        if self.publication.is_empty() {
            return Err(config("--publication is empty"));
        }
        check_topic_name("--checkpoint-topic", &self.checkpoint_topic)?;
        check_topic_name("--parking-topic", &self.parking_topic)?;
        if self.parking_topic == self.checkpoint_topic {
            return Err(config(
                "--parking-topic and --checkpoint-topic are the same; give another one",
            ));
        }
        let mut topic_settings = Vec::new();
        for setting in self.topic_config.iter().filter(|setting| !setting.trim().is_empty()) {
            let (name, value) = setting
                .split_once('=')
                .ok_or_else(|| config(format!("--topic-config `{setting}`: expected NAME=VALUE")))?;
            topic_settings.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        let mut kafka = KafkaSettings::new(&self.kafka, &self.kafka_properties)
            .and_then(|kafka| kafka.with_property_files(&self.kafka_property_files))
            .map_err(config)?;
        kafka.oauth_token_file.clone_from(&self.kafka_oauth_token_file);
        kafka.transaction_max_timeout = Duration::from_millis(self.kafka_transaction_max_timeout_ms);
        Ok(Config {
            target: target(&self.database_url).map_err(|err| Stop::Config {
                what: format!("DATABASE_URL: {err}"),
            })?,
            kafka,
            slot: self.slot.clone(),
            publication: self.publication.clone(),
            schema: schema.to_owned(),
            table: table.to_owned(),
            message_prefix,
            checkpoint_topic: self.checkpoint_topic.clone(),
            parking_topic: self.parking_topic.clone(),
            poison: PoisonOptions::default(),
            router: RouterOptions::parse(&self.router_options).map_err(config)?,
            delivery: self.delivery,
            position_header: (!self.position_header.is_empty()).then(|| self.position_header.clone()),
            create_topics: self.create_topics,
            topic_template: NewTopic {
                name: String::new(),
                partitions: self.topic_partitions,
                settings: topic_settings,
            },
            maintenance: None,
        })
    }
}

impl InitOptions {
    /// The topics to create.
    ///
    /// # Errors
    /// [`Stop::Config`] for a `--topic` that is none.
    pub fn topics(&self, template: &NewTopic) -> Result<Vec<NewTopic>, Stop> {
        let mut topics = Vec::new();
        for text in self
            .topics
            .iter()
            .map(|text| text.trim())
            .filter(|text| !text.is_empty())
        {
            let (name, partitions) = match text.split_once(':') {
                None => (text, template.partitions),
                Some((name, partitions)) => {
                    let count = partitions.parse().ok().filter(|count| (1..=10_000).contains(count));
                    (
                        name,
                        count.ok_or_else(|| Stop::Config {
                            what: format!("--topic `{text}`: partitions are a number from 1 to 10000"),
                        })?,
                    )
                }
            };
            check_topic_name("--topic", name)?;
            topics.push(NewTopic {
                name: name.to_owned(),
                partitions,
                settings: template.settings.clone(),
            });
        }
        Ok(topics)
    }
}

/// Kafka's rule for topic names.
pub(crate) fn check_topic_name(flag: &str, name: &str) -> Result<(), Stop> {
    let is_valid = (1..=249).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && name != "."
        && name != "..";
    if is_valid {
        return Ok(());
    }
    Err(Stop::Config {
        what: format!("{flag} `{name}`: a topic's name is 1 to 249 of a-z, A-Z, 0-9, dot, _ and -"),
    })
}

impl Config {
    /// Transactional id: one a lineage, so that relays of different databases never fence each other.
    #[must_use]
    pub fn transactional_id(&self, system_identifier: &str) -> String {
        format!(
            "outbox-relay-{system_identifier}-{}-{}",
            self.target.database, self.slot
        )
    }

    /// Why another relay may have a transactional id of this one's, so that each would fence the other for ever; `None` where none can.
    ///
    /// Lanes add `-2`… to the id, and `replay` adds `-replay`. A slot's name has no `-`, so two relays' ids can only meet where one slot's name
    /// looks like such an end, and the other's slot is the end of that one's database: slot `2` of `shop-orders`, and slot `orders` of `shop`.
    #[must_use]
    pub fn ids_may_meet(&self) -> Option<String> {
        let is_an_end = self.slot == "replay" || self.slot.bytes().all(|byte| byte.is_ascii_digit());
        (is_an_end && self.target.database.contains('-')).then(|| {
            format!(
                "--slot `{}` of database `{}`: the transactional ids may be those of another database's relay, and each would fence the other for ever; a slot's name with a letter in it, other than `replay`, is right where the database's name has a `-`",
                self.slot, self.target.database
            )
        })
    }

    /// The same settings for further sessions, which have to be with the server that `connection` is with, see [`pg_replication::MovedAway`].
    ///
    /// # Errors
    /// The connection broke.
    pub async fn pinned_to(&self, connection: &mut Connection) -> anyhow::Result<Self> {
        let mut pinned = self.clone();
        if faults::is_planted(Bug::TrustAnyServer) {
            return Ok(pinned);
        }
        let instance = connection.instance().await?;
        pinned.target = self.target.at(connection.address(), &instance);
        if let Some(maintenance) = &mut pinned.maintenance {
            maintenance.target.instance = Some(instance);
        }
        Ok(pinned)
    }

    /// The topics in which the relay keeps what is its own: no row may ever go there.
    pub fn own_topics(&self) -> impl Iterator<Item = &str> {
        [self.checkpoint_topic.as_str(), self.parking_topic.as_str()].into_iter()
    }

    /// Where this relay's checkpoints are.
    #[must_use]
    pub fn checkpoint_log(&self) -> CheckpointLog<'_> {
        CheckpointLog {
            settings: &self.kafka,
            topic: &self.checkpoint_topic,
        }
    }

    /// What a [`Stop`] calls the slot, the publication and the checkpoint topic.
    #[must_use]
    pub fn names_for_messages(&self) -> Names<'_> {
        Names {
            slot: &self.slot,
            publication: &self.publication,
            checkpoint_topic: &self.checkpoint_topic,
        }
    }

    /// Key of this relay's checkpoint.
    #[must_use]
    pub fn checkpoint_key(&self) -> String {
        crate::continuity::checkpoint::key(&self.target.database, &self.slot)
    }
}

/// Where Postgres is, read from a URL; with what planted bugs make of it.
fn target(url: &Secret) -> Result<Target, InvalidUrl> {
    let mut target = Target::parse(url.reveal())?;
    if faults::is_planted(Bug::PinNoSettings) {
        target.pins_settings = false;
    }
    if faults::is_planted(Bug::KeepFirstPassword)
        && let Some(Ok(first)) = target.password.as_ref().map(Password::reveal)
    {
        target.password = Some(Password::Given(first));
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command};

    fn exit_message(arguments: &[&str]) -> String {
        let base = ["outbox-relay", "check", "--database-url", "postgres://u:secret@h/d"];
        let cli = Cli::try_parse_from(base.iter().chain(arguments)).unwrap();
        let Command::Check(settings) = cli.command else {
            panic!("no check")
        };
        settings.check().unwrap_err().to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn slots_whose_transactional_ids_can_be_anothers_are_known() {
        let config = |database: &str, slot: &str| {
            let url = format!("postgres://u@h/{database}");
            let cli = Cli::try_parse_from(["outbox-relay", "check", "--database-url", &url, "--slot", slot]).unwrap();
            let Command::Check(settings) = cli.command else {
                panic!("no check")
            };
            settings.check().unwrap()
        };
        let (orders, two, replay) = (
            config("shop", "orders"),
            config("shop-orders", "2"),
            config("shop-orders", "replay"),
        );
        let id = orders.transactional_id("7");
        assert_eq!(two.transactional_id("7"), format!("{id}-2"), "its second lane");
        assert_eq!(replay.transactional_id("7"), format!("{id}-replay"), "its replay");
        for (config, may_meet) in [
            (orders, false),
            (two, true),
            (replay, true),
            (config("shop", "2"), false),
            (config("shop", "replay"), false),
            (config("shop-orders", "orders_2"), false),
        ] {
            assert_eq!(
                config.ids_may_meet().is_some(),
                may_meet,
                "{} {}",
                config.target.database,
                config.slot
            );
        }
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (arguments, named) in [
            (["--slot", "Users"], "--slot `Users`"),
            (["--table", "public."], "--table `public.`"),
            (["--checkpoint-topic", "a b"], "--checkpoint-topic `a b`"),
            (["--set", "nonsense=1"], "router option `nonsense`"),
            (["--kafka-property", "acks=1"], "`acks`"),
            (["--topic-config", "x"], "--topic-config `x`"),
        ] {
            let message = exit_message(&arguments);
            assert!(message.contains(named), "{message}");
        }
    }
}
