//! One of the pipeline's own programs as a child process.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};

use crate::process::{Ending, Process};

/// What the programs promise after SIGTERM, and a second for a busy machine.
const STOP_DEADLINE: Duration = Duration::from_secs(6);
/// For commands that do one thing and end, such as a migration.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// A program, its arguments and environment; running or not. Dropping it ends it.
#[derive(Debug)]
pub struct Program {
    name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    port: u16,
    process: Mutex<Option<Arc<Process>>>,
}

/// How a program answered for its readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// With the answer's body, which has the reasons.
    NotReady(String),
}

impl Program {
    /// The program `binary`, not started yet. `name` tells it from others of the same binary; `log` gets its output; `port` is
    /// where it answers `/readyz`.
    #[must_use]
    pub fn new(name: &str, binary: &Path, log: PathBuf, port: u16) -> Self {
        Self {
            name: name.to_owned(),
            binary: binary.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log,
            port,
            process: Mutex::new(None),
        }
    }

    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// A later value for the same name wins.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same program with another name, log and port, not started: a second instance.
    #[must_use]
    pub fn another(&self, name: &str, port: u16) -> Self {
        Self {
            name: name.to_owned(),
            binary: self.binary.clone(),
            arguments: self.arguments.clone(),
            environment: self.environment.clone(),
            log: self.log.with_file_name(format!("{name}.log")),
            port,
            process: Mutex::new(None),
        }
    }

    /// The same arguments, environment, log and port for the program `binary`, which stands beside this one; not started.
    #[must_use]
    pub fn with_binary(&self, binary: &str) -> Self {
        let mut other = self.another(&self.name, self.port);
        other.log.clone_from(&self.log);
        other.binary = self.binary.with_file_name(binary);
        other
    }

    /// The same program with one variable changed, not started.
    #[must_use]
    pub fn with_env(&self, name: &str, value: &str) -> Self {
        let mut other = self.another(&self.name, self.port).env(name, value);
        other.log.clone_from(&self.log);
        other
    }

    /// The same program with other arguments, a log of its own and the same port, not started: a command that a test may kill.
    #[must_use]
    pub fn command_of(&self, name: &str, arguments: &[&str]) -> Self {
        let mut other = self.another(name, self.port);
        other.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        other
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port of `/livez`, `/readyz` and `/metrics`, and of the API where it has one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:PORT` and `path`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// All that it has logged, over all its starts; nothing before the first one.
    #[must_use]
    pub fn log_text(&self) -> String {
        match std::fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(err) => format!("(no log: {err})"),
        }
    }

    /// The last `lines` lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = self.log_text();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The running process; none before the first start and after a stop.
    #[must_use]
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts it, without waiting for anything.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn start(&self) -> anyhow::Result<()> {
        let process = Process::spawn(&self.name, &mut self.command(), &self.log, Ending::Kill)?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(process));
        Ok(())
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// It ended, or was not ready after `deadline`; the message has its reasons and last log lines.
    pub async fn wait_ready(&self, deadline: Duration) -> anyhow::Result<()> {
        let client = reqwest::Client::new();
        let start = tokio::time::Instant::now();
        loop {
            let answer = self.readiness(&client).await;
            if matches!(answer, Ok(Readiness::Ready)) {
                return Ok(());
            }
            let process = self
                .process()
                .with_context(|| format!("{} is not started", self.name))?;
            if let Some(status) = process.exit_status() {
                bail!(
                    "{} ended ({status}); its last log lines:\n{}",
                    self.name,
                    self.log_tail(15)
                );
            }
            if start.elapsed() > deadline {
                let reason = match answer {
                    Ok(Readiness::NotReady(reasons)) => reasons,
                    Ok(Readiness::Ready) => String::new(),
                    Err(err) => format!("{err:#}"),
                };
                bail!(
                    "{} was not ready after {} s: {reason}\nits last log lines:\n{}",
                    self.name,
                    deadline.as_secs(),
                    self.log_tail(15)
                );
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// What `/readyz` answers right now.
    ///
    /// # Errors
    /// It does not answer, or with another status than 200 and 503.
    pub async fn readiness(&self, client: &reqwest::Client) -> anyhow::Result<Readiness> {
        let answer = client
            .get(self.url("/readyz"))
            .timeout(Duration::from_secs(2))
            .send()
            .await?;
        match answer.status().as_u16() {
            200 => Ok(Readiness::Ready),
            503 => Ok(Readiness::NotReady(answer.text().await?)),
            other => bail!("{}: /readyz answered {other}", self.name),
        }
    }

    /// SIGKILL; nothing where it does not run.
    pub async fn kill_hard(&self) {
        if let Some(process) = self.take() {
            process.kill_hard().await;
        }
    }

    /// SIGTERM, and waits for the end; nothing where it does not run.
    ///
    /// # Errors
    /// It did not end within 6 s (and was killed), or not with exit code 0.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let Some(process) = self.take() else {
            return Ok(());
        };
        let status = process.stop(Signal::TERM, STOP_DEADLINE).await?;
        if !status.success() {
            bail!(
                "{} ended with {status} after SIGTERM; its last log lines:\n{}",
                self.name,
                self.log_tail(15)
            );
        }
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It is not started, or still runs after `deadline`.
    pub async fn exited(&self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let process = self
            .process()
            .with_context(|| format!("{} is not started", self.name))?;
        tokio::time::timeout(deadline, process.exited()).await.with_context(|| {
            format!(
                "{} still runs after {} s; its last log lines:\n{}",
                self.name,
                deadline.as_secs(),
                self.log_tail(15)
            )
        })
    }

    /// Runs the same binary with this environment and other arguments, and waits for its end: `migrate`, `init`, `check`.
    /// Its output goes to the same log.
    ///
    /// # Errors
    /// It cannot be run, takes more than two minutes, or ends with another code than 0; the message has its last log lines.
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

    /// As [`Program::run`], for a caller who wants to see the exit status.
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

    /// As [`Program::run_for_status`], on a terminal where somebody types `typed`; also gives what stood on the terminal.
    ///
    /// # Errors
    /// `script` (of util-linux) is missing, or the program takes more than two minutes.
    pub async fn run_on_a_terminal(&self, arguments: &[&str], typed: &str) -> anyhow::Result<(ExitStatus, String)> {
        let command = format!("{} {}", self.binary.display(), arguments.join(" "));
        let mut terminal = tokio::process::Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run script (on Debian and Ubuntu the package bsdutils)")?;
        // Kept open: its end would be the terminal's.
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

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn take(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
