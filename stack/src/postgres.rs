//! A private PostgreSQL cluster. It listens only on the loopback interface, has no password, and never runs as root.

mod access;
mod backends;
mod client;
mod copy;
mod sessions;
mod standby;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Signal, kill_process};
use tokio_postgres::Client;

use crate::port;
use crate::postgres_binaries::Binaries;
use crate::process::{Ending, Process};
use crate::scratch::Scratch;
use crate::unprivileged::{self, User};
use backends::{children_of, is_alive};
use client::psql;
use sessions::Sessions;

pub use client::{connect, query, run_script};

/// A start takes a second, and longer after a crash, because the server then recovers.
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// The longest path for the directory of a Unix socket, so that `/.s.PGSQL.12345` still fits into 107 bytes.
const SOCKET_DIRECTORY_BYTES_MAX: usize = 90;

/// How to start a [`Postgres`].
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// The major version to download (15 to 18). None: the newest of 15-18 on this machine, otherwise a download.
    pub version: Option<u32>,
    /// The port; 0 is a free one.
    pub port: u16,
    /// The data directory, which is kept. If it has a cluster already, the server continues from it. None: a temporary directory.
    pub data: Option<PathBuf>,
    /// Further lines for `postgresql.conf`, by name and value.
    pub settings: Vec<(String, String)>,
}

impl PostgresOptions {
    /// Adds a setting of `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A cluster with logical replication, whose superuser is `postgres`. Dropping it ends the server, and removes a temporary data directory.
#[derive(Debug)]
pub struct Postgres {
    // This field stands before `directory`, so that the server has ended when its directory is removed.
    process: Mutex<Option<Arc<Process>>>,
    binaries: Binaries,
    user: Option<User>,
    port: u16,
    settings: Vec<(String, String)>,
    sessions: Sessions,
    directory: Scratch,
}

impl Postgres {
    /// Starts the cluster. Makes it first, if the data directory has none yet.
    ///
    /// # Errors
    /// PostgreSQL could not be obtained, or does not start; the message has its last log lines.
    pub async fn start(options: PostgresOptions) -> anyhow::Result<Self> {
        let binaries = match options.version {
            Some(version) => Binaries::downloaded(version).await?,
            None => Binaries::found_or_downloaded().await?,
        };
        let postgres = Self {
            process: Mutex::new(None),
            binaries,
            user: unprivileged::user()?,
            port: port::given_or_free(options.port)?,
            settings: options.settings,
            sessions: Sessions::default(),
            directory: Scratch::kept_or_temporary(options.data.as_deref(), "outbox-postgres-")?,
        };
        postgres.initialize()?;
        postgres.start_again().await?;
        Ok(postgres)
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The major version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.binaries.version
    }

    /// The server's process. None: it is stopped.
    #[must_use]
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The URL for a connection. It needs no password.
    #[must_use]
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// The directory of the server's Unix socket.
    #[must_use]
    pub fn socket_directory(&self) -> PathBuf {
        let own = self.directory.path().join("socket");
        if own.as_os_str().len() <= SOCKET_DIRECTORY_BYTES_MAX {
            own
        } else {
            PathBuf::from("/tmp")
        }
    }

    /// The file that the server logs into.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("postgres.log")
    }

    /// A new connection.
    ///
    /// # Errors
    /// The server does not answer or refuses.
    pub async fn connect(&self, user: &str, database: &str) -> anyhow::Result<Client> {
        connect(&self.url(user, database)).await
    }

