//! From an assignment by the group to offsets to read from: claim in Postgres, look at Kafka, decide.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::assignment::Start;
use crate::batch::TopicPartition;
use crate::claim::Claim;
use crate::database::Database;
use crate::failure::Failure;
use crate::faults;
use crate::kafka::{GroupConsumer, REQUEST_TIMEOUT};
use crate::start::{Known, start};

/// Pause before Kafka is asked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Takes over the partitions of the assignment with this generation; none when it has been revoked meanwhile. Waits for as
/// long as Postgres or Kafka is away.
///
/// # Errors
/// Continuity of a partition is lost.
pub async fn take_over(
    database: &mut Database,
    consumer: &Arc<GroupConsumer>,
    generation: u64,
    places: &[TopicPartition],
    owner: &str,
) -> Result<Option<Vec<Start>>, Failure> {
    let claims = database.claim(places, owner).await;
    let bounds = loop {
        if consumer.context().generation() != generation {
            return Ok(None);
        }
        let (asking, asked) = (consumer.clone(), places.to_vec());
        match tokio::task::spawn_blocking(move || bounds(&asking, &asked)).await {
            Ok(Ok(bounds)) => break bounds,
            Ok(Err(err)) => {
                tracing::debug!(error = %err, "kafka does not tell where the partitions begin and end")
            }
            Err(err) => tracing::error!(error = %err, "asking kafka failed"),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    };
    faults::hold("takeover.asked").await;
    let mut starts = Vec::with_capacity(claims.len());
    let mut changed = Vec::new();
    for claim in claims {
        let Some(known) = bounds.get(&claim.place).map(|bounds| bounds.known(&claim)) else {
            continue;
        };
        let next_offset = start(known).map_err(|lost| Failure::Continuity {
            place: claim.place.clone(),
            lost,
        })?;
        let before = claim.next_offset;
        let start = claim.starting_at(next_offset);
        if before != Some(next_offset) {
            tracing::info!(place = %start.place, position.before = before, position.now = next_offset,
                "the partition begins at another offset than its position");
            changed.push(start.clone());
        }
        starts.push(start);
    }
    if !changed.is_empty() {
        faults::hold("begin.before").await;
        database.begin_at(&changed).await;
        faults::hold("begin.after").await;
    }
    Ok(Some(starts))
}

/// What Kafka tells of a partition.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    beginning: i64,
    end: i64,
    group: Option<i64>,
}

impl Bounds {
    fn known(&self, claim: &Claim) -> Known {
        Known {
            position: claim.next_offset,
            group_recorded: claim.group_offset,
            group: self.group,
            beginning: self.beginning,
            end: self.end,
        }
    }
}

fn bounds(consumer: &GroupConsumer, places: &[TopicPartition]) -> KafkaResult<HashMap<TopicPartition, Bounds>> {
    let mut asked = TopicPartitionList::new();
    for place in places {
        asked.add_partition(&place.topic, place.partition);
    }
    let committed = consumer.committed_offsets(asked, REQUEST_TIMEOUT)?;
    let mut bounds = HashMap::new();
    for place in places {
        let (beginning, end) = consumer.fetch_watermarks(&place.topic, place.partition, REQUEST_TIMEOUT)?;
        let group = committed
            .find_partition(&place.topic, place.partition)
            .and_then(|element| match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            });
        bounds.insert(place.clone(), Bounds { beginning, end, group });
    }
    Ok(bounds)
}
