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
    /// The position after it; offsets without an event (tombstones, transaction markers, compacted ones) are passed over.
    pub to: i64,
    /// How far the log was read with it, and the leader's epoch of the last record; none where nothing is known of that.
    pub read: Option<ReadUpTo>,
    /// In the order of their offsets, all in `from..to`.
    pub events: Vec<Event>,
    /// Records for the dead letters, in the order of their offsets, all in `from..to`.
    pub letters: Vec<Letter>,
}

/// What one transaction applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub parts: Vec<Part>,
}

/// An event that looked good and that Postgres refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub place: TopicPartition,
    pub offset: i64,
    /// Without values.
    pub reason: String,
}

impl Batch {
    #[must_use]
    pub fn event_count(&self) -> usize {
        self.parts.iter().map(|part| part.events.len()).sum()
    }

    /// The keys of what is parked behind dead letters, each once.
    #[must_use]
    pub fn parked_keys(&self) -> Vec<(TopicPartition, Bytes)> {
        let mut keys = HashSet::new();
        for part in &self.parts {
            let parked = part.letters.iter().filter(|letter| letter.reason.is_none());
            keys.extend(parked.filter_map(|letter| Some((part.place.clone(), letter.key.clone()?))));
        }
        keys.into_iter().collect()
    }

    /// The latest event of each topic and key, in the order of topic and key, for a view of these topics.
    ///
    /// The latest is the one with the highest version; of two with the same version the later one in the topic.
    #[must_use]
    pub fn latest(&self, topics: &[String]) -> Vec<(&TopicPartition, &Event)> {
        let mut latest: HashMap<(&str, i64), (&TopicPartition, &Event)> = HashMap::with_capacity(self.event_count());
        for part in self
            .parts
            .iter()
            .filter(|part| topics.iter().any(|topic| **topic == *part.place.topic))
        {
            for event in &part.events {
                latest
                    .entry((&part.place.topic, event.key))
                    .and_modify(|known| {
                        if event.version >= known.1.version {
                            *known = (&part.place, event);
                        }
                    })
                    .or_insert((&part.place, event));
            }
        }
        let mut events: Vec<_> = latest.into_values().collect();
        events.sort_unstable_by_key(|(place, event)| (&place.topic, event.key));
        events
    }

    /// Two smaller batches to apply one after the other, in the hunt for an event that Postgres refuses: by partitions, then
    /// by offsets.
    ///
    /// # Errors
    /// A single event is left: the batch itself.
    pub fn split(mut self) -> Result<(Self, Self), Self> {
        if self.parts.len() > 1 {
            let second = self.parts.split_off(self.parts.len() / 2);
            return Ok((self, Self { parts: second }));
        }
        match self.parts.pop() {
            Some(mut first) if first.events.len() > 1 => {
                let events = first.events.split_off(first.events.len() / 2);
                let cut = events[0].offset;
                let letters = first.letters.partition_point(|letter| letter.offset < cut);
                let second = Part {
                    place: first.place.clone(),
                    epoch: first.epoch,
                    from: cut,
                    to: first.to,
                    // Of the records before the cut no epoch is known by itself.
                    read: first.read.take(),
                    events,
                    letters: first.letters.split_off(letters),
                };
                first.to = cut;
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
                .latest(&topics)
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
