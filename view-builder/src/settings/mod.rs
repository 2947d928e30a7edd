//! The settings; `--help` prints them as the manual.

pub mod partition_argument;
pub mod replay_from;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use service::Secret;

use self::partition_argument::AcceptFrom;
use self::replay_from::ReplayFrom;
use crate::contract::place::TopicPartition;
use crate::kafka::servers::Kafka;
use crate::postgres::server::ViewsDatabase;
use crate::process::checked::Checked;
use crate::process::failure::{EXIT_CODES, Failure};

/// Keeps SQL views in step with Kafka topics, exactly once.
#[derive(Debug, Parser)]
#[command(name = "view-builder", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the views' tables and keep the views until SIGTERM.
    ///
    /// A view of VIEWS that the database does not have yet is added, and its topics are applied again from the beginning; changed SQL
    /// takes the place of what the database has, unless it is an older text that was replaced already. Views that the database
    /// has and VIEWS has not are kept as well: all builders keep the same ones.
    #[command(after_help = EXIT_CODES)]
    Run(Box<Config>),
    /// Print each partition's position, the topic's end, the lag and who keeps it.
    #[command(after_help = EXIT_CODES)]
    Status(StatusConfig),
    /// Print the views in VIEWS: what they are, their topics and their tables.
    Views(ViewsConfig),
    /// Have a group read events again, or print events.
    ///
    /// With --group: the views' own group (GROUP_ID) is set back in the views' database while its builders run, and they go on from
    /// there within some seconds; nobody stops, and no reader sees the past. Another group is set back in Kafka, once it has no
    /// members. Without --group: events are printed as `key: value`, and nothing is touched.
    #[command(after_help = EXIT_CODES)]
    Replay(ReplayConfig),
    /// Have a partition go on although its topic has lost events, or take a notice of it as known.
    ///
    /// A partition whose topic does not have the events at the view's position is paused: its builder holds it and does not read it, all
    /// others go on, and /readyz and `status` say why. With --from it goes on from there within some seconds, builders may run. Its dead letters
    /// from that offset on are put aside, as those of a former topic. Without --from: what /readyz warns of this partition is known.
    #[command(after_help = EXIT_CODES)]
    Accept(AcceptConfig),
    /// Look at events that cannot be applied, try them again, or give them up.
    ///
    /// An event that cannot be applied is kept with its headers, its place and the reason in the table view_dead_letters; later events
    /// of its key wait behind it, all others go on. All of this works while builders run.
    #[command(subcommand, after_help = EXIT_CODES)]
    DeadLetters(LettersCommand),
    /// Make a view anew beside the live one, and swap it in; or add a view.
    ///
    /// The view's SQL from VIEWS is filled from the first offset of its topics into a schema of its own, while the live view is read and
    /// kept as ever; once it has caught up, one transaction puts it in the live one's place. Whatever people have set on its
    /// tables goes over (grants, indexes, constraints, triggers, policies, comments, storage parameters ...), and so do views on them; what
    /// cannot go over is named before anything is begun.
    /// Running builders take up changed SQL, and a view that is new, by themselves. A rebuild that was killed goes on when the
    /// same command is run again.
    #[command(after_help = EXIT_CODES)]
    Rebuild(RebuildConfig),
    /// Keep a view no longer, and drop its tables.
    #[command(after_help = EXIT_CODES)]
    Drop(DropConfig),
    /// Keep a view no further for now: it stays as it is, and all others go on.
    ///
    /// A view-builder pauses a view by itself where Postgres refuses what the view does, whatever the event. `status` tells of paused views.
    Pause(Box<PauseConfig>),
    /// End a view's pause: the events since then are read again, which changes nothing in the other views.
    ///
    /// Refused where the view still fails, or where its topics do not have all of these events any more: then rebuild makes it anew.
    Resume(Box<ResumeConfig>),
    /// Compare the views with the tables that they are made from, while everything runs.
    ///
    /// First both sides are counted and hashed by bucket (a department), then the rows of the buckets that differ are told by
    /// their ids and versions. What differs is looked at again once the view has every event up to then: only a row that is
    /// still not what its source says, and whose source has not changed meanwhile, is a difference; the rest is lag.
    /// A view takes part by a verify.sql in its folder. Nothing is written; a role with select is enough.
    #[command(after_help = EXIT_CODES)]
    Verify(Box<VerifyConfig>),
    /// Ask the builder that serves ADMIN_LISTEN whether it is ready: 0 if it is, 1 if not.
    Health(HealthConfig),
}

