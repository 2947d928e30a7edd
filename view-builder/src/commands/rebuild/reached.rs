//! How far the live view has ever been in each partition that exists.
//!
//! When a topic was made anew with fewer partitions, `view_positions` keeps the rows of those that are gone. Nobody has their events, so they have
//! no part in a generation. But a partition that exists must never count as gone. So Kafka is asked again if a row has a higher partition number
//! than Kafka's last answer, and an answer of a lagging broker is refused.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::trouble::Trouble;
use crate::continuity::offsets;
use crate::continuity::topic_ids::TopicIds;
use crate::contract::place::TopicPartition;
use crate::contract::place::place;
use crate::kafka::Observer;
use crate::process::faults::{self, Bug};

/// How far the partitions have been. The function `greatest` ignores nulls.
const REACHED: &str = "
    select topic, partition, coalesce(greatest(next_offset, highest_offset), 0) as furthest, coalesce(next_offset, 0) as position,
        breaks, topic_id, former_topic_ids
    from view_positions where topic = any($1)";

/// How far the live view has been in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) limit: i64,
    /// How often the partition's offsets have lost their meaning.
    pub(super) breaks: i64,
    ids: TopicIds,
}

/// What Kafka has told of which partitions exist.
#[derive(Default)]
pub(super) struct Existing {
    /// How many partitions each topic had at the last question.
    counts: BTreeMap<String, i32>,
    /// The partitions that were found gone, with their rows at that time. If a builder begins such a partition again, it first changes the row.
    gone: BTreeMap<TopicPartition, Reached>,
}

impl Existing {
    /// Reads how far the live view has been in each partition that exists.
    ///
    /// # Errors
    /// Postgres does not answer; Kafka does not tell which partitions there are.
    pub(super) async fn reached(
        &mut self,
        client: &Client,
        consumers: &BTreeMap<String, Observer>,
        topics: &[String],
    ) -> Result<BTreeMap<TopicPartition, Reached>, Trouble> {
        let rows = client.query(REACHED, &[&topics]).await?;
        let limit = limit_column();
        let reached_by_place = rows.iter().map(|row| {
            let reached = Reached {
                limit: row.get(limit),
                breaks: row.get("breaks"),
                ids: TopicIds {
                    now: row.get("topic_id"),
                    former: row.get("former_topic_ids"),
                },
            };
            (place(row.get("topic"), row.get("partition")), reached)
        });
        let mut reached_by_place: BTreeMap<TopicPartition, Reached> = reached_by_place.collect();
        if reached_by_place
            .iter()
            .any(|(place, reached)| self.is_unknown(place, reached))
        {
            self.ask_kafka(consumers, &reached_by_place)?;
        }
        reached_by_place.retain(|place, _| !self.gone.contains_key(place));
        Ok(reached_by_place)
    }

    /// Whether the partition was found gone.
    pub(super) fn is_gone(&self, place: &TopicPartition) -> bool {
        self.gone.contains_key(place)
    }

    fn is_unknown(&self, place: &TopicPartition, reached: &Reached) -> bool {
        match self.gone.get(place) {
            Some(as_it_was) => as_it_was != reached,
            None => self
                .counts
                .get(&*place.topic)
                .is_none_or(|count| place.partition >= *count),
        }
    }

    fn ask_kafka(
        &mut self,
        consumers: &BTreeMap<String, Observer>,
        reached_by_place: &BTreeMap<TopicPartition, Reached>,
    ) -> anyhow::Result<()> {
        let Some(asking) = consumers.values().next() else {
            return Ok(());
        };
        let facts = tokio::task::block_in_place(|| kafka_client::facts_by(asking, consumers.keys()))?;
        self.gone.clear();
        for (place, reached) in reached_by_place {
            if let Some(partitions) = offsets::partitions_without(place, &reached.ids, &facts)? {
                tracing::info!(%place, partitions, "the partition is gone: the topic has fewer now");
                self.gone.insert(place.clone(), reached.clone());
            }
        }
        let counts = facts.into_iter().map(|(topic, facts)| (topic, facts.partitions));
        self.counts = counts.collect();
        Ok(())
    }
}

/// The column of [`REACHED`] up to which a generation is filled. The planted bug takes the position instead. If a replay has set that back, the
/// generation lacks events that the live view has.
fn limit_column() -> &'static str {
    if faults::is_planted(Bug::FillToPosition) {
        "position"
    } else {
        "furthest"
    }
}
