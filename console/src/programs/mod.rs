//! Runs the pipeline's programs, as a person would at a terminal.
//!
//! Settings and passwords go by environment, so that no list of processes shows them. A command line has only what is asked for.

mod answer;
mod job;
mod jobs;

use std::process::Stdio;

use tokio::process::{Child, Command};

pub use self::job::{Job, JobState};
pub use self::jobs::{Jobs, Refused};
use crate::settings::{Database, Outbox, Settings};

/// A command: a program with arguments, and the part of the pipeline that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    pub program: Program,
    pub arguments: Vec<String>,
}

/// Which program, and for which part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// `outbox-relay` for the outbox of this name.
    OutboxRelay { outbox: String },
    /// `view-builder` as the role that may write.
    ViewBuilder,
    /// `view-builder verify`, as the role that only reads.
    Verify,
}

impl CommandLine {
    #[must_use]
    pub fn new(program: Program, arguments: &[&str]) -> Self {
        Self {
            program,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        }
    }

    /// As a person types it, without the settings.
    #[must_use]
    pub fn for_people(&self) -> String {
        let name = match self.program {
            Program::OutboxRelay { .. } => "outbox-relay",
            Program::ViewBuilder | Program::Verify => "view-builder",
        };
        let words = std::iter::once(name.to_owned()).chain(self.arguments.iter().map(|word| quoted(word)));
        words.collect::<Vec<_>>().join(" ")
    }

    /// Starts it. Its input is `input`; what it prints can be read.
    ///
    /// # Errors
    /// The program cannot be started, or the settings have no such outbox.
    pub fn start(&self, settings: &Settings, input: Stdio) -> anyhow::Result<Child> {
        let mut command = self.command(settings)?;
        command
            .args(&self.arguments)
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().map_err(|err| {
            let program = command.as_std().get_program().to_string_lossy().into_owned();
            anyhow::anyhow!("cannot start {program}: {err}")
        })
    }

    fn command(&self, settings: &Settings) -> anyhow::Result<Command> {
        let pipeline = &settings.pipeline;
        let (mut command, database) = match &self.program {
            Program::OutboxRelay { outbox } => {
                let known = pipeline.outboxes.iter().find(|known| known.name == *outbox);
                let outbox = known.ok_or_else(|| anyhow::anyhow!("the settings have no outbox `{outbox}`"))?;
                (relay_command(settings, outbox), outbox.command_database())
            }
            Program::ViewBuilder => (builder_command(settings), pipeline.views.command_database()),
            Program::Verify => (builder_command(settings), &pipeline.views.database),
        };
        set_shared(&mut command, settings, database);
        Ok(command)
    }
}

fn relay_command(settings: &Settings, outbox: &Outbox) -> Command {
    let mut command = Command::new(&settings.outbox_relay);
    command
        .env("OUTBOX_SLOT", &outbox.slot)
        .env("OUTBOX_TABLE", &outbox.table);
    if let Some(topic) = &outbox.checkpoint_topic {
        command.env("CHECKPOINT_TOPIC", topic);
    }
    command
}

fn builder_command(settings: &Settings) -> Command {
    let views = &settings.pipeline.views;
    let sources = views
        .verify_sources
        .iter()
        .map(|(topic, url)| format!("{topic}={}", url.reveal()));
    let mut command = Command::new(&settings.view_builder);
    command
        .env("GROUP_ID", &views.group)
        .env("VIEWS", &settings.views)
        .env("SOURCES", sources.collect::<Vec<_>>().join("\n"));
    command
}

/// What both programs take. The console's own addresses are not theirs.
fn set_shared(command: &mut Command, settings: &Settings, database: &Database) {
    let kafka = &settings.kafka_args;
    let properties: Vec<&str> = kafka.properties.iter().map(AsRef::as_ref).collect();
    command
        .env_remove("LISTEN")
        .env_remove("ADMIN_LISTEN")
        .env_remove("CONSOLE_TOKENS")
        .env_remove("CONSOLE_PIPELINE")
        .env("LOG_FORMAT", "text")
        .env("DATABASE_URL", database.url.reveal())
        .env("KAFKA_BOOTSTRAP_SERVERS", &kafka.bootstrap_servers)
        .env("KAFKA_PROPERTIES", properties.join("\n"))
        .env("KAFKA_PROPERTY_FILES", kafka.property_files.join("\n"));
    if let Some(path) = &kafka.oauth_token_file {
        command.env("KAFKA_OAUTH_TOKEN_FILE", path);
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "-_./:=,@+%".contains(char);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::{CommandLine, Program};

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let pause = CommandLine::new(
            Program::ViewBuilder,
            &["pause", "user_view", "--reason=Kim's test; rm -rf /"],
        );
        assert_eq!(
            pause.for_people(),
            r"view-builder pause user_view '--reason=Kim'\''s test; rm -rf /'"
        );
        let check = CommandLine::new(
            Program::OutboxRelay {
                outbox: "users".to_owned(),
            },
            &["check"],
        );
        assert_eq!(check.for_people(), "outbox-relay check");
    }
}
