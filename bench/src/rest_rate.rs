//! Users per second through REST, against pgbench with the same statement.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use stack::pipeline::USERS_DATABASE;
use stack::scratch::Scratch;
use stack::{Pipeline, PipelineBuilder, postgres};
use tokio::task::JoinSet;
use user_api::statements;

use crate::arguments::Rest;
use crate::backlog::client_program;
use crate::http::Connection;
use crate::report::Report;
use crate::statistics::{median, thousands};
use crate::topic::now_us;
use crate::{people, usage};

const WARM_UP_SECONDS: u32 = 3;
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// pgbench has at most so many threads.
const PGBENCH_THREADS_MAX: u32 = 2;

const HEADINGS: [&str; 6] = [
    "connections",
    "pgbench users/s",
    "REST users/s",
    "ratio",
    "user-api cores",
    "user-api peak RSS MB",
];

/// One run of pgbench, and one through REST directly after it.
struct Pair {
    pgbench_rate: f64,
    rest: RestRun,
}

/// One run through REST.
struct RestRun {
    /// Users per second.
    rate: f64,
    /// Processors that user-api kept busy.
    user_api_cores: f64,
}

/// All runs with one number of connections.
struct Series {
    connections: u32,
    pairs: Vec<Pair>,
    user_api_peak_memory_mb: f64,
}

/// # Errors
/// A part failed, or a user could not be created.
pub(crate) async fn measure(options: &Rest, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pgbench = client_program("pgbench", "postgresql")?;
    let pipeline = builder.prepare().await?;
    pipeline.user_api.start()?;
    pipeline.user_api.wait_ready(READY_DEADLINE).await?;
    let comparison = Comparison {
        pipeline: &pipeline,
        pgbench,
        scripts: Scratch::temporary("outbox-bench-")?,
    };
    let mut report = Report::begin(&pipeline, &HEADINGS).await?;
    tracing::info!("warming up");
    comparison.run_rest(options.connections[0], WARM_UP_SECONDS).await?;
    comparison.run_pgbench(options.connections[0], WARM_UP_SECONDS).await?;
    let mut all_series = Vec::new();
    for &connections in &options.connections {
        all_series.push(comparison.measure(connections, options).await?);
    }
    pipeline.stop().await?;
    write_into_report(&mut report, &all_series);
    Ok(report)
}

fn write_into_report(report: &mut Report, all_series: &[Series]) {
    report.notes = vec![
        "Medians; ratio: of the medians, REST to pgbench. pgbench sends user-api's own statement, prepared, as the same role. The relays and \
         the view-builder are not running."
            .to_owned(),
    ];
    for series in all_series {
        for pair in &series.pairs {
            report.runs.push(json!({
                "connections": series.connections,
                "pgbench_users_per_second": pair.pgbench_rate,
                "rest_users_per_second": pair.rest.rate,
                "user_api_cores": pair.rest.user_api_cores,
            }));
        }
        let median_of = |value: fn(&Pair) -> f64| median(&series.pairs.iter().map(value).collect::<Vec<_>>());
        let (pgbench_rate, rest_rate) = (median_of(|pair| pair.pgbench_rate), median_of(|pair| pair.rest.rate));
        report.table.add_row(vec![
            series.connections.to_string(),
            thousands(pgbench_rate),
            thousands(rest_rate),
            format!("{:.2}", rest_rate / pgbench_rate),
            format!("{:.2}", median_of(|pair| pair.rest.user_api_cores)),
            format!("{:.1}", series.user_api_peak_memory_mb),
        ]);
    }
}

/// What both are run with.
struct Comparison<'a> {
    pipeline: &'a Pipeline,
    pgbench: PathBuf,
    /// The directory of pgbench's script.
    scripts: Scratch,
}

