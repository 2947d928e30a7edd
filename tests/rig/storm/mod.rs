//! The kill storm: clients write, and everything is killed at random. In the end the ledgers are compared.
//!
//! There are four ledgers: what each client was told, what the outbox holds, what a read_committed consumer sees, and what a read_uncommitted
//! consumer sees. Both consumers are ordinary Kafka consumers. The seed decides what is written, and what is killed when. It cannot decide how the
//! processes run beside each other.

mod faults;
mod operators;
mod outcome;
mod relays;
mod schedule;
mod watch;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use stack::KafkaOptions;
use tokio::task::JoinHandle;

pub use outcome::{Outcome, Recovery, Verdict};
pub use schedule::{Kill, Part, Schedule};

use crate::ledger::{Ledger, Row};
use crate::rig::{PARTITIONS, Rig};
use crate::servers::{Servers, postgres_options};
use crate::topic::{Isolation, Record};
use faults::Faults;
use operators::{Retries, Rotations};
use relays::Relays;
use watch::Watch;
use writer::{Answer, Common, Diary, Writer};

/// Clients that write at the same time.
const WRITERS: u32 = 10;
/// Everything that was written must be visible so soon after the last kill.
const DRAIN_DEADLINE: Duration = Duration::from_secs(180);

/// The options of a storm.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// For so long parts are killed.
    pub duration: Duration,
    /// Rows per second of all writers together; at least 1.
    pub rate: u32,
    /// The parts that are killed.
    pub parts: Vec<Part>,
    /// Whether a second relay waits for the slot. It is killed as often as the first.
    pub standby: bool,
    /// Whether some rows are larger than their topic takes. The relay parks them, and an operator publishes them again, with the rows behind them.
    pub parking: bool,
    /// Whether an operator replaces the passwords of PostgreSQL and Kafka.
    pub rotation: bool,
    pub postgres_version: u32,
    /// A directory that gets the logs of relays and servers at the end.
    pub logs: Option<PathBuf>,
}

/// How far a storm is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    pub elapsed: Duration,
    pub changes: u64,
    pub kills: u64,
    pub published: u64,
}

