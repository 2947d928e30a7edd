//! A node of real Apache Kafka (KRaft: broker and controller in one process), from Maven's jars.

mod classes;
mod configuration;
mod release;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;

pub(crate) use configuration::Layout;
use configuration::Listener;
use release::Release;
pub use release::{VERSION, jars};
pub use tools::Transaction;

use crate::process::{Ending, Process};
use crate::scratch::Scratch;
use crate::{metadata, port};

/// For one node. A start takes 3 s on a quiet machine, and longer after a crash, because the node then recovers its logs.
const START_DEADLINE: Duration = Duration::from_secs(90);
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How to start a [`Kafka`].
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    /// The release, such as `4.1.1`. None: [`VERSION`].
    pub version: Option<String>,
    /// The port; 0 is a free one.
    pub port: u16,
    /// The directory of the data, which is kept. If it has a node's data already, the node continues from it. None: a temporary directory.
    pub data: Option<PathBuf>,
    /// Further lines for `server.properties`, by name and value.
    pub settings: Vec<(String, String)>,
    /// Further listeners on free ports of `localhost`: name and security protocol of each. `settings` says what they demand.
    pub listeners: Vec<(String, String)>,
    /// Further arguments for the tool that formats the storage, such as `--add-scram`.
    pub format_arguments: Vec<String>,
}

impl KafkaOptions {
    /// Adds a setting of `server.properties`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A broker on 127.0.0.1, alone or in a [`KafkaCluster`](crate::KafkaCluster). Dropping it kills the broker, and removes a temporary data directory.
#[derive(Debug)]
pub struct Kafka {
    // This field stands before `directory`, so that the broker has ended when its directory is removed.
    process: Mutex<Option<Arc<Process>>>,
    release: Release,
    layout: Layout,
    /// The number of the node, from 1.
    id: usize,
    listeners: Vec<Listener>,
    directory: Scratch,
}

impl Kafka {
    /// Starts a node that is alone in its cluster. Formats its storage first, if it has none yet.
    ///
    /// # Errors
    /// Kafka could not be obtained, Java is missing or too old, or the node does not start; the message has its last log lines.
    pub async fn start(options: KafkaOptions) -> anyhow::Result<Self> {
        let layout = Layout::new(&[options.port])?;
        let kafka = Self::format_in(layout, 1, options).await?;
        kafka.start_again().await?;
        Ok(kafka)
    }

    /// Formats the storage of node `id` of a cluster, if it has none yet. Does not start the node. Its port comes from the layout.
    pub(crate) async fn format_in(layout: Layout, id: usize, options: KafkaOptions) -> anyhow::Result<Self> {
        let release = Release::get(options.version.as_deref().unwrap_or(VERSION)).await?;
        Self::format_release(release, layout, id, options).await
    }

    async fn format_release(
        release: Release,
        layout: Layout,
        id: usize,
        options: KafkaOptions,
    ) -> anyhow::Result<Self> {
        let mut listeners = Vec::new();
        for (name, protocol) in options.listeners {
            let port = port::free()?;
            listeners.push(Listener { name, protocol, port });
        }
        let kafka = Self {
            process: Mutex::new(None),
            release,
            layout,
            id,
            listeners,
            directory: Scratch::kept_or_temporary(options.data.as_deref(), "outbox-kafka-")?,
        };
        kafka.write_configuration(&options.settings)?;
        kafka.format(&options.format_arguments).await?;
        Ok(kafka)
    }

    /// The release that runs.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.release.version
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.layout.client_port(self.id)
    }

