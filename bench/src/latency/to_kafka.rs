//! From a commit of an outbox row to a Kafka consumer.

use std::time::Duration;

use anyhow::ensure;
use hdrhistogram::Histogram;
use stack::pipeline::USERS_DATABASE;
use stack::{Pipeline, postgres};
use tokio_postgres::{Client, Statement};

use super::WARM_UP_SECONDS;
use super::parts_in_use::Stopwatch;
use super::run::Run;
use crate::arguments::Latency;
use crate::pace;
use crate::statistics::{latency_histogram, record_latency};
use crate::topic::{Arrival, Topic, now_us};

/// An aggregate type of its own, since the view-builder would try to apply a user's event.
const AGGREGATE: &str = "bench";
pub(super) const TOPIC: &str = "bench-events";
/// $1 the key. The payload is as large as a user's event with a long text.
const INSERT: &str = "insert into outbox (aggregatetype, aggregateid, type, payload)
    values ('bench', $1, 'BENCHED', jsonb_build_object('eventType', 'BENCHED', 'userId', $1::text,
        'note', repeat(md5(random()::text), 11)))";

/// A connection and the statement that it has prepared.
type Inserter = (Client, Statement);

/// # Errors
/// A part failed, or a row did not arrive.
pub(super) async fn measure(pipeline: &Pipeline, options: &Latency, rate: u32) -> anyhow::Result<Run> {
    let mut inserters = connect_inserters(pipeline, options.connections).await?;
    let insert = async |(client, statement): &mut Inserter, index: u64| {
        client.execute(&*statement, &[&index.to_string()]).await?;
        anyhow::Ok(())
    };
    let topic = Topic::new(pipeline.bootstrap_servers(), TOPIC);
    let consumer = topic.receive()?;
    pace::change_at_rate(&mut inserters, rate, WARM_UP_SECONDS, insert).await?;
    let stopwatch = Stopwatch::start(pipeline)?;
    let begin_us = now_us();
    let achieved_rate = pace::change_at_rate(&mut inserters, rate, options.seconds, insert).await?;
    let parts = stopwatch.end()?;
    // The relay is never so far behind that this is not enough. If it were, too few rows would be counted below.
    tokio::time::sleep(Duration::from_secs(2)).await;
    topic.wait_until_visible().await?;
    let latencies_us = latencies_since(begin_us, &consumer.end()?)?;
    let made = u64::from(rate) * u64::from(options.seconds);
    ensure!(
        latencies_us.len() == made,
        "{made} rows were committed, {} of them were received as {AGGREGATE} events",
        latencies_us.len()
    );
    Ok(Run {
        way: "Kafka",
        rate,
        achieved_rate,
        latencies_us,
        parts,
    })
}

async fn connect_inserters(pipeline: &Pipeline, connections: u32) -> anyhow::Result<Vec<Inserter>> {
    let url = pipeline.database_url(USERS_DATABASE)?;
    let mut inserters = Vec::new();
    for _ in 0..connections {
        let client = postgres::connect(&url).await?;
        let statement = client.prepare(INSERT).await?;
        inserters.push((client, statement));
    }
    Ok(inserters)
}

/// The latencies of the records whose rows were committed since `begin_us`.
fn latencies_since(begin_us: i64, arrivals: &[Arrival]) -> anyhow::Result<Histogram<u64>> {
    let mut latencies_us = latency_histogram()?;
    for arrival in arrivals {
        if arrival.committed_us >= begin_us {
            record_latency(&mut latencies_us, arrival.committed_us, arrival.received_us);
        }
    }
    Ok(latencies_us)
}
