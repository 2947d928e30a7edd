//! One node of real Apache Kafka (KRaft: broker and controller in one process), from Maven's jars.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;

use crate::cache::{self, Entry};
use crate::consumer::{Consumer, Isolation, Record};
use crate::process::{Ending, Process};
use crate::random::Random;
use crate::scratch::Scratch;
use crate::{maven, metadata, port};

/// The release that is downloaded.
pub const VERSION: &str = "4.1.1";
const POM: &str = include_str!("kafka-pom.xml");
const LOGGING: &str = "\
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %m (%c{1})%n
";
const TOOL_LOGGING: &str = "\
rootLogger.level = error
rootLogger.appenderRef.err.ref = err
appender.err.type = Console
appender.err.name = err
appender.err.target = SYSTEM_ERR
appender.err.layout.type = PatternLayout
appender.err.layout.pattern = %p %m%n
";
/// A start takes 3 s on a quiet machine; after a crash, recovery comes on top.
const START_DEADLINE: Duration = Duration::from_secs(90);
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How to start a [`Kafka`].
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    /// 0: a free one.
    pub port: u16,
    /// Kept there, and continued when it holds a node's data already; none: a temporary directory.
    pub data: Option<PathBuf>,
    /// Further lines for `server.properties`, by name and value.
    pub settings: Vec<(String, String)>,
    /// Further listeners on free ports of `localhost`, by name and security protocol; what they demand is in `settings`.
    pub listeners: Vec<(String, String)>,
    /// Further arguments for the tool that formats the storage, such as `--add-scram`.
    pub format_arguments: Vec<String>,
}

/// A broker on 127.0.0.1. Dropping it kills the broker and removes a temporary data directory.
#[derive(Debug)]
pub struct Kafka {
    // Before `directory`, so that the broker has ended when its directory is removed.
    process: Mutex<Option<Arc<Process>>>,
    jars: PathBuf,
    port: u16,
    /// Name, security protocol and port of the further listeners.
    listeners: Vec<(String, String, u16)>,
    directory: Scratch,
}

impl Kafka {
    /// Formats the storage where there is none yet, and starts the node.
    ///
    /// # Errors
    /// Kafka could not be obtained, Java is missing or too old, or the node does not start; the message has its last log lines.
    pub async fn start(options: KafkaOptions) -> anyhow::Result<Self> {
        check_java().await?;
        let mut listeners = Vec::new();
        for (name, protocol) in &options.listeners {
            listeners.push((name.clone(), protocol.clone(), port::free()?));
        }
        let kafka = Self {
            process: Mutex::new(None),
            jars: jars().await?,
            port: port::given_or_free(options.port)?,
            listeners,
            directory: Scratch::kept_or_temporary(options.data.as_deref(), "outbox-kafka-")?,
        };
        kafka.write_configuration(&options.settings)?;
        kafka.format(&options.format_arguments).await?;
        kafka.start_again().await?;
        Ok(kafka)
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `HOST:PORT` for clients.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `HOST:PORT` of a further listener; its host is `localhost`.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<String> {
        let (_, _, port) = self.listeners.iter().find(|(known, _, _)| known == name)?;
        Some(format!("localhost:{port}"))
    }

    /// The broker's process, none while it is stopped.
    #[must_use]
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the broker logs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("kafka.log")
    }

    /// SIGKILL.
    pub async fn kill_hard(&self) {
        if let Some(process) = self.take() {
            process.kill_hard().await;
        }
    }

    /// Kafka's controlled shutdown.
    ///
    /// # Errors
    /// It did not end in time, and was killed.
    pub async fn stop(&self) -> anyhow::Result<()> {
        if let Some(process) = self.take() {
            process.stop(Signal::TERM, STOP_DEADLINE).await?;
        }
        Ok(())
    }