/// Settings of `view-builder health`: where a builder answers for itself.
#[derive(Clone, Copy, Debug, Args)]
pub struct HealthConfig {
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:8084")]
    pub admin_listen: SocketAddr,
}

/// Settings of `view-builder rebuild`.
#[derive(Clone, Debug, Args)]
pub struct RebuildConfig {
    #[command(flatten)]
    pub servers: Servers,
    #[command(flatten)]
    pub folder: ViewsFolder,
    /// The view: its folder's name.
    pub view: String,
    /// Begin at the topics' first offsets also where earlier events have been removed: rows that only those tell of will be missing. Counts until
    /// this rebuild is done or abandoned, also for events that are removed while it fills.
    #[arg(long)]
    pub accept_truncated: bool,
    /// Swap also where the topic has no event any more of a key with dead letters, since compaction has removed them: its row will be missing.
    #[arg(long)]
    pub accept_compacted: bool,
    /// Drop what an unfinished rebuild has left, and do nothing else.
    #[arg(long, conflicts_with_all = ["accept_truncated", "accept_compacted"])]
    pub abandon: bool,
}

/// Settings of `view-builder accept`.
#[derive(Clone, Debug, Args)]
pub struct AcceptConfig {
    #[command(flatten)]
    pub servers: Servers,
    /// The partition, such as user-events/3.
    #[arg(value_name = "TOPIC/PARTITION", value_parser = self::partition_argument::partition)]
    pub partition: TopicPartition,
    /// Where a paused partition goes on: beginning, the topic's first offset; or an offset that the topic has.
    #[arg(long, value_name = "beginning|OFFSET")]
    pub from: Option<AcceptFrom>,
}

