//! `view-builder accept`: an operator says that a partition shall go on although its topic has lost events, or that a notice has been read.
//!
//! One transaction, under the lock of the position:
//! 1. it sets the position to where the partition goes on, and raises the epoch. So the builder that holds the partition takes it over
//!    anew within some seconds;
//! 2. it stores how far the view has had the events that the topic still has (`highest_offset`);
//! 3. it adapts the pause positions of paused views;
//! 4. it puts aside the dead letters from the new position on, since the topic may now have other records at their offsets.

mod change;
mod decision;

use anyhow::Context as _;
use tokio_postgres::{Client, Row};

use self::change::Change;
use self::decision::{Decision, decide};
use crate::continuity::offsets::{Offsets, offsets};
use crate::continuity::topic_ids::TopicIds;
use crate::contract::place::TopicPartition;
use crate::kafka;
use crate::postgres::connection::{connect_for_command, unanswered};
use crate::process::failure::Failure;
use crate::settings::AcceptConfig;

/// A partition's position, read under the lock of its row.
#[derive(Clone, Debug, Default)]
struct LockedPosition {
    next_offset: Option<i64>,
    highest_offset: Option<i64>,
    ids: TopicIds,
    is_paused: bool,
}

impl LockedPosition {
    async fn lock(client: &Client, place: &TopicPartition) -> Result<Self, Failure> {
        let row = client
            .query_opt(
                "select next_offset, highest_offset, topic_id, former_topic_ids, paused is not null as is_paused from view_positions
                 where topic = $1 and partition = $2 for update",
                &[&&*place.topic, &place.partition],
            )
            .await
            .map_err(unanswered)?;
        row.as_ref().map(Self::from_row).ok_or_else(|| {
            Failure::Setting(format!(
                "no builder has had {place} yet: view-builder status lists the partitions"
            ))
        })
    }

    fn from_row(row: &Row) -> Self {
        Self {
            next_offset: row.get("next_offset"),
            highest_offset: row.get("highest_offset"),
            ids: TopicIds {
                now: row.get("topic_id"),
                former: row.get("former_topic_ids"),
            },
            is_paused: row.get("is_paused"),
        }
    }

    /// The highest position that the partition has ever had in this topic. Offsets are those of the topic of `ids.now`.
    fn reached(&self) -> Option<i64> {
        self.next_offset.max(self.highest_offset)
    }
}

/// Lets the partition go on from where the operator says, or deletes its notices, which the operator has read. Returns what was done, as a text.
///
/// # Errors
/// Nothing is lost; the offset is not in the topic; Postgres or Kafka does not answer. Nothing is changed then.
pub async fn accept(config: &AcceptConfig) -> Result<String, Failure> {
    let place = &config.partition;
    let offsets = ask_kafka(config).await?;
    let client = connect_for_command(&config.servers.database.0).await?;
    client.batch_execute("begin").await.map_err(unanswered)?;
    let held = LockedPosition::lock(&client, place).await?;
    let answer = match decide(place, &held, offsets.at(place), config.from)? {
        Decision::DeleteNotices => delete_notices(&client, place).await?,
        Decision::NothingIsLost => format!("{place}: nothing is lost any more, its builder goes on within 10 s\n"),
        Decision::GoOnFrom {
            lost,
            next_offset,
            topic_id,
        } => {
            let change = Change {
                client: &client,
                place,
                held: &held,
                lost,
                next_offset,
            };
            change.write(topic_id.as_deref()).await.map_err(unanswered)?;
            tracing::warn!(%place, position.before = held.next_offset, position.now = next_offset, reason = lost.name(),
                "an operator accepts that continuity is lost");
            format!("{place} goes on from offset {next_offset}\n")
        }
    };
    client.batch_execute("commit").await.map_err(unanswered)?;
    Ok(answer)
}

async fn ask_kafka(config: &AcceptConfig) -> Result<Offsets, Failure> {
    let place = &config.partition;
    let observer = kafka::observer(&config.servers.kafka)?;
    let places = [place.clone()];
    let answer = tokio::task::spawn_blocking(move || offsets(&observer, &places))
        .await
        .context("asking kafka failed")?
        .with_context(|| format!("kafka does not tell of {place}"))?;
    Ok(answer)
}

async fn delete_notices(client: &Client, place: &TopicPartition) -> Result<String, Failure> {
    let rows = client
        .query(
            "delete from view_notices where topic = $1 and partition = $2 returning kind",
            &[&&*place.topic, &place.partition],
        )
        .await
        .map_err(unanswered)?;
    if rows.is_empty() {
        return Err(Failure::Setting(format!("{place} has nothing to accept")));
    }
    let kinds: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(format!("{place}: {} is known\n", kinds.join(", ")))
}