impl Comparison<'_> {
    /// Runs both in turn with this number of connections.
    async fn measure(&self, connections: u32, options: &Rest) -> anyhow::Result<Series> {
        let mut pairs = Vec::new();
        for number in 1..=options.runs {
            let pair = Pair {
                pgbench_rate: self.run_pgbench(connections, options.seconds).await?,
                rest: self.run_rest(connections, options.seconds).await?,
            };
            tracing::info!(
                "  {connections} connections, run {number}: pgbench {}, REST {} users/s",
                thousands(pair.pgbench_rate),
                thousands(pair.rest.rate)
            );
            pairs.push(pair);
        }
        let process = self.pipeline.user_api.process().context("user-api is not running")?;
        Ok(Series {
            connections,
            pairs,
            user_api_peak_memory_mb: usage::peak_memory_mb(&process)?,
        })
    }

    /// Creates users through REST for so many seconds.
    async fn run_rest(&self, connections: u32, seconds: u32) -> anyhow::Result<RestRun> {
        let process = self.pipeline.user_api.process().context("user-api is not running")?;
        let run_name: Arc<str> = format!("{:x}", now_us()).into();
        let next_index = Arc::new(AtomicU64::new(0));
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(Connection::open(self.pipeline.user_api.port()).await?);
        }
        let cpu_before = usage::cpu_seconds(&process)?;
        let start = Instant::now();
        let end = start + Duration::from_secs(u64::from(seconds));
        let mut workers = JoinSet::new();
        for mut client in clients {
            let (run_name, next_index) = (Arc::clone(&run_name), Arc::clone(&next_index));
            workers.spawn(async move {
                let mut created = 0_u64;
                while Instant::now() < end {
                    let person = people::person(&run_name, next_index.fetch_add(1, Ordering::Relaxed));
                    client.create("/api/users", &person).await?;
                    created += 1;
                }
                anyhow::Ok(created)
            });
        }
        let mut created = 0;
        while let Some(worker) = workers.join_next().await {
            created += worker??;
        }
        let elapsed = start.elapsed().as_secs_f64();
        Ok(RestRun {
            rate: created as f64 / elapsed,
            user_api_cores: (usage::cpu_seconds(&process)? - cpu_before) / elapsed,
        })
    }

    /// Lets pgbench create users for so many seconds. Returns the users per second; the time to connect does not count.
    async fn run_pgbench(&self, connections: u32, seconds: u32) -> anyhow::Result<f64> {
        let script = self.scripts.path().join("create.sql");
        std::fs::write(&script, script_text()?)?;
        let postgres = self.pipeline.postgres()?;
        let last_id_before = last_user_id(self.pipeline).await?;
        let output = tokio::process::Command::new(&self.pgbench)
            .args(pgbench_arguments(&script, connections, seconds))
            .arg(postgres.url("user_api", USERS_DATABASE))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run pgbench")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "pgbench failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        ensure!(
            last_user_id(self.pipeline).await? > last_id_before,
            "pgbench has created no users: {text}"
        );
        parse_rate(&text).with_context(|| format!("pgbench tells no rate: {text}"))
    }
}

fn pgbench_arguments(script: &Path, connections: u32, seconds: u32) -> Vec<String> {
    let threads = connections.min(PGBENCH_THREADS_MAX);
    let mut arguments: Vec<String> = ["--no-vacuum", "--protocol=prepared"].map(str::to_owned).to_vec();
    arguments.push(format!("--file={}", script.display()));
    arguments.push(format!("--client={connections}"));
    arguments.push(format!("--jobs={threads}"));
    arguments.push(format!("--time={seconds}"));
    arguments
}

/// The script for pgbench: user-api's statement with values in place of its parameters. A random number of 60 bits makes each address unique.
fn script_text() -> anyhow::Result<String> {
    let mut statement = statements::CREATE.to_owned();
    for (parameter, value) in [
        ("$1", "'홍길동'"),
        ("$2", "'gildong.hong.' || :number || '@example.com'"),
        ("$3", "'개발팀'"),
        ("$4", "'ACTIVE'"),
        ("$5", "gen_random_uuid()"),
    ] {
        ensure!(
            statement.matches(parameter).count() == 1,
            "user-api's statement does not use {parameter} once"
        );
        statement = statement.replace(parameter, value);
    }
    Ok(format!("\\set number random(1, 1000000000000000000)\n{statement};\n"))
}

/// The highest id of a user; 0 where there is no user.
async fn last_user_id(pipeline: &Pipeline) -> anyhow::Result<i64> {
    let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    let row = client.query_one("select coalesce(max(id), 0) from users", &[]).await?;
    Ok(row.get(0))
}

/// Reads the rate from pgbench's line `tps = 1234.567890 (without initial connection time)`.
fn parse_rate(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{parse_rate, script_text};

    #[test]
    fn pgbench_runs_the_statement_of_user_api_with_its_parameters_filled_in() {
        let script = script_text().unwrap();
        assert!(script.contains("insert into users"), "{script}");
        assert!(script.contains("insert into outbox"), "{script}");
        assert!(!script.contains('$'), "{script}");
    }

    #[test]
    fn the_rate_of_pgbench_is_read() {
        let text = "latency average = 3.3 ms\ninitial connection time = 9.1 ms\ntps = 2423.851234 (without initial connection time)\n";
        assert_eq!(parse_rate(text), Some(2_423.851_234));
        assert_eq!(parse_rate("pgbench: error"), None);
    }
}