/// Settings of `view-builder drop`.
#[derive(Clone, Debug, Args)]
pub struct DropConfig {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    /// The view's name. A builder that starts with it in its VIEWS would make it again: take the folder away first.
    pub view: String,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

/// Settings of `view-builder pause`.
#[derive(Clone, Debug, Args)]
pub struct PauseConfig {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    /// The view's name.
    pub view: String,
    /// Why, for the others who look at it.
    #[arg(long, default_value = "an operator wants it")]
    pub reason: String,
}

/// Settings of `view-builder resume`.
#[derive(Clone, Debug, Args)]
pub struct ResumeConfig {
    #[command(flatten)]
    pub servers: Servers,
    /// The view's name.
    pub view: String,
}

/// Settings of `view-builder replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayConfig {
    /// Kafka, and which group is the views' own.
    #[command(flatten)]
    pub servers: Checked<Kafka>,
    /// The views' database, needed to set back the views' own group.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<Secret>,
    /// The group that is to read again.
    #[arg(long)]
    pub group: Option<String>,
    #[arg(long, default_value = "user-events")]
    pub topic: String,
    /// Only this partition.
    #[arg(long)]
    pub partition: Option<i32>,
    /// Where to begin: earliest, latest, an offset, or a time such as 2026-11-25T08:00:00Z.
    #[arg(long, default_value = "earliest")]
    pub from: ReplayFrom,
    /// Go on printing what comes, until Ctrl-C.
    #[arg(long, conflicts_with = "group")]
    pub follow: bool,
    /// Do not ask.
    #[arg(long, requires = "group")]
    pub yes: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum LettersCommand {
    /// Print what waits, in the order of the topics. Ends with 6 where something does.
    List(ListLetters),
    /// Print one of them whole: place, reason, headers, value.
    Show(ShowLetter),
    /// Apply them again, each with those that wait behind it, up to the first that is still dead.
    Retry(RetryLetters),
    /// Give them up for good, also for replays, and apply what waits behind them.
    Discard(Letters),
}

/// Settings of `view-builder dead-letters list`.
#[derive(Clone, Debug, Args)]
pub struct ListLetters {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    /// Only those of this topic.
    #[arg(long)]
    pub topic: Option<String>,
    /// Only those with this key.
    #[arg(long)]
    pub key: Option<String>,
    /// Those that were discarded too.
    #[arg(long)]
    pub discarded: bool,
    /// Most that are printed.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// Settings of `view-builder dead-letters show`.
#[derive(Clone, Debug, Args)]
pub struct ShowLetter {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    /// Its id, as `list` prints it.
    pub id: i64,
}

/// Settings of `view-builder dead-letters retry`.
#[derive(Clone, Debug, Args)]
pub struct RetryLetters {
    #[command(flatten)]
    pub letters: Letters,
    /// The first of each key, and all behind them.
    #[arg(long, conflicts_with = "ids", required_unless_present = "ids")]
    pub all: bool,
}

/// Some dead letters, and what applies them.
#[derive(Clone, Debug, Args)]
pub struct Letters {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    /// Their ids, as `list` prints them; each must be the first of its key.
    pub ids: Vec<i64>,
}

/// Settings of `view-builder run`.
#[derive(Clone, Debug, Args)]
pub struct Config {
    #[command(flatten)]
    pub servers: Servers,
    #[command(flatten)]
    pub folder: ViewsFolder,
    #[command(flatten)]
    pub admin: HealthConfig,
    /// Static name of this process in the group, another one for each process. With it a restart within the session's
    /// 6 s moves no partition, but a process that stays away keeps its partitions for these 6 s. Without it a process that
    /// stops hands its partitions over at once, and one that is killed after 6 s.
    #[arg(long, env = "GROUP_INSTANCE_ID")]
    pub group_instance_id: Option<String>,
    /// Most events in one transaction.
    #[arg(long, env = "BATCH_ROWS", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub batch_rows: u32,
    /// Most bytes of events in one transaction. Memory is bounded by about 20 MB and 8 times this.
    #[arg(long, env = "BATCH_BYTES", default_value_t = 2_097_152, value_parser = clap::value_parser!(u32).range(1_024..=268_435_456))]
    pub batch_bytes: u32,
}

/// Settings of `view-builder status`.
#[derive(Clone, Debug, Args)]
pub struct StatusConfig {
    #[command(flatten)]
    pub servers: Servers,
}

/// Settings of `view-builder views`.
#[derive(Clone, Debug, Args)]
pub struct ViewsConfig {
    #[command(flatten)]
    pub folder: ViewsFolder,
}

/// Settings of `view-builder verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyConfig {
    #[command(flatten)]
    pub servers: Servers,
    #[command(flatten)]
    pub folder: ViewsFolder,
    /// The database whose outbox feeds a topic, such as user-events=postgres://view_verifier@localhost:15432/users_db. A
    /// primary, as its write-ahead log's end is asked. Repeatable; in the variable one on each line.
    #[arg(
        long = "source",
        env = "SOURCES",
        value_delimiter = '\n',
        hide_env_values = true,
        value_name = "TOPIC=URL"
    )]
    pub sources: Vec<Secret>,
    /// The replication slot of the relay that publishes a topic, where its database has several pgoutput slots, such as
    /// user-events=users_relay. Repeatable; in the variable one on each line.
    #[arg(long = "slot", env = "SLOTS", value_delimiter = '\n', value_name = "TOPIC=NAME")]
    pub slots: Vec<Secret>,
    /// Longest wait for events on their way, for each comparison. A relay without anything to publish confirms the
    /// log's end within 15 s; a shorter wait than that may leave a row undecided.
    #[arg(long, env = "VERIFY_WAIT_SECONDS", value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub wait: u32,
    /// Most differing rows that are listed for each table; the others are counted.
    #[arg(long, env = "VERIFY_LIMIT", value_name = "ROWS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=50_000))]
    pub limit: u32,
    /// Also list the buckets that are equal.
    #[arg(long, env = "VERIFY_ALL")]
    pub all: bool,
    /// Print JSON.
    #[arg(long, env = "VERIFY_JSON")]
    pub json: bool,
}

