//! How far the live view has ever been in each partition that there is.
//!
//! `view_positions` keeps rows of partitions that are gone, where a topic was made anew with fewer. Nobody has their events, so they have no part
//! in a generation. A partition that is there and has events must never be taken for gone: so Kafka is asked wherever a row is beyond the
//! partitions that were told last, and what a lagging broker tells is refused.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::trouble::Trouble;
use crate::continuity::offsets;
use crate::continuity::topic_ids::TopicIds;
use crate::contract::place::TopicPartition;
use crate::contract::place::place;
use crate::kafka::Observer;
use crate::process::faults::{self, Bug};

/// Where the partitions have been. Greatest passes over nulls.
const REACHED: &str = "
    select topic, partition, coalesce(greatest(next_offset, highest_offset), 0) as furthest, coalesce(next_offset, 0) as position,
        breaks, topic_id, former_topic_ids
    from view_positions where topic = any($1)";

/// What the live view has reached of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) limit: i64,
    /// How often the partition's offsets have lost their meaning.
    pub(super) breaks: i64,
    ids: TopicIds,
}

/// Which partitions there are.
#[derive(Default)]
pub(super) struct Existing {
    /// How many each topic had when that was asked last.
    counts: BTreeMap<String, i32>,
    /// Those that were found gone, as their rows were then. A builder that begins such a partition again changes its row before anything else.
    gone: BTreeMap<TopicPartition, Reached>,
}

impl Existing {
    /// What the live view has reached, as of now, of the partitions that there are.
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
        let all = rows.iter().map(|row| {
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
        let mut all: BTreeMap<TopicPartition, Reached> = all.collect();
        if all.iter().any(|(place, reached)| self.is_unknown(place, reached)) {
            self.ask(consumers, &all)?;
        }
        all.retain(|place, _| !self.gone.contains_key(place));
        Ok(all)
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

    fn ask(
        &mut self,
        consumers: &BTreeMap<String, Observer>,
        all: &BTreeMap<TopicPartition, Reached>,
    ) -> anyhow::Result<()> {
        let Some(asking) = consumers.values().next() else {
            return Ok(());
        };
        let facts = tokio::task::block_in_place(|| kafka_client::facts_by(asking, consumers.keys()))?;
        self.gone.clear();
        for (place, reached) in all {
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

/// The column of [`REACHED`] up to which a generation is filled. A position that was set back is lower, and a fill up to it, as the planted bug does
/// it, would lack what the live view has.
fn limit_column() -> &'static str {
    if faults::is_planted(Bug::FillToPosition) {
        "position"
    } else {
        "furthest"
    }
}
