//! From a commit to Kafka, and from a commit to the view, at fixed rates.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::{Pipeline, PipelineBuilder, Process, eventually_ok, postgres};
use tokio_postgres::{Client, Statement};

use crate::arguments::Latency;
use crate::http::Connection;
use crate::report::Report;
use crate::statistics::{latencies, quantile_ms, thousands};
use crate::topic::{Topic, now_us};
use crate::{pace, people, usage};

/// At each rate.
pub(crate) const WARM_UP_SECONDS: u32 = 5;
/// Before the first rate, on either way: a broker's first half minute is several times slower than the rest, and Java goes on compiling it
/// for four minutes, a third of a second at a time, in which it takes a whole processor.
const FIRST_WARM_UP: Latency = Latency {
    rate: Vec::new(),
    seconds: 120,
    connections: 32,
};
pub(crate) const FIRST_WARM_UP_RATE: u32 = 2_000;
/// As much as the server keeps between two checkpoints (`max_wal_size`): seven minutes at 2,000/s, and by then checkpoints leave files behind.
const LOG_MB: u32 = 2000;
/// What was changed last must have arrived by then.
pub(crate) const ARRIVAL_DEADLINE: Duration = Duration::from_secs(60);
/// An aggregate type of its own, since the view-builder would try to apply a user's event.
const AGGREGATE: &str = "bench";
const TOPIC: &str = "bench-events";
/// $1 the key. As large as a user's event with a long text.
const INSERT: &str = "insert into outbox (aggregatetype, aggregateid, type, payload)
    values ('bench', $1, 'BENCHED', jsonb_build_object('eventType', 'BENCHED', 'userId', $1::text,
        'note', repeat(md5(random()::text), 11)))";

