//! Sets a group back, so that it reads events again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, anyhow};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_postgres::Client;

use super::start::{ReplayRange, find_ranges};
use crate::kafka;
use crate::postgres::connection::unanswered;
use crate::postgres::connection::{self, connect_for_command};
use crate::process::failure::Failure;
use crate::settings::ReplayConfig;

/// Asks the operator, and then sets the group back. Returns a table of the new offsets, or `None` if the operator said no.
///
/// The views' own group is set back in Postgres, where its positions are, while its builders run. Any other group is set back in
/// Kafka, which refuses that while the group has members.
///
/// # Errors
/// There is no such topic or partition; the group is in use; Postgres or Kafka does not answer. Nothing is changed then.
#[expect(
    clippy::print_stderr,
    reason = "the warning is for a person at the terminal, and standard output is for the result"
)]
pub async fn reset_group(config: &ReplayConfig, group: &str) -> Result<Option<String>, Failure> {
    let observer = kafka::observer(&config.servers)?;
    let ReplayConfig {
        topic, partition, from, ..
    } = config.clone();
    let ranges = tokio::task::spawn_blocking(move || find_ranges(&observer, &topic, partition, from))
        .await
        .context("asking kafka failed")??;
    let records_max: i64 = ranges.values().map(|range| range.end - range.start).sum();
    eprintln!(
        "!!! WARNING !!!\nGroup '{group}' will read topic '{}' again: {} partitions, at most {records_max} records.",
        config.topic,
        ranges.len()
    );
    if !config.yes && !ask_to_confirm("Are you sure you want to continue?")? {
        return Ok(None);
    }
    if *group == *config.servers.group_id {
        let url = config.database_url.as_ref().ok_or_else(|| {
            Failure::Setting(format!(
                "DATABASE_URL is needed: the positions of group {group} are in the views' database"
            ))
        })?;
        let mut client = connect_for_command(&connection::target_of("DATABASE_URL", url)?).await?;
        set_positions_back(&mut client, &config.topic, &ranges).await.map(Some)
    } else {
        let (config, group) = (config.clone(), group.to_owned());
        let table = tokio::task::spawn_blocking(move || commit_offsets_of_group(&config, &group, &ranges));
        Ok(Some(table.await.context("asking kafka failed")??))
    }
}

/// Asks a question and reads one line from the terminal or from a pipe. Returns whether the answer is `y`.
///
/// # Errors
/// Standard input is no terminal and has ended, so nobody can answer.
#[expect(
    clippy::print_stderr,
    reason = "the question is for a person at the terminal, and standard output is for the result"
)]
pub(crate) fn ask_to_confirm(question: &str) -> Result<bool, Failure> {
    eprint!("{question} (y/N) ");
    std::io::stderr().flush().map_err(anyhow::Error::from)?;
    let mut line = String::new();
    let bytes_read = std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(anyhow::Error::from)?;
    if bytes_read == 0 && !std::io::stdin().is_terminal() {
        return Err(Failure::Setting("nobody answers: confirm with --yes".to_owned()));
    }
    Ok(matches!(line.trim(), "y" | "Y"))
}

/// Sets the positions back and raises their epochs, so that the builders claim them anew. The offsets that the group has committed to Kafka stay as
/// they are. If an operator later sets those back by Kafka's tools, the builders can still notice that.
async fn set_positions_back(
    client: &mut Client,
    topic: &str,
    ranges: &BTreeMap<i32, ReplayRange>,
) -> Result<String, Failure> {
    let partitions: Vec<i32> = ranges.keys().copied().collect();
    let offsets: Vec<i64> = ranges.values().map(|range| range.start).collect();
    let transaction = client.transaction().await.map_err(unanswered)?;
    transaction
        .execute(
            "select from view_positions
             where topic = $1 and partition = any($2::integer[]) order by partition for update",
            &[&topic, &partitions],
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
            &[&topic, &partitions, &offsets],
        )
        .await
        .map_err(unanswered)?;
    transaction.commit().await.map_err(unanswered)?;
    if rows.is_empty() {
        return Err(anyhow!("nothing is set back: no position of topic {topic} is behind the offset asked for").into());
    }
    let mut new_offsets: Vec<(i32, i64)> = rows
        .iter()
        .map(|row| (row.get("partition"), row.get("next_offset")))
        .collect();
    new_offsets.sort_unstable();
    tracing::warn!(topic, partitions = new_offsets.len(), "an operator sets positions back");
    Ok(format_table(topic, &new_offsets))
}

/// A table of each partition's new offset. `new_offsets`: partition and offset.
fn format_table(topic: &str, new_offsets: &[(i32, i64)]) -> String {
    let mut table = format!("{:<24} {:>9} {:>14}\n", "TOPIC", "PARTITION", "NEW-OFFSET");
    for (partition, offset) in new_offsets {
        let _ = writeln!(table, "{topic:<24} {partition:>9} {offset:>14}");
    }
    table
}

/// Commits the offsets to Kafka for a group that has no members. Blocks.
fn commit_offsets_of_group(
    config: &ReplayConfig,
    group: &str,
    ranges: &BTreeMap<i32, ReplayRange>,
) -> anyhow::Result<String> {
    let consumer = kafka::observer_of_group(&config.servers, group, &[])?;
    let mut offsets = TopicPartitionList::new();
    for (partition, range) in ranges {
        offsets.add_partition_offset(&config.topic, *partition, Offset::Offset(range.start))?;
    }
    consumer.commit(&offsets, CommitMode::Sync).with_context(|| {
        format!("group '{group}' is not set back: stop its members first, and wait until their session has timed out")
    })?;
    let new_offsets: Vec<(i32, i64)> = ranges
        .iter()
        .map(|(partition, range)| (*partition, range.start))
        .collect();
    Ok(format_table(&config.topic, &new_offsets))
}