    /// Starts the node on the same data and port, and waits until it answers for its metadata.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        let mut command = self.java("logging.properties", &["-Xms256m", "-Xmx512m"]);
        command.arg("kafka.Kafka").arg(self.configuration());
        let process = Process::spawn("kafka", &mut command, &self.log(), Ending::Kill)?;
        let address = self.bootstrap_servers();
        let answering = async {
            while !matches!(metadata::brokers(&address).await, Ok(1..)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            answered = tokio::time::timeout(START_DEADLINE, answering) => if answered.is_err() {
                bail!("kafka did not answer within {} s; its last log lines:\n{}", START_DEADLINE.as_secs(), process.log_tail(15));
            },
            status = process.exited() => bail!("kafka ended at its start ({status}); its last log lines:\n{}", process.log_tail(15)),
        }
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(process));
        Ok(())
    }

    /// Kafka's own console consumer, from the beginning of `topic` and on until it is dropped.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn consumer(&self, topic: &str, isolation: Isolation) -> anyhow::Result<Consumer> {
        Consumer::start(
            self.java("tool-logging.properties", &["-Xmx256m"]),
            &self.bootstrap_servers(),
            topic,
            isolation,
        )
    }

    /// All records of `topic`, by Kafka's own console consumer: it has read to the end when nothing came for 5 s.
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

    /// Kafka's `kafka-topics` with these arguments; what it prints.
    ///
    /// # Errors
    /// The tool failed.
    pub async fn topic_tool(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tool("org.apache.kafka.tools.TopicCommand", arguments).await
    }

    /// Kafka's `kafka-consumer-groups` with these arguments; what it prints.
    ///
    /// # Errors
    /// The tool failed.
    pub async fn group_tool(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", arguments)
            .await
    }

    /// Kafka's `kafka-configs` with these arguments; what it prints.
    ///
    /// # Errors
    /// The tool failed.
    pub async fn configs_tool(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.tool("kafka.admin.ConfigCommand", arguments).await
    }

    /// Deletes the records of a partition before `offset`; -1: all of them.
    ///
    /// # Errors
    /// The tool failed, or the broker refused: it deletes no records of a topic that is only compacted.
    pub async fn delete_records(&self, topic: &str, partition: i32, offset: i64) -> anyhow::Result<()> {
        let file = self.directory.path().join("delete-records.json");
        fs::write(
            &file,
            serde_json::json!({
                "version": 1,
                "partitions": [{"topic": topic, "partition": partition, "offset": offset}],
            })
            .to_string(),
        )?;
        let file = file.to_string_lossy();
        let class = "org.apache.kafka.tools.DeleteRecordsCommand";
        let printed = self.tool(class, &["--offset-json-file", &file]).await?;
        // The tool ends with 0 all the same.
        ensure!(
            printed.contains("low_watermark"),
            "kafka deletes no records of {topic}: {printed}"
        );
        Ok(())
    }

    /// Gives a user a password for SCRAM-SHA-256, or another one.
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
        self.tool("kafka.admin.ConfigCommand", &arguments).await.map(drop)
    }

    async fn tool(&self, class: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.java("tool-logging.properties", &["-Xmx256m"]);
        command
            .arg(class)
            .args(["--bootstrap-server", &self.bootstrap_servers()])
            .args(arguments);
        run(command, class).await
    }

    async fn format(&self, arguments: &[String]) -> anyhow::Result<()> {
        if self.directory.path().join("data/meta.properties").exists() {
            return Ok(());
        }
        let mut command = self.java("tool-logging.properties", &["-Xmx256m"]);
        command
            .args(["kafka.tools.StorageTool", "format", "-t", &cluster_id(), "-c"])
            .arg(self.configuration())
            .args(arguments);
        run(command, "StorageTool").await.map(drop)
    }

    fn java(&self, logging: &str, memory: &[&str]) -> Command {
        let mut command = Command::new(java_program());
        command.args(memory);
        if logging.starts_with("tool") {
            // A tool lives for seconds: compile little, collect with one thread.
            command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
        }
        command
            .arg(format!(
                "-Dlog4j.configurationFile={}",
                self.directory.path().join(logging).display()
            ))
            .arg("-cp")
            .arg(self.jars.join("*"))
            .current_dir(self.directory.path());
        command
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("server.properties")
    }

    fn write_configuration(&self, settings: &[(String, String)]) -> anyhow::Result<()> {
        let (port, controller) = (self.port, port::free()?);
        let data = self.directory.path().join("data");
        let (mut further, mut protocols) = (String::new(), String::new());
        for (name, protocol, port) in &self.listeners {
            further += &format!(",{name}://localhost:{port}");
            protocols += &format!(",{name}:{protocol}");
        }
        let mut text = format!(
            "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{further}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
auto.create.topics.enable=false
",
            data = data.display()
        );
        for (name, value) in settings {
            text += &format!("{name}={value}\n");
        }
        let directory = self.directory.path();
        write(&self.configuration(), &text)?;
        write(&directory.join("logging.properties"), LOGGING)?;
        write(&directory.join("tool-logging.properties"), TOOL_LOGGING)
    }

    fn take(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The directory of Kafka's jars, from the cache after the first time.
///
/// # Errors
/// The download failed.
pub async fn jars() -> anyhow::Result<PathBuf> {
    let path = match cache::look_up(&format!("kafka-{VERSION}")).await? {
        Entry::Present(path) => path,
        Entry::Missing(claim) => {
            tracing::info!("downloading Apache Kafka {VERSION} from Maven Central (54 MB, once)");
            let directory = claim.directory();
            write(&directory.join("pom.xml"), POM)?;
            let output = format!("-DoutputDirectory={}", directory.join("jars").display());
            maven::dependency("copy-dependencies", &[output], directory).await?;
            claim.finish()?
        }
    };
    Ok(path.join("jars"))
}

fn java_program() -> PathBuf {
    match std::env::var_os("JAVA_HOME") {
        Some(home) if Path::new(&home).join("bin/java").exists() => Path::new(&home).join("bin/java"),
        _ => PathBuf::from("java"),
    }
}

async fn check_java() -> anyhow::Result<()> {
    let mut command = Command::new(java_program());
    command.arg("-version");
    let output = tokio::process::Command::from(command).output().await.context(
        "cannot run java: Kafka needs Java 17 or newer (on Debian and Ubuntu the package openjdk-17-jre-headless)",
    )?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    match java_version(&text) {
        Some(17..) => Ok(()),
        Some(old) => bail!("this java is {old}: Kafka needs Java 17 or newer"),
        None => bail!("cannot tell the version of java: {}", text.trim()),
    }
}

/// `openjdk version "17.0.15" 2025-04-15` is 17; `"1.8.0_292"` is 1.
fn java_version(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("version \"")?;
    let end = version.find(|c: char| !c.is_ascii_digit())?;
    version[..end].parse().ok()
}

async fn run(command: Command, what: &str) -> anyhow::Result<String> {
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

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// 128 random bits in URL-safe base64 without padding, as Kafka writes its ids: the 22nd digit holds only two of them.
fn cluster_id() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = Random::from_entropy();
    let mut digit = |bound: u64, step: usize| {
        let index = usize::try_from(random.below(bound)).unwrap_or(0) * step;
        char::from(DIGITS[index])
    };
    // A leading dash would be taken for a flag.
    let mut id = String::from(digit(52, 1));
    id.extend((0..20).map(|_| digit(64, 1)));
    id.push(digit(4, 16));
    id
}

#[cfg(test)]
mod tests {
    use super::java_version;

    #[test]
    fn a_major_version_is_read_from_what_java_says() {
        assert_eq!(java_version("openjdk version \"17.0.15\" 2025-04-15\n"), Some(17));
        assert_eq!(java_version("openjdk version \"21\" 2023-09-19\n"), Some(21));
        assert_eq!(java_version("java version \"1.8.0_292\"\n"), Some(1));
    }
}
