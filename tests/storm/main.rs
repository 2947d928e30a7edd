//! `kill-storm`: see `--help`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use rig::storm::{self, Options, Part, Progress, Schedule, Verdict};

const LINE_INTERVAL: Duration = Duration::from_secs(10);
const EXIT_CODES: &str = "\
Exit codes:
   0  everything is in the topic once, in order, and every part was killed
   1  something is lost, doubled, out of order or invented, or the relay stopped for good; or the storm itself failed
   2  wrong arguments
   3  inconclusive: a part was never killed, or nothing was parked or replaced";

/// Kills the relay, its walsender, PostgreSQL and Kafka at random while clients write, and compares what they were told, the outbox
/// and the topic.
///
/// PostgreSQL and Kafka are its own. The same seed gives the same schedule; what happens between two kills no seed can repeat.
/// Ctrl-C ends it and leaves nothing behind.
#[derive(Debug, Parser)]
#[command(after_long_help = EXIT_CODES, max_term_width = 120)]
struct Arguments {
    /// Decides what is killed when, and what is written. Without it a random one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// How long it kills, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=86_400))]
    seconds: u64,
    /// Rows a second.
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// What it kills.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    kills: Vec<Part>,
    /// How many times as often relays and walsenders are killed; something is killed every 3 s on average at 1, every 0.8 s at 5.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=20))]
    haste: u64,
    /// A second relay waits for the slot, and is killed as often as the first.
    #[arg(long)]
    standby: bool,
    /// Some rows are larger than their topic takes: the relay parks them with the rows of their keys, and an operator publishes them again.
    #[arg(long)]
    parking: bool,
    /// An operator replaces the passwords that the relay logs in with, at PostgreSQL and at Kafka.
    #[arg(long)]
    rotation: bool,
    /// Major version of PostgreSQL, 15 to 18.
    #[arg(long, default_value_t = 18, value_parser = clap::value_parser!(u32).range(15..=18))]
    postgres: u32,
    /// Also write schedule and result to this file.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Keep the logs of relays and servers in this directory.
    #[arg(long)]
    logs: Option<PathBuf>,
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what it prints is for a person"
)]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    stack::narration::start(&[]);
    let options = options(&arguments);
    let schedule = Schedule::from_seed(options.seed, options.duration, &options.parts, arguments.haste);
    let opening = format!(
        "kill-storm --seed {} --seconds {} --rate {} --haste {}{}\n{} kills, at seconds since its start:\n{schedule}",
        options.seed,
        arguments.seconds,
        options.rate,
        arguments.haste,
        switches(&options),
        schedule.0.len()
    );
    println!("{opening}");
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(watched(&options, &schedule)));
    let outcome = match ended {
        Ok(outcome) => outcome,
        Err(err) => {
            eprintln!("kill-storm: {err:#}");
            return ExitCode::FAILURE;
        }
    };
    println!("{outcome}");
    if let Some(file) = &arguments.report
        && let Err(err) = std::fs::write(file, format!("{opening}\n{outcome}"))
    {
        eprintln!("kill-storm: cannot write {}: {err}", file.display());
        return ExitCode::FAILURE;
    }
    match outcome.verdict() {
        Verdict::Exact => ExitCode::SUCCESS,
        Verdict::Broken => ExitCode::FAILURE,
        Verdict::Inconclusive => ExitCode::from(3),
    }
}

fn options(arguments: &Arguments) -> Options {
    Options {
        // Few digits, so that a person can type it again.
        seed: arguments
            .seed
            .unwrap_or_else(|| stack::random::Random::from_entropy().below(1_000_000)),
        duration: Duration::from_secs(arguments.seconds),
        rate: arguments.rate,
        parts: arguments.kills.clone(),
        standby: arguments.standby,
        parking: arguments.parking,
        rotation: arguments.rotation,
        postgres_version: arguments.postgres,
        logs: arguments.logs.clone(),
    }
}

/// The switches that were given, each behind a blank.
fn switches(options: &Options) -> String {
    let all = [
        (options.standby, " --standby"),
        (options.parking, " --parking"),
        (options.rotation, " --rotation"),
    ];
    all.iter().filter(|(given, _)| *given).map(|(_, text)| *text).collect()
}

/// Runs the storm under a bar on a terminal, with a line now and then elsewhere.
async fn watched(options: &Options, schedule: &Schedule) -> anyhow::Result<storm::Outcome> {
    let seconds = options.duration.as_secs();
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("  [{bar:30}] {pos}/{len} s  {msg}");
        let style = style
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        ProgressBar::new(seconds).with_style(style)
    });
    let said_at = Mutex::new(Instant::now());
    let outcome = storm::run(options, schedule, |progress| match &bar {
        Some(bar) => {
            bar.set_position(progress.elapsed.as_secs().min(seconds));
            bar.set_message(line(progress));
        }
        None => {
            let mut said_at = said_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if said_at.elapsed() > LINE_INTERVAL {
                *said_at = Instant::now();
                tracing::warn!("  {} of {seconds} s: {}", progress.elapsed.as_secs(), line(progress));
            }
        }
    })
    .await;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    outcome
}

fn line(progress: Progress) -> String {
    format!(
        "{} kills, {} rows written, {} records visible",
        progress.kills,
        HumanCount(progress.changes),
        HumanCount(progress.published)
    )
}
