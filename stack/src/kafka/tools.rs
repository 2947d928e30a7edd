//! Kafka's own command line tools.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::{Kafka, write};
use crate::consumer::{Consumer, Isolation, Record};
use crate::random::Random;

/// What the coordinator of a transactional id knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub transactional_id: String,
    /// Id of the node that coordinates it.
    pub coordinator: i32,
    /// `Empty`, `Ongoing`, `PrepareCommit`, `CompleteCommit` …
    pub state: String,
}

impl Kafka {
    /// Starts Kafka's own console consumer. It reads `topic` from the beginning, until it is dropped.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn consumer(&self, topic: &str, isolation: Isolation) -> anyhow::Result<Consumer> {
        Consumer::start(
            self.java_command("tool-logging.properties", &["-Xmx256m"]),
            &self.bootstrap_servers(),
            topic,
            isolation,
        )
    }

    /// All records of `topic`, by Kafka's own console consumer. The consumer is at the end when nothing has come for 5 s.
    ///
    /// # Errors
    /// The consumer failed.
    pub async fn records(&self, topic: &str, isolation: Isolation) -> anyhow::Result<Vec<Record>> {
        let consumer = self.consumer(topic, isolation)?;
        consumer.read_until_quiet(Duration::from_secs(5)).await
    }

    /// The names of all topics.
    ///
    /// # Errors
    /// The tool failed.
    pub async fn topics(&self) -> anyhow::Result<Vec<String>> {
        let text = self.topic_tool(&["--list"]).await?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Runs Kafka's `kafka-topics` with these arguments. Returns what it prints.
    ///
    /// # Errors
    /// The tool failed.
    pub async fn topic_tool(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tool("org.apache.kafka.tools.TopicCommand", arguments).await
    }

    /// Runs Kafka's `kafka-consumer-groups` with these arguments. Returns what it prints.
    ///
    /// # Errors
    /// The tool failed.
    pub async fn group_tool(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", arguments)
            .await
    }

    /// Runs Kafka's `kafka-configs` with these arguments. Returns what it prints.
    ///
    /// # Errors
    /// The tool failed.
    pub async fn configs_tool(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tool(&self.release.class_of_tool("ConfigCommand")?, arguments)
            .await
    }

    /// Deletes the records of a partition before `offset`; -1 deletes all.
    ///
    /// # Errors
    /// The tool failed, or the broker refused: it deletes no records from a topic that is only compacted.
    pub async fn delete_records(&self, topic: &str, partition: i32, offset: i64) -> anyhow::Result<()> {
        let file = self.file_for_a_tool("delete-records");
        write(
            &file,
            &serde_json::json!({
                "version": 1,
                "partitions": [{"topic": topic, "partition": partition, "offset": offset}],
            })
            .to_string(),
        )?;
        let file = file.to_string_lossy();
        let class = "org.apache.kafka.tools.DeleteRecordsCommand";
        let printed = self.tool(class, &["--offset-json-file", &file]).await?;
        // The tool ends with exit code 0 even if the broker refused.
        ensure!(
            printed.contains("low_watermark"),
            "kafka deletes no records of {topic}: {printed}"
        );
        Ok(())
    }

    /// Sets or replaces a user's password for SCRAM-SHA-256.
    ///
    /// # Errors
    /// The tool failed.
    pub async fn add_scram_user(&self, name: &str, password: &str) -> anyhow::Result<()> {
        let credentials = format!("SCRAM-SHA-256=[password={password}]");
        let arguments = [
            "--alter",
            "--entity-type",
            "users",
            "--entity-name",
            name,
            "--add-config",
            &credentials,
        ];
        self.configs_tool(&arguments).await.map(drop)
    }

    /// Runs Kafka's `kafka-acls` with these arguments. Returns what it prints.
    ///
    /// # Errors
    /// The tool failed.
    pub async fn acls_tool(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tool(&self.release.class_of_tool("AclCommand")?, arguments).await
    }

    /// Runs Kafka's `kafka-transactions` with these arguments. Returns what it prints.
    ///
    /// # Errors
    /// The tool failed.
    pub async fn transactions_tool(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tool("org.apache.kafka.tools.TransactionsCommand", arguments).await
    }

    /// The transactional ids that the cluster knows, from Kafka's `kafka-transactions`.
    ///
    /// # Errors
    /// The tool failed, or printed something that is not a list of them.
    pub async fn transactions(&self) -> anyhow::Result<Vec<Transaction>> {
        let text = self.transactions_tool(&["list"]).await?;
        let lines = text.lines().skip(1).filter(|line| !line.trim().is_empty());
        lines
            .map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let [transactional_id, coordinator, _producer_id, state] = fields[..] else {
                    bail!("no transaction of kafka-transactions: {line}");
                };
                Ok(Transaction {
                    transactional_id: transactional_id.to_owned(),
                    coordinator: coordinator.parse().with_context(|| format!("no node id: {line}"))?,
                    state: state.to_owned(),
                })
            })
            .collect()
    }

    /// Sets the order of the replicas of partitions, and has the first replica of each elected as the leader. The replicas stay on the same nodes.
    ///
    /// # Errors
    /// A tool failed.
    pub async fn elect_leaders(&self, partitions: &[(String, i32, Vec<i32>)]) -> anyhow::Result<()> {
        let file = self.file_for_a_tool("leaders");
        let entries = partitions.iter().map(|(topic, partition, replicas)| {
            serde_json::json!({"topic": topic, "partition": partition, "replicas": replicas})
        });
        let entries: Vec<_> = entries.collect();
        write(
            &file,
            &serde_json::json!({"version": 1, "partitions": entries}).to_string(),
        )?;
        let file = file.to_string_lossy();
        let reassign = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand";
        self.tool(reassign, &["--reassignment-json-file", &file, "--execute"])
            .await?;
        let elect = "org.apache.kafka.tools.LeaderElectionCommand";
        let arguments = ["--election-type", "preferred", "--path-to-json-file", &file];
        self.tool(elect, &arguments).await.map(drop)
    }

    /// A file that only one call uses, because several tools may run at the same time.
    fn file_for_a_tool(&self, name: &str) -> PathBuf {
        let number = Random::from_entropy().next_u64();
        self.directory.path().join(format!("{name}-{number:016x}.json"))
    }

    async fn tool(&self, class: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.java_command("tool-logging.properties", &["-Xmx256m"]);
        command
            .arg(class)
            .args(["--bootstrap-server", &self.bootstrap_servers()])
            .args(arguments);
        run(command, class).await
    }
}

pub(super) async fn run(command: Command, what: &str) -> anyhow::Result<String> {
    let output = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {what}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{what} failed: {}{}",
            text,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(text)
}
