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
/// Threads of pgbench.
const PGBENCH_THREADS: u32 = 2;

/// # Errors
/// A part failed, or a user could not be created.
pub(crate) async fn measure(asked: &Rest, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pgbench = client_program("pgbench", "postgresql")?;
    let pipeline = builder.prepare().await?;
    pipeline.user_api.start()?;
    pipeline.user_api.wait_ready(READY_DEADLINE).await?;
    let scripts = Scratch::temporary("outbox-bench-")?;
    let mut comparison = Comparison {
        pipeline: &pipeline,
        pgbench,
        scripts,
    };
    let mut report = Report::begin(
        &pipeline,
        &[
            "connections",
            "pgbench users/s",
            "REST users/s",
            "ratio",
            "user-api cores",
            "user-api peak RSS MB",
        ],
    )
    .await?;
    report.notes = vec![
        "Medians; ratio: of the medians, REST to pgbench. pgbench sends user-api's own statement, prepared, as the same role. The relays and \
         the view-builder are not running."
            .to_owned(),
    ];
    tracing::info!("warming up");
    comparison.rest(asked.connections[0], WARM_UP_SECONDS).await?;
    comparison.pgbench(asked.connections[0], WARM_UP_SECONDS).await?;
    for &connections in &asked.connections {
        let (mut theirs, mut ours, mut cores) = (Vec::new(), Vec::new(), Vec::new());
        for number in 1..=asked.runs {
            theirs.push(comparison.pgbench(connections, asked.seconds).await?);
            let (rate, used) = comparison.rest(connections, asked.seconds).await?;
            ours.push(rate);
            cores.push(used);
            let (pgbench_rate, rest_rate) = (median(&theirs[theirs.len() - 1..]), rate);
            tracing::info!(
                "  {connections} connections, run {number}: pgbench {}, REST {} users/s",
                thousands(pgbench_rate),
                thousands(rest_rate)
            );
            report.runs.push(json!({
                "connections": connections,
                "pgbench_users_per_second": pgbench_rate,
                "rest_users_per_second": rest_rate,
                "user_api_cores": used,
            }));
        }
        let process = pipeline.user_api.process().context("user-api is not running")?;
        report.table.row(vec![
            connections.to_string(),
            thousands(median(&theirs)),
            thousands(median(&ours)),
            format!("{:.2}", median(&ours) / median(&theirs)),
            format!("{:.2}", median(&cores)),
            format!("{:.1}", usage::peak_memory_mb(&process)?),
        ]);
    }
    pipeline.stop().await?;
    Ok(report)
}

struct Comparison<'a> {
    pipeline: &'a Pipeline,
    pgbench: PathBuf,
    scripts: Scratch,
}

impl Comparison<'_> {
    /// Users per second, and the processors that user-api kept busy.
    async fn rest(&mut self, connections: u32, seconds: u32) -> anyhow::Result<(f64, f64)> {
        let process = self.pipeline.user_api.process().context("user-api is not running")?;
        let run: Arc<str> = format!("{:x}", now_us()).into();
        let next = Arc::new(AtomicU64::new(0));
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(Connection::open(self.pipeline.user_api.port()).await?);
        }
        let cpu_before = usage::cpu_seconds(&process)?;
        let start = Instant::now();
        let end = start + Duration::from_secs(u64::from(seconds));
        let mut workers = JoinSet::new();
        for mut client in clients {
            let (run, next) = (Arc::clone(&run), Arc::clone(&next));
            workers.spawn(async move {
                let mut created = 0_u64;
                while Instant::now() < end {
                    let person = people::person(&run, next.fetch_add(1, Ordering::Relaxed));
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
        let cores = (usage::cpu_seconds(&process)? - cpu_before) / elapsed;
        Ok((created as f64 / elapsed, cores))
    }

    /// Users per second; connecting does not count.
    async fn pgbench(&mut self, connections: u32, seconds: u32) -> anyhow::Result<f64> {
        let script = self.scripts.path().join("create.sql");
        std::fs::write(&script, script_text()?)?;
        let postgres = self.pipeline.postgres()?;
        let before = count_users(self.pipeline).await?;
        let output = tokio::process::Command::new(&self.pgbench)
            .args(arguments(&script, connections, seconds))
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
            count_users(self.pipeline).await? > before,
            "pgbench has created no users: {text}"
        );
        parse_rate(&text).with_context(|| format!("pgbench tells no rate: {text}"))
    }
}

fn arguments(script: &Path, connections: u32, seconds: u32) -> Vec<String> {
    let threads = connections.min(PGBENCH_THREADS);
    let mut arguments: Vec<String> = ["--no-vacuum", "--protocol=prepared"].map(str::to_owned).to_vec();
    arguments.push(format!("--file={}", script.display()));
    arguments.push(format!("--client={connections}"));
    arguments.push(format!("--jobs={threads}"));
    arguments.push(format!("--time={seconds}"));
    arguments
}

/// user-api's statement, with what its parameters are given. A random number of 60 bits makes the address unique.
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

async fn count_users(pipeline: &Pipeline) -> anyhow::Result<i64> {
    let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    let row = client.query_one("select coalesce(max(id), 0) from users", &[]).await?;
    Ok(row.get(0))
}

/// `tps = 1234.567890 (without initial connection time)`.
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
