//! One of the pipeline's own programs as a child process.

mod commands;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;

use crate::process::{Ending, Process};

/// The programs promise to end so soon after SIGTERM. There is one second more, for a busy machine.
const STOP_DEADLINE: Duration = Duration::from_secs(6);

/// A program with its arguments and its environment. It may be running or not. Dropping it ends it.
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

/// The answer of a program's `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// The text is the body of the answer, which has the reasons.
    NotReady(String),
}

impl Program {
    /// The program `binary`, not yet started. `name` distinguishes it from other programs of the same binary. Its output goes into `log`. It answers
    /// `/readyz` on `port`.
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

    /// Sets a variable. If the name is set already, the new value counts.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A second instance of the program, not yet started. It has another name, log and port.
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

    /// Another program in the same directory, not yet started. It has the same arguments, environment, log and port.
    #[must_use]
    pub fn with_binary(&self, binary: &str) -> Self {
        let mut other = self.another(&self.name, self.port);
        other.log.clone_from(&self.log);
        other.binary = self.binary.with_file_name(binary);
        other
    }

    /// The same program with one variable changed, not yet started.
    #[must_use]
    pub fn with_env(&self, name: &str, value: &str) -> Self {
        let mut other = self.another(&self.name, self.port).env(name, value);
        other.log.clone_from(&self.log);
        other
    }

    /// A command of the same program, not yet started: other arguments, a log of its own, and the same port. A test may kill it.
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

    /// The port of `/livez`, `/readyz` and `/metrics`, and of the API if the program has one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL `http://127.0.0.1:PORT` with `path`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Everything that the program has logged over all its starts. Before the first start this is empty.
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

    /// The running process. None: the program was not started, or was stopped.
    #[must_use]
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the program, and does not wait for anything.
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
    /// The program ended, or was not ready after `deadline`. The message has its reasons and its last log lines.
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

    /// The answer of `/readyz` right now.
    ///
    /// # Errors
    /// The program does not answer, or answers with another status than 200 and 503.
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

    /// Kills the program by SIGKILL, if it runs.
    pub async fn kill_hard(&self) {
        if let Some(process) = self.take() {
            process.kill_hard().await;
        }
    }

    /// Stops the program by SIGTERM, if it runs. Waits until it ends.
    ///
    /// # Errors
    /// The program did not end within 6 s, and was killed. Or its exit code was not 0.
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

    /// Waits until the program ends by itself.
    ///
    /// # Errors
    /// The program was not started, or still runs after `deadline`.
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
