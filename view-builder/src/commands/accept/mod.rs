//! `view-builder accept`: an operator says that a partition goes on although its topic has lost events, or that a notice is known.
//!
//! One transaction, under the lock of the position:
//! 1. it sets the position to where the partition goes on, and counts the epoch up. So the builder that holds the partition takes it over
//!    anew within some seconds;
//! 2. it writes down up to where the view has had the topic as it is now;
//! 3. it adapts the pause positions of paused views;
//! 4. it puts the dead letters from there on aside, since their offsets may be those of other records now.

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

/// A position, as it stands under its lock.
#[derive(Clone, Debug, Default)]
struct Held {
    next_offset: Option<i64>,
    highest_offset: Option<i64>,
    ids: TopicIds,
    is_paused: bool,
}

impl Held {
    async fn lock(client: &Client, place: &TopicPartition) -> Result<Self, Failure> {
        let row = client
            .query_opt(
                "select next_offset, highest_offset, topic_id, former_topic_ids, paused is not null as is_paused from view_positions
                 where topic = $1 and partition = $2 for update",
                &[&&*place.topic, &place.partition],
            )
            .await
            .map_err(unanswered)?;
        row.as_ref().map(Self::of).ok_or_else(|| {
            Failure::Setting(format!(
                "no builder has had {place} yet: view-builder status lists the partitions"
            ))
        })
    }

    fn of(row: &Row) -> Self {
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

    /// The highest position that there was, in the topic that it is of.
    fn reached(&self) -> Option<i64> {
        self.next_offset.max(self.highest_offset)
    }
}

/// Has the partition go on from where the operator says, or takes its notices as known. Tells what was done.
///
/// # Errors
/// Nothing is lost; the offset is not in the topic; Postgres or Kafka does not answer. Nothing is changed then.
pub async fn accept(config: &AcceptConfig) -> Result<String, Failure> {
    let place = &config.partition;
    let told = ask_kafka(config).await?;
    let client = connect_for_command(&config.servers.database.0).await?;
    client.batch_execute("begin").await.map_err(unanswered)?;
    let held = Held::lock(&client, place).await?;
    let said = match decide(place, &held, told.at(place), config.from)? {
        Decision::TakeNote => take_note(&client, place).await?,
        Decision::NothingIsLost => format!("{place}: nothing is lost any more, its builder goes on within 10 s\n"),
        Decision::GoOn {
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
    Ok(said)
}

async fn ask_kafka(config: &AcceptConfig) -> Result<Offsets, Failure> {
    let place = &config.partition;
    let observer = kafka::observer(&config.servers.kafka)?;
    let places = [place.clone()];
    let told = tokio::task::spawn_blocking(move || offsets(&observer, &places))
        .await
        .context("asking kafka failed")?
        .with_context(|| format!("kafka does not tell of {place}"))?;
    Ok(told)
}

async fn take_note(client: &Client, place: &TopicPartition) -> Result<String, Failure> {
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