/// Makes the storm on new servers. It calls `progress` ten times a second.
///
/// # Errors
/// A server does not start, or the comparison cannot be made. If the relay did something wrong, the [`Outcome`] says so, and there is no error.
pub async fn run(options: &Options, schedule: &Schedule, progress: impl Fn(Progress)) -> anyhow::Result<Outcome> {
    let relays = start_relays(options).await?;
    let rig = relays.rig();
    let start = Instant::now();
    let watch = Watch::start(&rig.servers.kafka.bootstrap_servers(), &rig.topic(), PARTITIONS, start)?;
    let mut supervisors = relays::supervise(&relays);
    let common = Arc::new(Common {
        url: rig.servers.postgres.url("postgres", rig.name()),
        topic: rig.topic(),
        start,
        stopping: AtomicBool::new(false),
        changes: AtomicU64::new(0),
        with_poison: options.parking,
    });
    let writers = spawn_writers(options, &common);

    let writers_are_done = Arc::new(AtomicBool::new(false));
    let retries = options.parking.then(|| {
        let retries = Retries::new(Arc::clone(&relays), options.seed);
        tokio::spawn(retries.run(Arc::clone(&writers_are_done)))
    });
    let rotations = Rotations::new(Arc::clone(&relays), options.seed);
    let rotated = rotations.done();
    let rotating = options
        .rotation
        .then(|| tokio::spawn(rotations.run(Arc::clone(&writers_are_done))));

    let faults = Arc::new(Faults::new(Arc::clone(&relays), start));
    let report = || {
        progress(Progress {
            elapsed: start.elapsed(),
            changes: common.changes.load(Ordering::Relaxed),
            kills: faults.fired().len() as u64,
            published: watch.records(),
        });
    };
    let mut killing = tokio::spawn(faults::carry_out(
        Arc::clone(&faults),
        schedule.clone(),
        options.duration,
    ));
    let mut definite_stop = None;
    let killed = loop {
        tokio::select! {
            ended = &mut killing => break ended.context("the killer")?,
            Some(stop) = supervisors.stops.recv() => {
                definite_stop = Some(stop);
                // The comparison needs the servers, so the last kill ends with a restart.
                faults.give_up();
                break killing.await.context("the killer")?;
            }
            () = tokio::time::sleep(Duration::from_millis(100)) => report(),
        }
    };
    killed?;

    common.stopping.store(true, Ordering::Relaxed);
    let mut diaries: Vec<Diary> = Vec::new();
    for writer in writers {
        diaries.push(writer.await.context("a writer")?);
    }
    writers_are_done.store(true, Ordering::Relaxed);
    if let Some(rotating) = rotating {
        rotating.await.context("who replaces passwords")??;
    }
    let retries = match retries {
        Some(retries) => retries.await.context("who retries")?.unwrap_or_else(|err| {
            definite_stop.get_or_insert_with(|| format!("{err:#}"));
            0
        }),
        None => 0,
    };
    let barriers: Vec<String> = diaries
        .iter()
        .flat_map(|diary| &diary.barriers)
        .map(ToString::to_string)
        .collect();
    let drain_start = Instant::now();
    while definite_stop.is_none() && !watch.has_all(&barriers) && drain_start.elapsed() < DRAIN_DEADLINE {
        definite_stop = supervisors.stops.try_recv().ok();
        report();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let drained_in = drain_start.elapsed();
    supervisors.end();
    let mut trouble: Vec<String> = definite_stop.into_iter().collect();
    if !watch.has_all(&barriers) {
        trouble.push(format!(
            "not everything was visible {} s after the last kill",
            drained_in.as_secs()
        ));
    }
    if trouble.is_empty()
        && let Err(err) = relays.stop().await
    {
        trouble.push(format!("{err:#}"));
    }
    trouble.extend(relays.log_lines_of_panics());

    if let Some(directory) = &options.logs {
        keep_logs(rig, directory)?;
    }

    let found = Found::read(rig).await?;
    let fired = faults.fired();
    let recoveries = fired.iter().map(|fired| Recovery {
        part: fired.part,
        took: watch.recovery(fired.at),
    });
    Ok(Outcome {
        options: options.clone(),
        elapsed: start.elapsed(),
        transactions: diaries.iter().map(|diary| diary.transactions).sum(),
        committed: count(&diaries, Answer::Committed),
        failed: count(&diaries, Answer::Failed),
        unknown: count(&diaries, Answer::Unknown),
        broken_answers: broken_answers(&diaries, &found.rows),
        ledger: found.ledger,
        aborted_copies: found.aborted_copies,
        recoveries: recoveries.collect(),
        restarts: relays.restarts(),
        drained_in,
        parked: found.parked,
        retries,
        rotations: rotated.load(Ordering::Relaxed),
        trouble,
        servers: format!(
            "PostgreSQL {}, Apache Kafka {}",
            rig.value("show server_version").await,
            rig.servers.kafka.version()
        ),
    })
}

/// Starts the servers, and one relay or two with the settings that the options ask for.
async fn start_relays(options: &Options) -> anyhow::Result<Arc<Relays>> {
    let mut postgres = postgres_options();
    postgres.version = Some(options.postgres_version);
    let mut kafka = kafka_options();
    if options.rotation {
        kafka = operators::with_login(kafka);
    }
    let servers = Arc::new(Servers::start(postgres, kafka).await?);
    let mut rig = Rig::on(servers, "storm").await;
    if options.rotation {
        rig = operators::logs_in(rig).await?;
    }
    if options.parking {
        rig.relay = operators::parks(rig.relay);
    }
    rig.init(&[]).await;
    if options.parking {
        operators::refuse_poison(&rig).await?;
    }
    let relays = Arc::new(Relays::new(rig, options.standby));
    relays.rig().start().await;
    relays.start_standby()?;
    Ok(relays)
}

fn spawn_writers(options: &Options, common: &Arc<Common>) -> Vec<JoinHandle<Diary>> {
    let interval = Duration::from_secs(1) * WRITERS / options.rate.max(1);
    (0..WRITERS as usize)
        .map(|number| tokio::spawn(Writer::new(Arc::clone(common), number, options.seed, interval).run()))
        .collect()
}

/// What is in the outbox and in the topic after the storm.
struct Found {
    rows: Vec<Row>,
    /// The rows, compared with the committed records.
    ledger: Ledger,
    aborted_copies: usize,
    /// How many records are retries of parked rows.
    parked: usize,
}

impl Found {
    async fn read(rig: &Rig) -> anyhow::Result<Self> {
        let (topic, rows) = (rig.topic(), rig.rows().await);
        let (committed, uncommitted) = tokio::try_join!(
            rig.servers.kafka.records(&topic, Isolation::Committed),
            rig.servers.kafka.records(&topic, Isolation::Uncommitted),
        )?;
        let aborted_copies = uncommitted.len().saturating_sub(committed.len());
        let records: Vec<Record> = committed.into_iter().map(Record::from).collect();
        let parked = records.iter().filter(|record| record.is_of_a_retry()).count();
        let compared = tokio::task::spawn_blocking(move || (Ledger::compare(&rows, &records), rows)).await?;
        let (ledger, rows) = compared;
        Ok(Self {
            rows,
            ledger,
            aborted_copies,
            parked,
        })
    }
}

/// A broker that was killed can register again only after its session has timed out. The default of 9 s would be most of the storm.
fn kafka_options() -> KafkaOptions {
    let settings = [
        ("broker.session.timeout.ms", "2000"),
        ("broker.heartbeat.interval.ms", "400"),
    ];
    KafkaOptions {
        settings: settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        ..KafkaOptions::default()
    }
}

fn keep_logs(rig: &Rig, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    let relays = std::fs::read_dir(rig.logs())?
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    for log in relays.chain([rig.servers.postgres.log(), rig.servers.kafka.log()]) {
        let name = log.file_name().context("a log without a name")?;
        std::fs::copy(&log, directory.join(name)).with_context(|| format!("cannot keep {}", log.display()))?;
    }
    Ok(())
}

/// How many rows got this answer.
fn count(diaries: &[Diary], asked: Answer) -> usize {
    let answers = diaries.iter().flat_map(|diary| &diary.answers);
    answers.filter(|(_, answer)| *answer == asked).count()
}

/// Rows that were committed and are missing, and rows that were not committed and are there.
fn broken_answers(diaries: &[Diary], rows: &[Row]) -> Vec<String> {
    let there: std::collections::HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let answers = diaries.iter().flat_map(|diary| &diary.answers);
    answers
        .map(|(id, answer)| (id.to_string(), *answer))
        .filter(|(id, answer)| match answer {
            Answer::Committed => !there.contains(id.as_str()),
            Answer::Failed => there.contains(id.as_str()),
            Answer::Unknown => false,
        })
        .map(|(id, _)| id)
        .collect()
}
