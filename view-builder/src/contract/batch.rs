//! What one transaction applies: some events of some partitions, and the positions that it moves.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use kafka_client::ReadUpTo;

use crate::contract::event::Event;
use crate::contract::letter::Letter;
use crate::contract::place::TopicPartition;

/// One partition's share of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub place: TopicPartition,
    /// The epoch under which the partition was claimed.
    pub epoch: i64,
    /// The position before the batch.
    pub from: i64,
    /// The position after the batch. It also moves past offsets without an event: tombstones, transaction markers and records that compaction has
    /// removed.
    pub to: i64,
    /// How far the log was read for this part, and the leader's epoch of the last record. `None`: not known.
    pub read: Option<ReadUpTo>,
    /// Sorted by offset. All offsets are in `from..to`.
    pub events: Vec<Event>,
    /// Records that become dead letters. Sorted by offset. All offsets are in `from..to`.
    pub letters: Vec<Letter>,
}

impl Part {
    /// When the source committed the newest event of this part, microseconds since 1970. `None`: it has no event.
    #[must_use]
    pub fn newest_event_us(&self) -> Option<i64> {
        self.events.iter().map(|event| event.committed_us).max()
    }
}

/// What one transaction applies. A partition has one part at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub parts: Vec<Part>,
}

/// An event that follows the contract, but that Postgres refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedEvent {
    pub place: TopicPartition,
    pub offset: i64,
    /// Why Postgres refuses it, without a row's values.
    pub reason: String,
}

impl Batch {
    #[must_use]
    pub fn event_count(&self) -> usize {
        self.parts.iter().map(|part| part.events.len()).sum()
    }

    /// The keys of the events that are parked behind dead letters. Each key comes once.
    #[must_use]
    pub fn parked_keys(&self) -> Vec<(TopicPartition, Bytes)> {
        let mut keys = HashSet::new();
        for part in &self.parts {
            let parked = part.letters.iter().filter(|letter| letter.reason.is_none());
            keys.extend(parked.filter_map(|letter| Some((part.place.clone(), letter.key.clone()?))));
        }
        keys.into_iter().collect()
    }

    /// The latest event of each key, for a view that reads these topics. Sorted by topic and key.
    ///
    /// The latest event is the one with the highest version. Of two with the same version it is the later one in the topic.
    #[must_use]
    pub fn latest_events(&self, topics: &[String]) -> Vec<(&TopicPartition, &Event)> {
        let mut latest: HashMap<(&str, i64), (&TopicPartition, &Event)> = HashMap::with_capacity(self.event_count());
        for part in self
            .parts
            .iter()
            .filter(|part| topics.iter().any(|topic| **topic == *part.place.topic))
        {
            for event in &part.events {
                latest
                    .entry((&part.place.topic, event.key))
                    .and_modify(|latest| {
                        if event.version >= latest.1.version {
                            *latest = (&part.place, event);
                        }
                    })
                    .or_insert((&part.place, event));
            }
        }
        let mut events: Vec<_> = latest.into_values().collect();
        events.sort_unstable_by_key(|(place, event)| (&place.topic, event.key));
        events
    }

    /// Splits the batch into two smaller ones, to be applied one after the other. This is for the search for an event that Postgres refuses.
    /// It splits between partitions as long as there are several, and then between offsets.
    ///
    /// # Errors
    /// The batch has a single event, so it is returned as it is.
    pub fn split(mut self) -> Result<(Self, Self), Self> {
        if self.parts.len() > 1 {
            let second = self.parts.split_off(self.parts.len() / 2);
            return Ok((self, Self { parts: second }));
        }
        match self.parts.pop() {
            Some(mut first) if first.events.len() > 1 => {
                let events = first.events.split_off(first.events.len() / 2);
                let first_of_second = events[0].offset;
                let letters_in_first = first.letters.partition_point(|letter| letter.offset < first_of_second);
                let second = Part {
                    place: first.place.clone(),
                    epoch: first.epoch,
                    from: first_of_second,
                    to: first.to,
                    // It says how far the whole part was read, and nothing about its first half.
                    read: first.read.take(),
                    events,
                    letters: first.letters.split_off(letters_in_first),
                };
                first.to = first_of_second;
                Ok((Self { parts: vec![first] }, Self { parts: vec![second] }))
            }
            single => Err(Self {
                parts: single.into_iter().collect(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Batch, Part, TopicPartition};
    use crate::contract::Change;
    use crate::contract::event::Event;

    fn event(offset: i64, key: i64, version: i64) -> Event {
        Event {
            offset,
            key,
            version,
            change: Change::Updated,
            entity: None,
            committed_us: 0,
            read_us: None,
        }
    }

    fn part(topic: &str, partition: i32, from: i64, to: i64, events: Vec<Event>) -> Part {
        Part {
            place: TopicPartition {
                topic: topic.into(),
                partition,
            },
            epoch: 1,
            from,
            to,
            read: None,
            events,
            letters: Vec::new(),
        }
    }

    #[test]
    fn a_view_gets_the_latest_event_of_each_key_in_the_order_of_keys() {
        let batch = Batch {
            parts: vec![
                part(
                    "user-events",
                    0,
                    0,
                    9,
                    vec![event(0, 9, 1), event(2, 3, 7), event(3, 3, 3), event(4, 9, 1)],
                ),
                part("user-events", 1, 0, 9, vec![event(5, 4, 1)]),
                part("post-events", 0, 0, 9, vec![event(1, 3, 1)]),
            ],
        };
        let seen = |topics: &[&str]| {
            let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
            batch
                .latest_events(&topics)
                .iter()
                .map(|(place, event)| (place.topic.to_string(), event.key, event.version, event.offset))
                .collect::<Vec<_>>()
        };
        let user = |key, version, offset| ("user-events".to_owned(), key, version, offset);
        assert_eq!(seen(&["user-events"]), [user(3, 7, 2), user(4, 1, 5), user(9, 1, 4)]);
        assert_eq!(seen(&["post-events", "user-events"]).len(), 4);
    }

    #[test]
    fn splitting_ends_at_single_events_and_loses_no_offset() {
        let whole = Batch {
            parts: vec![
                part(
                    "user-events",
                    0,
                    5,
                    20,
                    vec![event(7, 1, 1), event(8, 2, 1), event(12, 3, 1)],
                ),
                part("user-events", 1, 0, 3, vec![event(1, 4, 1)]),
            ],
        };
        let (mut waiting, mut single) = (vec![whole], Vec::new());
        while let Some(batch) = waiting.pop() {
            match batch.split() {
                Ok((first, second)) => waiting.extend([second, first]),
                Err(last) => single.extend(last.parts),
            }
        }
        let spans: Vec<_> = single
            .iter()
            .map(|part| (part.place.partition, part.from, part.to, part.events.len()))
            .collect();
        assert_eq!(spans, [(0, 5, 8, 1), (0, 8, 12, 1), (0, 12, 20, 1), (1, 0, 3, 1)]);
    }
}
