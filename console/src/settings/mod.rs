//! The settings. Each is a flag and an environment variable; the parts of the pipeline are in a file of their own, see [`pipeline`].

pub mod mask;
pub mod pipeline;
mod variables;
mod view_row;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kafka_client::{ClientArgs, ClientSettings};

pub use self::pipeline::{Database, Outbox, Pipeline, Views};
pub use self::view_row::ViewRow;

/// Shows a pipeline from the outbox to the views, and repairs it by the commands of its programs.
///
/// Exit codes: 0 it ended as asked, 1 an error that the last line describes, 2 a setting is wrong.
#[derive(Debug, Parser)]
#[command(name = "console", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token for a person. It is printed this once, to standard error. The line for the file of CONSOLE_TOKENS goes to standard output.
    Token(TokenArgs),
    /// Ask the console that serves ADMIN_LISTEN whether it is ready: 0 if it is, 1 if not.
    Health(HealthArgs),
}

/// What a person with a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Role {
    /// May look at everything.
    Reader,
    /// May also change things.
    Operator,
}

/// Settings of `console token`.
#[derive(Clone, Debug, Args)]
pub struct TokenArgs {
    /// Whose token it is, as the audit shall name the person: letters, digits, `.`, `_`, `-` and `@`.
    #[arg(value_parser = person)]
    pub name: String,
    /// What the person may do.
    #[arg(long, value_enum, default_value = "operator")]
    pub role: Role,
}

/// Settings of `console health`.
#[derive(Clone, Copy, Debug, Args)]
pub struct HealthArgs {
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:8086")]
    pub admin_listen: SocketAddr,
}

/// Settings of the console itself, as the command line gives them.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Address of the pages. Where it is not this machine's own (127.0.0.1, ::1), everybody needs a token, also for looking.
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    #[command(flatten)]
    pub admin: HealthArgs,
    /// The file that names the parts of the pipeline (TOML), see docs/console.md.
    #[arg(long, env = "CONSOLE_PIPELINE", value_name = "PATH")]
    pub pipeline: Option<PathBuf>,
    /// The file with the hashes of the tokens, a line for each person, as `console token` prints it. It is read again when it changes. Without it
    /// nobody can change anything.
    #[arg(long, env = "CONSOLE_TOKENS", value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    #[command(flatten)]
    pub kafka: ClientArgs,
    /// The program outbox-relay. By default the one beside this program, otherwise that of PATH.
    #[arg(long, env = "CONSOLE_OUTBOX_RELAY", value_name = "PATH")]
    pub outbox_relay: Option<PathBuf>,
    /// The program view-builder. By default the one beside this program, otherwise that of PATH.
    #[arg(long, env = "CONSOLE_VIEW_BUILDER", value_name = "PATH")]
    pub view_builder: Option<PathBuf>,
    /// Directory of the views' SQL, for rebuild and verify.
    #[arg(long, env = "VIEWS", default_value = "sql/views")]
    pub views: PathBuf,
}

/// The settings once everything in them is checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// Where Kafka is. The console reads committed records only, and belongs to no group.
    pub kafka: ClientSettings,
    /// Kafka as the operator gave it, for the programs that the console runs.
    pub kafka_args: ClientArgs,
    pub token_file: Option<PathBuf>,
    pub pipeline: Pipeline,
    pub outbox_relay: PathBuf,
    pub view_builder: PathBuf,
    /// Directory of the views' SQL.
    pub views: PathBuf,
}

/// Properties that the console sets itself.
const RESERVED: [&str; 6] = [
    "isolation.level",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "group.id",
    "group.instance.id",
];

impl ServeArgs {
    /// Checks everything, and reads the pipeline's file.
    ///
    /// # Errors
    /// Names the setting that is wrong, and what would be right.
    pub fn check(&self) -> Result<Settings, String> {
        if !self.listen.ip().is_loopback() && self.token_file.is_none() {
            return Err(format!(
                "--listen {}: others can reach this address, so looking needs a token too; give --token-file (CONSOLE_TOKENS), or listen on 127.0.0.1",
                self.listen
            ));
        }
        let pipeline = self.pipeline.as_ref();
        let pipeline =
            pipeline.ok_or("--pipeline PATH (CONSOLE_PIPELINE): it is needed; docs/console.md describes the file")?;
        Ok(Settings {
            listen: self.listen,
            admin_listen: self.admin.admin_listen,
            kafka: self.kafka.check(&RESERVED).map_err(|err| err.to_string())?,
            kafka_args: self.kafka.clone(),
            token_file: self.token_file.clone(),
            pipeline: Pipeline::read(pipeline)?,
            outbox_relay: program(self.outbox_relay.as_ref(), "outbox-relay"),
            view_builder: program(self.view_builder.as_ref(), "view-builder"),
            views: self.views.clone(),
        })
    }
}

/// The program that was given, otherwise the one beside the console, otherwise its bare name, which is looked up in PATH.
fn program(given: Option<&PathBuf>, name: &str) -> PathBuf {
    if let Some(given) = given {
        return given.clone();
    }
    let beside = std::env::current_exe().ok().map(|console| console.with_file_name(name));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| name.into())
}

/// A person's name, which is a word of the token file.
fn person(text: &str) -> Result<String, String> {
    let is_known = |char: char| char.is_alphanumeric() || matches!(char, '.' | '_' | '-' | '@');
    if (1..=64).contains(&text.chars().count()) && text.chars().all(is_known) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 64 letters, digits, `.`, `_`, `-` or `@`".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command, Role};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_token_is_an_operators_unless_it_is_said_otherwise() {
        let token = |arguments: &[&str]| -> Result<super::TokenArgs, String> {
            let cli =
                Cli::try_parse_from([&["console", "token"], arguments].concat()).map_err(|err| err.to_string())?;
            match cli.command {
                Some(Command::Token(args)) => Ok(args),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(token(&["kim"]).map(|args| args.role), Ok(Role::Operator));
        assert_eq!(
            token(&["kim", "--role", "reader"]).map(|args| args.role),
            Ok(Role::Reader)
        );
        let refused = token(&["a b"]).map(|args| args.name).expect_err("a space");
        assert!(refused.contains("letters, digits"), "{refused}");
    }

    #[test]
    fn what_is_not_on_the_command_line_may_be_in_the_environment_and_is_asked_for_only_then() {
        let cli = Cli::try_parse_from(["console"]).unwrap();
        let refused = cli.serve.check().map(drop).expect_err("no file");
        assert!(refused.starts_with("--pipeline PATH (CONSOLE_PIPELINE): "), "{refused}");
    }

    #[test]
    fn an_address_that_others_reach_needs_tokens() {
        let check = |arguments: &[&str]| {
            let cli = Cli::try_parse_from([&["console", "--pipeline", "/nowhere.toml"], arguments].concat()).unwrap();
            cli.serve.check().map(drop).expect_err("no such file")
        };
        let refused = check(&["--listen", "0.0.0.0:8080"]);
        assert!(refused.starts_with("--listen 0.0.0.0:8080: "), "{refused}");
        for allowed in [
            &["--listen", "0.0.0.0:8080", "--token-file", "/tokens"][..],
            &["--listen", "[::1]:8080"],
        ] {
            let refused = check(allowed);
            assert!(refused.contains("/nowhere.toml"), "{refused}");
        }
    }
}