/// What `lines`, TOPIC=VALUE each, say of `topic`. They are not read by clap, which would print a wrong one: it may be a URL with a password.
///
/// # Errors
/// Names the line of `setting` that is wrong.
pub fn of_topic(setting: &str, lines: &[Secret], topic: &str) -> Result<Option<Secret>, Failure> {
    let mut found = None;
    for (index, line) in lines.iter().enumerate() {
        let parts = line.reveal().split_once('=');
        let (name, value) = parts
            .map(|(name, value)| (name.trim(), value.trim()))
            .filter(|(name, value)| is_topic(name) && !value.is_empty())
            .ok_or_else(|| {
                Failure::Setting(format!(
                    "{setting}, number {}: expected a topic, `=` and a value, such as user-events=postgres://view_verifier@localhost:15432/users_db",
                    index + 1
                ))
            })?;
        if name == topic && found.is_none() {
            found = Some(Secret::from(value.to_owned()));
        }
    }
    Ok(found)
}

/// Kafka's rule for the characters of a topic's name; a URL has others.
fn is_topic(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.bytes().all(is_allowed)
}

/// Where the views' SQL is.
#[derive(Clone, Debug, Args)]
pub struct ViewsFolder {
    /// Directory of the views: a folder for each, with table.sql and apply.sql, and verify.sql where it takes part in `verify`.
    #[arg(long, env = "VIEWS", default_value = "sql/views")]
    pub views: PathBuf,
}

/// Where the events and the views are.
#[derive(Clone, Debug, Args)]
pub struct Servers {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    #[command(flatten)]
    pub kafka: Checked<Kafka>,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use service::Secret;

    use super::{Cli, Command, of_topic};

    #[test]
    fn the_settings_are_consistent() {
        Cli::command().debug_assert();
    }

    const URL: &str = "postgres://view_builder@localhost/views";

    /// What `run` is told, or why it ends.
    fn parsed(arguments: &[&str]) -> Result<Cli, String> {
        let parsed = Cli::try_parse_from([&["view-builder", "run"], arguments].concat());
        parsed.map_err(|err| err.to_string())
    }

    #[test]
    fn what_exactly_once_rests_on_cannot_be_set() {
        let run = |property| parsed(&["--database-url", URL, "--kafka-property", property]);
        for (property, words) in [
            ("isolation.level=read_uncommitted", "`isolation.level` cannot be set"),
            ("group.id=another", "`group.id` cannot be set"),
            ("nonsense", "number 1: expected NAME=VALUE"),
        ] {
            let said = run(property).map(drop).expect_err(property);
            assert!(said.contains(words), "{said}");
        }
        let Command::Run(config) = run("sasl.password=a=b").unwrap().command else {
            panic!("run");
        };
        assert_eq!(config.servers.kafka.client.property("sasl.password"), Some("a=b"));
    }

    #[test]
    fn what_may_be_a_secret_is_not_printed() {
        for arguments in [
            ["--database-url", URL, "--kafka-property", "hunter2"],
            ["--database-url", URL, "--kafka-property", "nonsense=hunter2"],
            ["--database-url", "postgres://u:hunter2@h", "--kafka", "localhost:9092"],
            [
                "--database-url",
                "postgres://u:hunter2@h/d",
                "--kafka",
                "localhost:9092",
            ],
        ] {
            let said = parsed(&arguments).map_or_else(|err| err, |cli| format!("{cli:?}"));
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn a_value_of_a_topic_is_found_and_a_wrong_line_is_told_by_its_number() {
        let find = |lines: &[&str]| {
            let lines: Vec<Secret> = lines.iter().map(|line| Secret::from((*line).to_owned())).collect();
            let found = of_topic("SOURCES", &lines, "b").map_err(|err| err.to_string())?;
            Ok::<_, String>(found.map(|value| value.reveal().to_owned()))
        };
        assert_eq!(find(&["a=1", " b = x=y "]), Ok(Some("x=y".to_owned())));
        assert_eq!(find(&["a=1"]), Ok(None));
        for wrong in [
            "postgres://u:hunter2@h/d",
            "postgres://u:hunter2@h/d?sslmode=require",
            "b=",
        ] {
            let said = find(&["b=1", wrong]).expect_err(wrong);
            assert!(said.starts_with("SOURCES, number 2: expected a topic"), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
