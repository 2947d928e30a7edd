//! Two operators work while a storm goes on. One replaces passwords. The other publishes parked rows again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;
use stack::random::Random;
use stack::{KafkaOptions, Program};

use super::relays::Relays;
use crate::rig::Rig;
use crate::topic_settings;

/// While poison may come, the topic takes records up to this size.
const RECORD_BYTES_MAX: &str = "100000";
/// While parked rows are published, the topic takes records up to this size.
const RECORD_BYTES_MAX_OF_A_RETRY: &str = "1000000";
/// The size of a poison row's payload.
pub(super) const POISON_BYTES: usize = 150_000;

/// Between two retries the relays run for so long.
const RETRY_INTERVAL: Duration = Duration::from_secs(45);
/// If a retry is to be killed, it is killed within this time.
const RETRY_KILLED_WITHIN_MS: u64 = 3_000;
/// An operator's work must be done so soon after the last kill.
const DEADLINE: Duration = Duration::from_secs(180);

const ROLE: &str = "rotating";
const LISTENER: &str = "LOGIN";
/// The time between two changes of a password. Kafka's tool takes seconds, so a password must last longer than that.
const ROTATION_INTERVAL: Duration = Duration::from_secs(8);

const TRY_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Sets the environment of a relay that parks poison.
pub(super) fn parks(relay: Program) -> Program {
    relay.env("OUTBOX_POISON", "park").env("OUTBOX_POISON_LIMIT", "1000000")
}

/// Makes the topic refuse poison.
///
/// # Errors
/// The broker is away, or refuses.
pub(super) async fn refuse_poison(rig: &Rig) -> anyhow::Result<()> {
    limit(rig, RECORD_BYTES_MAX).await
}

async fn limit(rig: &Rig, bytes: &str) -> anyhow::Result<()> {
    let servers = rig.servers.kafka.bootstrap_servers();
    topic_settings::set(&servers, &rig.topic(), &[("max.message.bytes", bytes)]).await
}

/// Publishes parked rows again from time to time.
#[derive(Debug)]
pub(super) struct Retries {
    relays: Arc<Relays>,
    random: Random,
    done: u64,
}

impl Retries {
    pub(super) fn new(relays: Arc<Relays>, seed: u64) -> Self {
        Self {
            relays,
            random: Random::seeded(seed),
            done: 0,
        }
    }