/// One rate on one way.
struct Run {
    way: &'static str,
    rate: u32,
    /// Changes a second that were made.
    achieved: f64,
    latencies_us: Histogram<u64>,
    /// Processors in use, by name.
    cores: Vec<(&'static str, f64)>,
    /// Of the relay and of view-builder, at the end.
    memory_mb: [f64; 2],
}

/// # Errors
/// A part failed, or a change did not arrive.
pub(crate) async fn measure(asked: &Latency, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    let topic = format!("{TOPIC}:{}", events::PARTITIONS);
    pipeline
        .init_relay(&pipeline.users_relay, USERS_DATABASE, &topic)
        .await?;
    pipeline.start_programs().await?;
    let mut report = Report::begin(
        &pipeline,
        &[
            "from commit to",
            "wanted/s",
            "made/s",
            "p50 ms",
            "p99 ms",
            "max ms",
            "cores: relay",
            "user-api",
            "view-builder",
            "PostgreSQL",
            "Kafka",
            "load",
            "RSS MB: relay",
            "view-builder",
        ],
    )
    .await?;
    report.notes = vec![
        "From the transaction's commit record, so the flush of the WAL to disk is included. Kafka: until a read_committed consumer has the \
         record. View: until the commit record of the view's transaction. PostgreSQL has files of its log to use again, as one that \
         has been running for a while."
            .to_owned(),
    ];
    tracing::info!("warming up");
    fill_the_log(&pipeline).await?;
    to_kafka(&pipeline, &FIRST_WARM_UP, FIRST_WARM_UP_RATE).await?;
    to_view(&pipeline, &FIRST_WARM_UP, FIRST_WARM_UP_RATE).await?;
    for &rate in &asked.rate {
        for run in [
            to_kafka(&pipeline, asked, rate).await?,
            to_view(&pipeline, asked, rate).await?,
        ] {
            tracing::info!(
                "  commit to {} at {rate}/s ({} s): p50 {:.1} ms, p99 {:.1} ms",
                run.way,
                asked.seconds,
                quantile_ms(&run.latencies_us, 0.5),
                quantile_ms(&run.latencies_us, 0.99)
            );
            report.runs.push(run.json());
            report.table.row(run.row());
        }
    }
    pipeline.stop().await?;
    Ok(report)
}

/// Leaves files of the write-ahead log to be used again, as a server has that has been running for a while. A new one makes each
/// file when it is needed: 16 MB written and flushed, for which all commits wait.
pub(crate) async fn fill_the_log(pipeline: &Pipeline) -> anyhow::Result<()> {
    let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    client.batch_execute("alter system set min_wal_size = '2GB'").await?;
    client.batch_execute("select pg_reload_conf()").await?;
    let fill =
        format!("select pg_logical_emit_message(false, '', repeat('x', 1000000)) from generate_series(1, {LOG_MB})");
    client.execute(&fill, &[]).await?;
    let lsn: String = client.query_one("select pg_current_wal_lsn()::text", &[]).await?.get(0);
    eventually_ok(ARRIVAL_DEADLINE, "the slots need none of that log", async || {
        // Which also tells the slots where they may begin again.
        client.batch_execute("checkpoint").await?;
        let sql = "select count(*) from pg_replication_slots where restart_lsn < $1::text::pg_lsn";
        let behind: i64 = client.query_one(sql, &[&lsn]).await?.get(0);
        ensure!(behind == 0, "{behind} slots still need it");
        Ok(())
    })
    .await?;
    client.batch_execute("checkpoint").await?;
    let recycled: i64 = client
        .query_one("select count(*) from pg_ls_waldir()", &[])
        .await?
        .get(0);
    tracing::info!("  {recycled} files of the write-ahead log");
    Ok(())
}

/// A connection and the statement that it has prepared.
type Inserter = (Client, Statement);

async fn to_kafka(pipeline: &Pipeline, asked: &Latency, rate: u32) -> anyhow::Result<Run> {
    let url = pipeline.database_url(USERS_DATABASE)?;
    let mut clients: Vec<Inserter> = Vec::new();
    for _ in 0..asked.connections {
        let client = postgres::connect(&url).await?;
        let statement = client.prepare(INSERT).await?;
        clients.push((client, statement));
    }
    let insert = async |(client, statement): &mut Inserter, index: u64| {
        client.execute(&*statement, &[&index.to_string()]).await?;
        anyhow::Ok(())
    };
    let topic = Topic::new(pipeline.bootstrap_servers(), TOPIC);
    let consumer = topic.receive()?;
    pace::keep(&mut clients, rate, WARM_UP_SECONDS, insert).await?;
    let processors = Processors::start(pipeline)?;
    let begin_us = now_us();
    let achieved = pace::keep(&mut clients, rate, asked.seconds, insert).await?;
    let cores = processors.end()?;
    let memory_mb = memory_mb(pipeline)?;
    // The relay is never so far behind that this is not enough; if it were, the count below would not be right.
    tokio::time::sleep(Duration::from_secs(2)).await;
    topic.wait_until_visible().await?;
    let mut latencies_us = latencies()?;
    for arrival in consumer.end()? {
        if arrival.committed_us >= begin_us {
            let latency = arrival.received_us - arrival.committed_us;
            latencies_us.saturating_record(u64::try_from(latency).unwrap_or(0));
        }
    }
    let made = u64::from(rate) * u64::from(asked.seconds);
    ensure!(
        latencies_us.len() == made,
        "{made} rows were committed, {} of them were received as {AGGREGATE} events",
        latencies_us.len()
    );
    Ok(Run {
        way: "Kafka",
        rate,
        achieved,
        latencies_us,
        cores,
        memory_mb,
    })
}

async fn to_view(pipeline: &Pipeline, asked: &Latency, rate: u32) -> anyhow::Result<Run> {
    let users = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    let views = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    let mut clients = Vec::new();
    for _ in 0..asked.connections {
        clients.push(Connection::open(pipeline.user_api.port()).await?);
    }
    let run: Arc<str> = format!("{:x}", now_us()).into();
    let warm_up = async |client: &mut Connection, index: u64| {
        client
            .create("/api/users", &people::person(&format!("w{run}"), index))
            .await
    };
    pace::keep(&mut clients, rate, WARM_UP_SECONDS, warm_up).await?;
    let row = users.query_one("select coalesce(max(id), 0) from users", &[]).await?;
    let before: i64 = row.get(0);
    let processors = Processors::start(pipeline)?;
    let create =
        async |client: &mut Connection, index: u64| client.create("/api/users", &people::person(&run, index)).await;
    let achieved = pace::keep(&mut clients, rate, asked.seconds, create).await?;
    let cores = processors.end()?;
    let memory_mb = memory_mb(pipeline)?;
    let made = u64::from(rate) * u64::from(asked.seconds);
    eventually_ok(ARRIVAL_DEADLINE, "the view has all users", async || {
        let sql = "select count(*) from user_view where user_id > $1";
        let rows: i64 = views.query_one(sql, &[&before]).await?.get(0);
        ensure!(rows.unsigned_abs() == made, "{rows} of {made} users are in the view");
        Ok(())
    })
    .await?;
    let committed = commit_times(&users, "users", "id", before).await?;
    let applied = commit_times(&views, "user_view", "user_id", before).await?;
    let mut latencies_us = latencies()?;
    for (id, committed_us) in committed {
        let applied_us = applied.get(&id).context("a user without a row in the view")?;
        latencies_us.saturating_record(u64::try_from(applied_us - committed_us).unwrap_or(0));
    }
    Ok(Run {
        way: "view",
        rate,
        achieved,
        latencies_us,
        cores,
        memory_mb,
    })
}

/// Microseconds since 1970, of the rows with ids above `after`.
async fn commit_times(client: &Client, table: &str, id: &str, after: i64) -> anyhow::Result<HashMap<i64, i64>> {
    let sql = format!(
        "select {id}, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint from {table} where {id} > $1"
    );
    let rows = client.query(&sql, &[&after]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn memory_mb(pipeline: &Pipeline) -> anyhow::Result<[f64; 2]> {
    let programs = [&pipeline.users_relay, &pipeline.view_builder];
    let [relay, builder] = programs.map(|program| usage::memory_mb(&*running(program.process())?));
    Ok([relay?, builder?])
}

fn running(process: Option<Arc<Process>>) -> anyhow::Result<Arc<Process>> {
    process.context("a part is not running")
}

/// CPU time of each part since a moment.
struct Processors<'a> {
    pipeline: &'a Pipeline,
    start: Instant,
    before: Vec<(&'static str, f64)>,
}

impl<'a> Processors<'a> {
    fn start(pipeline: &'a Pipeline) -> anyhow::Result<Self> {
        Ok(Self {
            pipeline,
            start: Instant::now(),
            before: Self::now(pipeline)?,
        })
    }

    /// How many processors each part kept busy, on average.
    fn end(&self) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let elapsed = self.start.elapsed().as_secs_f64();
        let now = Self::now(self.pipeline)?;
        let used = now.into_iter().zip(&self.before);
        Ok(used
            .map(|((name, after), (_, before))| (name, (after - before) / elapsed))
            .collect())
    }

    fn now(pipeline: &Pipeline) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let of = |process| usage::cpu_seconds(&*running(process)?);
        let postgres = pipeline.postgres()?.process().context("no postgres")?;
        Ok(vec![
            ("relay", of(pipeline.users_relay.process())?),
            ("user-api", of(pipeline.user_api.process())?),
            ("view-builder", of(pipeline.view_builder.process())?),
            ("PostgreSQL", usage::cpu_seconds_with_children(&postgres)?),
            ("Kafka", of(pipeline.kafka()?.process())?),
            ("load", usage::own_cpu_seconds()?),
        ])
    }
}

impl Run {
    fn row(&self) -> Vec<String> {
        let tenths = |value: f64| format!("{value:.1}");
        let mut cells = vec![
            self.way.to_owned(),
            thousands(f64::from(self.rate)),
            thousands(self.achieved),
            tenths(quantile_ms(&self.latencies_us, 0.5)),
            tenths(quantile_ms(&self.latencies_us, 0.99)),
            tenths(self.latencies_us.max() as f64 / 1000.0),
        ];
        cells.extend(self.cores.iter().map(|(_, cores)| format!("{cores:.2}")));
        cells.extend(self.memory_mb.map(tenths));
        cells
    }

    fn json(&self) -> Value {
        let cores = self
            .cores
            .iter()
            .map(|(name, cores)| ((*name).to_owned(), json!(cores)));
        json!({
            "from_commit_to": self.way,
            "rate": self.rate,
            "achieved_rate": self.achieved,
            "changes": self.latencies_us.len(),
            "p50_ms": quantile_ms(&self.latencies_us, 0.5),
            "p99_ms": quantile_ms(&self.latencies_us, 0.99),
            "max_ms": self.latencies_us.max() as f64 / 1000.0,
            "cores": Value::Object(cores.collect()),
            "relay_memory_mb": self.memory_mb[0],
            "view_builder_memory_mb": self.memory_mb[1],
        })
    }
}
