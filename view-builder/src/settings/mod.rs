//! The settings; `--help` prints them as the manual.

mod changes;
mod letters;
pub mod partition_argument;
pub mod replay_from;
pub mod sources;
mod verify;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use service::Secret;
use service::status::watch::Every;

pub use self::changes::{AcceptConfig, DropConfig, PauseConfig, RebuildConfig, ResumeConfig};
pub use self::letters::{Letters, LettersCommand, ListLetters, RetryLetters, ShowLetter};
use self::replay_from::ReplayFrom;
pub use self::verify::VerifyConfig;
use crate::contract::name::{GroupName, TopicName};
use crate::kafka::servers::Kafka;
use crate::postgres::server::ViewsDatabase;
use crate::process::checked::Checked;
use crate::process::failure::EXIT_CODES;

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
    /// Say in one line how the views are kept, then what is wrong with the commands that mend it, then the figures.
    ///
    /// The figures are each partition's position, the topic's end, the lag and who keeps it, and each view. Works also while the builders, Postgres or
    /// Kafka are away, within 5 s; changes nothing and joins no group.
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
    pub group: Option<GroupName>,
    /// The topic that is read again.
    #[arg(long, default_value = "user-events")]
    pub topic: TopicName,
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
    #[command(flatten)]
    pub options: StatusOptions,
}

/// What `view-builder status` prints.
#[derive(Clone, Debug, Args)]
pub struct StatusOptions {
    /// Print one line of JSON. docs/status.md says what is in it.
    #[arg(long)]
    pub json: bool,
    /// Look again after each pause of so many seconds (0.1 to 3600), until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    pub watch: Option<Every>,
    /// Address of the /readyz of a builder of these views. With it `status` also tells what that builder says of itself. A builder that does not
    /// answer there is no problem, since it may be elsewhere.
    #[arg(long, env = "ADMIN_LISTEN")]
    pub admin_listen: Option<SocketAddr>,
}

/// Settings of `view-builder views`.
#[derive(Clone, Debug, Args)]
pub struct ViewsConfig {
    #[command(flatten)]
    pub folder: ViewsFolder,
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

    use super::{Cli, Command};

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
    fn a_name_that_cannot_be_right_is_refused_where_it_is_typed() {
        for (arguments, argument, right) in [
            (
                &["pause", "--database-url", URL, "User-View"][..],
                "<VIEW>",
                "such as user_view",
            ),
            (&["drop", "--database-url", URL, ""], "<VIEW>", "such as user_view"),
            (&["replay", "--topic", "user events"], "--topic", "such as user-events"),
            (&["replay", "--group", ""], "--group", "such as view-builder"),
            (
                &["dead-letters", "list", "--database-url", URL, "--topic", "a/b"],
                "--topic",
                "such as user-events",
            ),
            (
                &["run", "--database-url", URL, "--group-id", " "],
                "--group-id",
                "such as view-builder",
            ),
            (
                &["accept", "--database-url", URL, "user-events/x"],
                "<TOPIC/PARTITION>",
                "such as user-events/3",
            ),
        ] {
            let parsed = Cli::try_parse_from([&["view-builder"], arguments].concat());
            let said = parsed.map(drop).map_err(|err| err.to_string()).expect_err(argument);
            assert!(said.contains(argument) && said.contains(right), "{said}");
        }
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
}
