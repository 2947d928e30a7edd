//! Having a group read events again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, anyhow};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_postgres::Client;

use super::start::{Bounds, bounds};
use crate::kafka;
use crate::postgres::connection::unanswered;
use crate::postgres::connection::{self, connect_for_command};
use crate::process::failure::Failure;
use crate::settings::ReplayConfig;

/// Sets the group back after it has been confirmed, and tells to where: `None` when the answer was no.
///
/// The views' own group is set back in Postgres, where its positions are, while its builders run. Any other group is set back in
/// Kafka, which refuses that while the group has members.
///
/// # Errors
/// There is no such topic or partition; the group is in use; Postgres or Kafka does not answer. Nothing is changed then.
#[expect(
    clippy::print_stderr,
    reason = "the question is for a person, and standard output is the answer's"
)]
pub async fn reset(config: &ReplayConfig, group: &str) -> Result<Option<String>, Failure> {
    let observer = kafka::observer(&config.servers)?;
    let asked = config.clone();
    let bounds = tokio::task::spawn_blocking(move || bounds(&observer, &asked.topic, asked.partition, asked.from))
        .await
        .context("asking kafka failed")??;
    let events: i64 = bounds.values().map(|bounds| bounds.end - bounds.start).sum();
    eprintln!(
        "!!! WARNING !!!\nGroup '{group}' will read topic '{}' again: {} partitions, at most {events} records.",
        config.topic,
        bounds.len()
    );
    if !config.yes && !confirmed("Are you sure you want to continue?")? {
        return Ok(None);
    }
    if *group == *config.servers.group_id {
        let url = config.database_url.as_ref().ok_or_else(|| {
            Failure::Setting(format!(
                "DATABASE_URL is needed: the positions of group {group} are in the views' database"
            ))
        })?;
        let mut client = connect_for_command(&connection::target_of("DATABASE_URL", url)?).await?;
        set_positions(&mut client, &config.topic, &bounds).await.map(Some)
    } else {
        let (config, group) = (config.clone(), group.to_owned());
        let done = tokio::task::spawn_blocking(move || set_group(&config, &group, &bounds));
        Ok(Some(done.await.context("asking kafka failed")??))
    }
}

/// One line from the terminal or from a pipe; `y` goes on.
#[expect(clippy::print_stderr, reason = "as above")]
pub(crate) fn confirmed(question: &str) -> Result<bool, Failure> {
    eprint!("{question} (y/N) ");
    std::io::stderr().flush().map_err(anyhow::Error::from)?;
    let mut line = String::new();
    let read = std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(anyhow::Error::from)?;
    if read == 0 && !std::io::stdin().is_terminal() {
        return Err(Failure::Setting("nobody answers: confirm with --yes".to_owned()));
    }
    Ok(matches!(line.trim(), "y" | "Y"))
}

/// Sets the positions back and counts their epochs up, which makes the builders claim them anew. What the group has committed to Kafka
/// is left as it is, so that a later reset there is still seen as one.
async fn set_positions(client: &mut Client, topic: &str, bounds: &BTreeMap<i32, Bounds>) -> Result<String, Failure> {
    let partition: Vec<i32> = bounds.keys().copied().collect();
    let offset: Vec<i64> = bounds.values().map(|bounds| bounds.start).collect();
    let transaction = client.transaction().await.map_err(unanswered)?;
    transaction
        .execute(
            "select from view_positions
             where topic = $1 and partition = any($2::integer[]) order by partition for update",
            &[&topic, &partition],
        )
        .await
        .map_err(unanswered)?;
    let rows = transaction
        .query(
            "update view_positions as held
             set epoch = epoch + 1, next_offset = wanted.next_offset
             from unnest($2::integer[], $3::bigint[]) as wanted(partition, next_offset)
             where held.topic = $1 and held.partition = wanted.partition and held.next_offset > wanted.next_offset
             returning held.partition, held.next_offset",
            &[&topic, &partition, &offset],
        )
        .await
        .map_err(unanswered)?;
    transaction.commit().await.map_err(unanswered)?;
    if rows.is_empty() {
        return Err(anyhow!("nothing is set back: no position of topic {topic} is behind the offset asked for").into());
    }
    let mut set: Vec<(i32, i64)> = rows
        .iter()
        .map(|row| (row.get("partition"), row.get("next_offset")))
        .collect();
    set.sort_unstable();
    tracing::warn!(topic, partitions = set.len(), "an operator sets positions back");
    Ok(table(topic, &set))
}

fn table(topic: &str, set: &[(i32, i64)]) -> String {
    let mut table = format!("{:<24} {:>9} {:>14}\n", "TOPIC", "PARTITION", "NEW-OFFSET");
    for (partition, offset) in set {
        let _ = writeln!(table, "{topic:<24} {partition:>9} {offset:>14}");
    }
    table
}

/// Commits the offsets for a group without members. Blocks.
fn set_group(config: &ReplayConfig, group: &str, bounds: &BTreeMap<i32, Bounds>) -> anyhow::Result<String> {
    let consumer = kafka::observer_of_group(&config.servers, group, &[])?;
    let mut offsets = TopicPartitionList::new();
    for (partition, bounds) in bounds {
        offsets.add_partition_offset(&config.topic, *partition, Offset::Offset(bounds.start))?;
    }
    consumer.commit(&offsets, CommitMode::Sync).with_context(|| {
        format!("group '{group}' is not set back: stop its members first, and wait until their session has timed out")
    })?;
    let set: Vec<(i32, i64)> = bounds
        .iter()
        .map(|(partition, bounds)| (*partition, bounds.start))
        .collect();
    Ok(table(&config.topic, &set))
}