    /// Runs `sql`, which may have several statements, on `database` as the superuser. Returns the rows of the last result as text; null is `None`.
    /// What it sets or locks ends with it, but the session itself may stay.
    ///
    /// # Errors
    /// The server is not there or the statement failed.
    pub async fn query(&self, database: &str, sql: &str) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        let client = match self.sessions.take(database).await {
            Some(client) => client,
            None => self.connect("postgres", database).await?,
        };
        let rows = query(&client, sql).await?;
        self.sessions.keep(database, client, sql).await;
        Ok(rows)
    }

    /// Runs the psql script `file` on the database `postgres` as the superuser. Stops at the first error.
    ///
    /// # Errors
    /// psql is missing, or a statement failed.
    pub async fn run_script(&self, file: &Path) -> anyhow::Result<()> {
        run_script(&self.url("postgres", "postgres"), file).await
    }

    /// Runs `sql` by the command `psql`. Returns what it prints, unaligned and without headings.
    ///
    /// # Errors
    /// psql is missing, or a statement failed.
    pub async fn psql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        psql(
            &self.url("postgres", database),
            &["--tuples-only", "--no-align", "--command", sql],
        )
        .await
    }

    /// Kills the server and all its backends by SIGKILL, so that nothing of them is left in memory.
    pub async fn kill_hard(&self) {
        let Some(process) = self.take() else { return };
        // The server is stopped first, so that it starts no new backend while the backends are listed.
        process.signal(Signal::STOP);
        let backends = children_of(process.id());
        process.signal(Signal::KILL);
        for backend in &backends {
            if let Err(err) = kill_process(*backend, Signal::KILL) {
                tracing::debug!(error = %err, "a backend ended first");
            }
        }
        process.exited().await;
        // The next start would fail as long as a backend holds the shared memory.
        while backends.iter().any(|backend| is_alive(*backend)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops the server by PostgreSQL's fast shutdown: it cuts the connections and writes its data.
    ///
    /// # Errors
    /// It did not end in time, and was killed.
    pub async fn stop_fast(&self) -> anyhow::Result<()> {
        if let Some(process) = self.take() {
            process.stop(Signal::INT, STOP_DEADLINE).await?;
        }
        Ok(())
    }

    /// Starts the server again with its data and port. Waits until it answers.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        let mut command = Command::new(self.binaries.program("postgres"));
        command.arg("-D").arg(self.data()).current_dir("/");
        for (name, value) in self.all_settings() {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        unprivileged::run_as(&mut command, self.user.as_ref());
        let process = Process::spawn("postgres", &mut command, &self.log(), Ending::Quit)?;
        let answering = async {
            while self.connect("postgres", "postgres").await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            answered = tokio::time::timeout(START_DEADLINE, answering) => if answered.is_err() {
                bail!("postgres did not answer within {} s; its last log lines:\n{}", START_DEADLINE.as_secs(), process.log_tail(15));
            },
            status = process.exited() => bail!("postgres ended at its start ({status}); its last log lines:\n{}", process.log_tail(15)),
        }
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(process));
        Ok(())
    }

    /// Copies the data directory of the stopped server, as a cold backup does. Only one copy is kept.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn save_data(&self) -> anyhow::Result<()> {
        replace_directory(&self.data(), &self.saved_data())
    }

    /// Puts the copy of [`Postgres::save_data`] back. The server must be stopped.
    ///
    /// # Errors
    /// There is none, or it cannot be copied.
    pub fn restore_data(&self) -> anyhow::Result<()> {
        replace_directory(&self.saved_data(), &self.data())
    }

    fn saved_data(&self) -> PathBuf {
        self.directory.path().join("data.saved")
    }

    fn take(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn initialize(&self) -> anyhow::Result<()> {
        let data = self.data();
        if self.socket_directory().starts_with(self.directory.path()) {
            unprivileged::make_directory(&self.socket_directory(), self.user.as_ref())?;
        }
        if let Ok(version) = fs::read_to_string(data.join("PG_VERSION")) {
            if version.trim() != self.binaries.version.to_string() {
                bail!(
                    "{} holds a cluster of PostgreSQL {}, but the PostgreSQL here is {}",
                    data.display(),
                    version.trim(),
                    self.binaries.version
                );
            }
            return Ok(());
        }
        // The data directory is made under another name and renamed at the end, because an interrupted initdb leaves something that looks like a
        // cluster.
        let unfinished = self.directory.path().join("data.unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).with_context(|| format!("cannot remove {}", unfinished.display()))?;
        }
        unprivileged::make_directory(&unfinished, self.user.as_ref())?;
        let mut command = Command::new(self.binaries.program("initdb"));
        // The locale C sorts by code points, which is the same on every machine.
        command
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
            .args(["--no-locale", "--no-sync", "--pgdata"])
            .arg(&unfinished)
            .current_dir("/");
        unprivileged::run_as(&mut command, self.user.as_ref());
        let made = command.output().context("cannot run initdb")?;
        if !made.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        fs::rename(&unfinished, &data).with_context(|| format!("cannot make {}", data.display()))
    }

    /// All settings by name and value. They are given on the command line, where they win over the files of a kept cluster.
    fn all_settings(&self) -> Vec<(String, String)> {
        let socket_directory = self.socket_directory().display().to_string();
        let port = self.port.to_string();
        let defaults = [
            ("port", port.as_str()),
            ("unix_socket_directories", &socket_directory),
            ("listen_addresses", "localhost"),
            ("wal_level", "logical"),
            ("max_replication_slots", "20"),
            ("max_wal_senders", "20"),
            ("max_connections", "200"),
            ("shared_buffers", "256MB"),
            ("max_wal_size", "2GB"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
        ];
        let defaults = defaults.map(|(name, value)| (name.to_owned(), value.to_owned()));
        defaults.into_iter().chain(self.settings.iter().cloned()).collect()
    }
}

/// `cp` keeps owners and modes, because PostgreSQL demands certain ones.
fn replace_directory(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    let copied = Command::new("cp")
        .arg("--archive")
        .arg(from)
        .arg(to)
        .status()
        .context("cannot run cp")?;
    anyhow::ensure!(copied.success(), "cannot copy {} to {}", from.display(), to.display());
    Ok(())
}
