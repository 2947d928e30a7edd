//! Whether anything but transaction markers stands between a position and the end of its partition.
//!
//! The relay publishes in transactions, so that a partition ends with a marker: it has an offset and no record, and no position ever passes it
//! before the next record comes. What tells a marker from an event that is not applied is the topic alone. The group's offset in `view_positions`
//! does not: a builder may commit it for the end of a partition while events before that end wait. It takes the end from statistics of up to some seconds
//! ago, which say that everything was handed over. Where a batch is given up in between (Postgres refuses an event, an operator changes dead
//! letters, the partition was lost and comes back), what was handed over is dropped and read again from the position, and until that has
//! happened nothing waits, so that the partition looks settled at its end. And the offset stays that high when the builder dies then.
//!
//! What lies between two offsets below the last stable one never changes but by compaction and retention, which only take away. So one look that
//! finds nothing holds for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kafka_client::{Next, TopicReader};
use rdkafka::consumer::Consumer as _;

use crate::kafka::servers::Kafka;
use crate::kafka::{self, Observer};
use crate::process::failure::Failure;

/// Time that Kafka has to tell what follows the positions.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long one poll waits for a record.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);

/// Topic and partition.
pub(super) type Place = (String, i32);

/// What was found out about the tails so far.
pub(crate) struct Tails {
    observer: Arc<Observer>,
    looked: BTreeMap<Place, Looked>,
}

/// What follows a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Looked {
    position: i64,
    end: i64,
    /// No record up to the end.
    is_empty: bool,
}

impl Looked {
    /// Whether it tells what is between this position and this end, and then whether that is nothing.
    fn tells(self, position: i64, end: i64) -> Option<bool> {
        match self.is_empty {
            true => (self.position <= position && end <= self.end).then_some(true),
            false => (self.position == position && self.end <= end).then_some(false),
        }
    }
}

impl Tails {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// A property of Kafka's is unknown or has a wrong value.
    pub(crate) fn new(servers: &Kafka) -> Result<Self, Failure> {
        // A position before the topic's beginning has nothing to be read from, and must not be taken for one at the end.
        let wanted = [("enable.partition.eof", "true"), ("auto.offset.reset", "error")];
        let observer = kafka::observer_with(servers, &wanted)?;
        Ok(Self {
            observer: Arc::new(observer),
            looked: BTreeMap::new(),
        })
    }

    /// The positions, moved to the ends where nothing is between the two. Looks at Kafka for those that it has not looked at yet.
    pub(super) async fn passed(
        &mut self,
        ends: &BTreeMap<Place, i64>,
        mut positions: BTreeMap<Place, i64>,
    ) -> anyhow::Result<BTreeMap<Place, i64>> {
        let behind: Vec<(Place, i64, i64)> = ends
            .iter()
            .filter_map(|(place, end)| {
                let position = *positions.get(place)?;
                let is_known = self.tell(place, position, *end).is_some();
                (position < *end && !is_known).then(|| (place.clone(), position, *end))
            })
            .collect();
        if !behind.is_empty() {
            let observer = Arc::clone(&self.observer);
            let found = tokio::task::spawn_blocking(move || look(&observer, behind)).await;
            self.looked.extend(found.context("asking kafka failed")??);
        }
        for (place, position) in &mut positions {
            if let Some(end) = ends.get(place)
                && self.tell(place, *position, *end) == Some(true)
            {
                *position = (*position).max(*end);
            }
        }
        Ok(positions)
    }

    fn tell(&self, place: &Place, position: i64, end: i64) -> Option<bool> {
        self.looked.get(place)?.tells(position, end)
    }
}

/// Reads each partition from its position until a record or its end; what Kafka does not tell in time is left out. Blocks.
fn look(observer: &Observer, behind: Vec<(Place, i64, i64)>) -> anyhow::Result<BTreeMap<Place, Looked>> {
    let mut by_topic: BTreeMap<String, BTreeMap<i32, (i64, i64)>> = BTreeMap::new();
    for ((topic, partition), position, end) in behind {
        by_topic.entry(topic).or_default().insert(partition, (position, end));
    }
    let mut found = BTreeMap::new();
    for (topic, mut open) in by_topic {
        let from: Vec<(i32, i64)> = open
            .iter()
            .map(|(partition, (position, _))| (*partition, *position))
            .collect();
        let reader = TopicReader::start(observer, &topic, &from)?;
        let began = Instant::now();
        while !open.is_empty() && began.elapsed() < LOOK_MAX {
            let (partition, offset, is_end) = match reader.next(POLL_TIMEOUT) {
                Ok(Next::Record(record)) => (record.partition(), record.offset(), false),
                Ok(Next::End { partition, offset }) => (partition, offset, true),
                Ok(Next::Nothing) => continue,
                Err(err) => {
                    tracing::debug!(error = %err, "kafka does not tell what follows a position");
                    continue;
                }
            };
            let Some((position, end)) = open.get(&partition).copied() else {
                // The partition has told already, and Kafka still sends what lies behind.
                continue;
            };
            if offset < end && is_end {
                // An open transaction, or a broker that lags behind.
                continue;
            }
            let is_empty = offset >= end;
            let looked = Looked {
                position,
                end,
                is_empty,
            };
            found.insert((topic.clone(), partition), looked);
            open.remove(&partition);
        }
        drop(reader);
        observer.unassign().context("partitions cannot be given back")?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::Looked;

    #[test]
    fn nothing_holds_for_what_lies_within_and_something_for_what_reaches_further() {
        let (position, end) = (10, 20);
        let empty = Looked {
            position,
            end,
            is_empty: true,
        };
        assert_eq!((empty.tells(10, 20), empty.tells(12, 18)), (Some(true), Some(true)));
        assert_eq!((empty.tells(9, 20), empty.tells(10, 21)), (None, None));
        let full = Looked {
            is_empty: false,
            ..empty
        };
        assert_eq!((full.tells(10, 20), full.tells(10, 30)), (Some(false), Some(false)));
        assert_eq!((full.tells(11, 20), full.tells(10, 19)), (None, None));
    }
}
