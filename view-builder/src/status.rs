//! `view-builder status` and `view-builder views`.

use std::fmt::Write as _;

use anyhow::Context as _;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::config::{StatusConfig, ViewsConfig};
use crate::failure::Failure;
use crate::kafka::{self, REQUEST_TIMEOUT};
use crate::{database, refusal, view};

/// The positions with their topics' ends as a table, and whether there are dead letters.
///
/// # Errors
/// Postgres or Kafka does not answer; no builder has run yet.
pub async fn status(config: &StatusConfig) -> Result<(String, bool), Failure> {
    let settings = database::config(&config.servers.database_url)?;
    let reason = |err: &tokio_postgres::Error| anyhow::anyhow!("postgres does not answer: {}", refusal::line(err));
    let client = database::connect(&settings).await.map_err(|err| reason(&err))?;
    let rows = client
        .query(
            "select topic, partition, next_offset, coalesce(greatest(next_offset, group_offset), 0), epoch, owner,
                (select count(*) from view_dead_letters as letter
                 where letter.topic = held.topic and letter.partition = held.partition and discarded_at is null)
             from view_positions as held order by topic, partition",
            &[],
        )
        .await
        .map_err(|err| anyhow::anyhow!("no positions, has a builder run yet? {}", refusal::line(&err)))?;
    let observer = kafka::observer(&config.servers.kafka)?;
    let places: Vec<(String, i32)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let ends = tokio::task::spawn_blocking(move || ends(&observer, &places))
        .await
        .context("asking kafka failed")??;
    let mut table = format!(
        "{:<24} {:>9} {:>14} {:>14} {:>10} {:>12} {:>6}  {}\n",
        "topic", "partition", "position", "end", "lag", "dead letters", "epoch", "owner"
    );
    let (mut lag_sum, mut dead_sum) = (0, 0);
    for (row, end) in rows.iter().zip(ends) {
        let position: Option<i64> = row.get(2);
        let lag = (end - row.get::<_, i64>(3)).max(0);
        let dead: i64 = row.get(6);
        lag_sum += lag;
        dead_sum += dead;
        let _ = writeln!(
            table,
            "{:<24} {:>9} {:>14} {end:>14} {lag:>10} {dead:>12} {:>6}  {}",
            row.get::<_, &str>(0),
            row.get::<_, i32>(1),
            position.map_or_else(|| "beginning".to_owned(), |position| position.to_string()),
            row.get::<_, i64>(4),
            row.get::<_, &str>(5),
        );
    }
    let _ = writeln!(table, "lag in all: {lag_sum}, dead letters: {dead_sum}");
    Ok((table, dead_sum > 0))
}

fn ends(observer: &BaseConsumer, places: &[(String, i32)]) -> anyhow::Result<Vec<i64>> {
    places
        .iter()
        .map(|(topic, partition)| {
            let (_, end) = observer
                .fetch_watermarks(topic, *partition, REQUEST_TIMEOUT)
                .with_context(|| format!("kafka does not tell the end of {topic}/{partition}"))?;
            Ok(end)
        })
        .collect()
}

/// The views in the directory: name, what it is, topics and tables.
///
/// # Errors
/// A view's folder is incomplete.
pub fn views(config: &ViewsConfig) -> Result<String, Failure> {
    let mut text = String::new();
    for view in view::load_all(&config.views)? {
        let _ = writeln!(
            text,
            "{}: {}\n  topics: {}\n  tables: {}",
            view.name,
            view.summary,
            view.topics.join(", "),
            view.tables().join(", ")
        );
    }
    Ok(text)
}