    /// Retries until it is told to stop, and then a last time. After that nothing is parked. Returns how often it did.
    ///
    /// # Errors
    /// A retry was not done within [`DEADLINE`].
    pub(super) async fn run(mut self, stopping: Arc<AtomicBool>) -> anyhow::Result<u64> {
        let mut due = Instant::now() + RETRY_INTERVAL;
        loop {
            let is_last = stopping.load(Ordering::Relaxed);
            if is_last || due <= Instant::now() {
                self.relays.hold().await;
                let retried = self.retry(is_last, &stopping).await;
                self.relays.release();
                retried?;
                due = Instant::now() + RETRY_INTERVAL;
            }
            if is_last {
                return Ok(self.done);
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
    }

    /// Runs two retries, and kills the first one on its way.
    async fn retry(&mut self, is_last: bool, stopping: &AtomicBool) -> anyhow::Result<()> {
        let relays = Arc::clone(&self.relays);
        let rig = relays.rig();
        until_it_succeeds(stopping, || limit(rig, RECORD_BYTES_MAX_OF_A_RETRY)).await?;
        let command = rig.relay.command_of("retry", &["parked", "retry", "--all"]);
        command.start()?;
        let process = command.process().context("a process")?;
        let killed_after = Duration::from_millis(self.random.below(RETRY_KILLED_WITHIN_MS));
        drop(tokio::time::timeout(killed_after, process.exited()).await);
        command.kill_hard().await;
        until_it_succeeds(stopping, || rig.relay.run(&["parked", "retry", "--all"])).await?;
        if !is_last {
            until_it_succeeds(stopping, || refuse_poison(rig)).await?;
        }
        self.done += 1;
        Ok(())
    }
}

/// Repeats an action until it succeeds. Servers may be killed until `stopping`; after that they are up.
async fn until_it_succeeds<F: Future<Output = anyhow::Result<()>>>(
    stopping: &AtomicBool,
    mut act: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let mut up_since = None;
    loop {
        let Err(err) = act().await else { return Ok(()) };
        if stopping.load(Ordering::Relaxed) && up_since.get_or_insert_with(Instant::now).elapsed() > DEADLINE {
            return Err(err.context("an operator cannot go on"));
        }
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
    }
}

/// Adds a listener that relays log in to.
pub(super) fn with_login(mut options: KafkaOptions) -> KafkaOptions {
    options
        .listeners
        .push((LISTENER.to_owned(), "SASL_PLAINTEXT".to_owned()));
    options.format_arguments.extend([
        "--add-scram".to_owned(),
        format!("SCRAM-SHA-256=[name={ROLE},password={}]", password(0)),
    ]);
    options
        .setting("inter.broker.listener.name", "PLAINTEXT")
        .setting("sasl.enabled.mechanisms", "SCRAM-SHA-256")
        .setting(
            "listener.name.login.scram-sha-256.sasl.jaas.config",
            "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        )
}

/// Replaces the passwords that the relays log in with.
#[derive(Debug)]
pub(super) struct Rotations {
    relays: Arc<Relays>,
    random: Random,
    done: Arc<AtomicU64>,
}

fn password(number: u64) -> String {
    format!("password-{number}")
}

fn file_of(rig: &Rig, server: &str) -> std::path::PathBuf {
    rig.logs().join(format!("password-of-{server}"))
}

/// Gives the relay of `rig` a role and a user that must log in, with passwords that it reads from files.
///
/// # Errors
/// PostgreSQL refuses, or a file cannot be written.
pub(super) async fn logs_in(mut rig: Rig) -> anyhow::Result<Rig> {
    for server in ["postgres", "kafka"] {
        std::fs::write(file_of(&rig, server), password(0))?;
    }
    let postgres = Arc::clone(&rig.servers.postgres);
    let role = format!(
        "create role {ROLE} superuser login replication password '{}'",
        password(0)
    );
    postgres.query("postgres", &role).await?;
    let rules =
        format!("host all {ROLE} 127.0.0.1/32 scram-sha-256\nhost replication {ROLE} 127.0.0.1/32 scram-sha-256");
    postgres.put_access_rules_first(&rules).await?;
    let url = format!(
        "postgres://{ROLE}@127.0.0.1:{}/{}?passwordfile={}",
        postgres.port(),
        rig.name(),
        file_of(&rig, "postgres").display()
    );
    let listener = rig.servers.kafka.listener(LISTENER).context("no listener")?;
    // The batches are small enough for the topic from the beginning. A relay that has to learn the topic's limit starts a second time.
    let properties = format!(
        "batch.size={RECORD_BYTES_MAX}\nbroker.address.family=v4\nsecurity.protocol=sasl_plaintext\nsasl.mechanism=SCRAM-SHA-256\nsasl.username={ROLE}"
    );
    let secrets = format!("sasl.password={}", file_of(&rig, "kafka").display());
    rig.relay = rig
        .relay
        .env("DATABASE_URL", &url)
        .env("KAFKA_BOOTSTRAP_SERVERS", &listener)
        .env("KAFKA_PROPERTIES", &properties)
        .env("KAFKA_PROPERTY_FILES", &secrets);
    Ok(rig)
}

impl Rotations {
    pub(super) fn new(relays: Arc<Relays>, seed: u64) -> Self {
        Self {
            relays,
            random: Random::seeded(seed),
            done: Arc::default(),
        }
    }

    /// How many passwords were replaced.
    pub(super) fn done(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.done)
    }

    /// Replaces passwords until it is told to stop. Then the file and the server have the same password.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) async fn run(mut self, stopping: Arc<AtomicBool>) -> anyhow::Result<()> {
        for number in 1.. {
            tokio::time::sleep(ROTATION_INTERVAL).await;
            if stopping.load(Ordering::Relaxed) {
                break;
            }
            let gap = Duration::from_millis(self.random.below(1_000));
            let server_first = self.random.below(2) == 0;
            for server in ["postgres", "kafka"] {
                if !server_first {
                    self.write(server, number)?;
                    tokio::time::sleep(gap).await;
                }
                // The server may be down. It comes back as long as the storm lasts.
                while self.change(server, number).await.is_err() {
                    tokio::time::sleep(TRY_AGAIN_AFTER).await;
                }
                if server_first {
                    tokio::time::sleep(gap).await;
                    self.write(server, number)?;
                }
                self.done.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn write(&self, server: &str, number: u64) -> anyhow::Result<()> {
        Ok(std::fs::write(file_of(self.relays.rig(), server), password(number))?)
    }

    async fn change(&self, server: &str, number: u64) -> anyhow::Result<()> {
        let servers = &self.relays.rig().servers;
        let password = password(number);
        if server == "kafka" {
            return servers.kafka.add_scram_user(ROLE, &password).await;
        }
        let change = format!("alter role {ROLE} password '{password}'");
        servers.postgres.query("postgres", &change).await.map(drop)
    }
}

/// Stops a program in order. It may just have been killed.
pub(super) async fn end(program: &Program) {
    if let Some(process) = program.process() {
        process.signal(Signal::TERM);
        process.exited().await;
    }
}