    /// `HOST:PORT` for clients of this node alone.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// `HOST:PORT` of each node of the cluster for clients, separated by commas. This node comes first.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        self.layout.bootstrap_servers(self.id)
    }

    /// `HOST:PORT` of a further listener. The host is `localhost`.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<String> {
        let listener = self.listeners.iter().find(|listener| listener.name == name)?;
        Some(format!("localhost:{}", listener.port))
    }

    /// The broker's process. None: it is stopped.
    #[must_use]
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The file that the broker logs into.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("kafka.log")
    }

    /// Kills the broker by SIGKILL.
    pub async fn kill_hard(&self) {
        if let Some(process) = self.take() {
            process.kill_hard().await;
        }
    }

    /// Stops the broker by Kafka's controlled shutdown.
    ///
    /// # Errors
    /// It did not end in time, and was killed.
    pub async fn stop(&self) -> anyhow::Result<()> {
        if let Some(process) = self.take() {
            process.stop(Signal::TERM, self.deadline(STOP_DEADLINE)).await?;
        }
        Ok(())
    }

    /// The nodes of a cluster need each other and share the machine, so each gets more time.
    fn deadline(&self, of_one_node: Duration) -> Duration {
        of_one_node * u32::try_from(self.layout.node_count()).unwrap_or(1)
    }

    /// Starts the node again with its data and port. Waits until it answers a request for its metadata.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.start_with(&[]).await
    }

    /// As [`Kafka::start_again`], with further arguments for Java.
    async fn start_with(&self, java_arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = self.java_command("logging.properties", self.heap_arguments());
        command
            .args(java_arguments)
            .arg("kafka.Kafka")
            .arg(self.configuration());
        let process = Process::spawn(self.name(), &mut command, &self.log(), Ending::Kill)?;
        let address = self.address();
        let deadline = self.deadline(START_DEADLINE);
        let answering = async {
            while !matches!(metadata::brokers(&address).await, Ok(1..)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            answered = tokio::time::timeout(deadline, answering) => if answered.is_err() {
                bail!("kafka did not answer within {} s; its last log lines:\n{}", deadline.as_secs(), process.log_tail(15));
            },
            status = process.exited() => bail!("kafka ended at its start ({status}); its last log lines:\n{}", process.log_tail(15)),
        }
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(process));
        Ok(())
    }

    fn name(&self) -> String {
        match self.layout.node_count() {
            1 => "kafka".to_owned(),
            _ => format!("kafka-{}", self.id),
        }
    }

    /// Java's arguments for the heap. The brokers of a cluster share the machine and its load, so each gets less.
    fn heap_arguments(&self) -> &'static [&'static str] {
        match self.layout.node_count() {
            1 => &["-Xms256m", "-Xmx512m"],
            _ => &["-Xms128m", "-Xmx256m"],
        }
    }

    async fn format(&self, arguments: &[String]) -> anyhow::Result<()> {
        if self.directory.path().join("data/meta.properties").exists() {
            return Ok(());
        }
        let mut command = self.java_command("tool-logging.properties", &["-Xmx256m"]);
        command
            .args(["kafka.tools.StorageTool", "format", "-t", &self.layout.cluster_id, "-c"])
            .arg(self.configuration())
            .args(arguments);
        tools::run(command, "StorageTool").await.map(drop)
    }

    /// The beginning of a command that runs one of Kafka's classes. `logging` is the file of its logging configuration.
    fn java_command(&self, logging: &str, memory: &[&str]) -> Command {
        let mut command = Command::new(release::java_program());
        command.args(memory);
        if logging.starts_with("tool") {
            // A tool runs only for seconds, so Java should compile little, and collect garbage in one thread.
            command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
        }
        command.args(classes::arguments(self.release.classes.as_deref()));
        command
            .arg(format!(
                "-Dlog4j.configurationFile={}",
                self.directory.path().join(logging).display()
            ))
            .arg("-cp")
            .arg(self.release.jars.join("*"))
            .current_dir(self.directory.path());
        command
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("server.properties")
    }

    fn write_configuration(&self, settings: &[(String, String)]) -> anyhow::Result<()> {
        let data = self.directory.path().join("data");
        let text = self.layout.server_properties(self.id, &data, &self.listeners, settings);
        write(&self.configuration(), &text)?;
        configuration::write_logging(self.directory.path())
    }

    fn take(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
