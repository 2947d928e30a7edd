//! Commands of a program: they do one thing and end.

use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};

use super::Program;
use crate::process::{Ending, Process};

/// The time limit of a command, such as a migration.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

impl Program {
    /// Runs a command of the same binary with this environment, such as `migrate`, `init` or `check`. Waits until it ends. Its output goes into the
    /// same log.
    ///
    /// # Errors
    /// The command cannot be run, takes more than two minutes, or ends with another code than 0. The message has its last log lines.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let status = self.run_for_status(arguments).await?;
        if !status.success() {
            bail!(
                "{} {} failed ({status}); its last log lines:\n{}",
                self.binary.display(),
                arguments.join(" "),
                self.log_tail(15)
            );
        }
        Ok(())
    }

    /// As [`Program::run`], but returns the exit status, whatever it is.
    ///
    /// # Errors
    /// It cannot be run, or takes more than two minutes.
    pub async fn run_for_status(&self, arguments: &[&str]) -> anyhow::Result<ExitStatus> {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        let name = format!("{} {}", self.name, arguments.join(" "));
        let process = Process::spawn(&name, &mut command, &self.log, Ending::Kill)?;
        tokio::time::timeout(COMMAND_DEADLINE, process.exited())
            .await
            .with_context(|| {
                format!(
                    "{name} took more than {} s; its last log lines:\n{}",
                    COMMAND_DEADLINE.as_secs(),
                    self.log_tail(15)
                )
            })
    }

    /// As [`Program::run_for_status`], but on a terminal on which somebody types `typed`. Also returns what the terminal showed.
    ///
    /// # Errors
    /// `script` (of util-linux) is missing, or the program takes more than two minutes.
    pub async fn run_on_a_terminal(&self, arguments: &[&str], typed: &str) -> anyhow::Result<(ExitStatus, String)> {
        let command = format!("{} {}", self.binary.display(), arguments.join(" "));
        let mut terminal = tokio::process::Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            // Every terminal names its kind. Without it no bar is drawn, and whoever runs the tests may have none.
            .env("TERM", "xterm")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run script (on Debian and Ubuntu the package bsdutils)")?;
        // This stays open, because its end would end the terminal.
        let mut keyboard = terminal.stdin.take().context("no standard input")?;
        let screen = terminal.stdout.take().context("no standard output")?;
        keyboard.write_all(typed.as_bytes()).await?;
        let read = async {
            let mut text = Vec::new();
            BufReader::new(screen).read_to_end(&mut text).await?;
            anyhow::Ok((terminal.wait().await?, String::from_utf8_lossy(&text).into_owned()))
        };
        tokio::time::timeout(COMMAND_DEADLINE, read)
            .await
            .with_context(|| format!("{command} took more than {} s", COMMAND_DEADLINE.as_secs()))?
    }
}
