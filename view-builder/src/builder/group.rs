//! Which offsets the consumer group commits to Kafka, for tools that show its lag.
//!
//! They may be higher than the position: where only transaction markers follow the position, these count as applied. They never go back. So an
//! offset in Kafka that is earlier than the one written down in Postgres says that an operator wants a replay, see [`crate::continuity::start`].

use std::collections::HashMap;

use crate::builder::claim::Start;
use crate::contract::place::TopicPartition;
use crate::contract::position::{Position, Reached};
use crate::kafka::End;

/// The group's offsets of the partitions that this process holds.
#[derive(Debug, Default)]
pub struct GroupOffsets(HashMap<TopicPartition, Latest>);

/// The highest offset of a partition that the group may have.
#[derive(Clone, Copy, Debug)]
struct Latest {
    offset: i64,
    /// This process has sent it to Kafka.
    is_sent: bool,
}

impl GroupOffsets {
    /// Holds these partitions from now on, and no others.
    pub fn begin(&mut self, starts: &[Start]) {
        self.0.clear();
        self.add(starts);
    }

    /// Holds these partitions as well.
    pub fn add(&mut self, starts: &[Start]) {
        let latest = |start: &Start| {
            let offset = start.group_offset?;
            Some((start.place.clone(), Latest { offset, is_sent: false }))
        };
        self.0.extend(starts.iter().filter_map(latest));
    }

    /// The offsets that Kafka does not have yet. From now on they count as sent.
    pub fn take_due<'a>(&mut self, held: impl Iterator<Item = (Position<'a>, Option<End>)>) -> Vec<Reached> {
        held.filter_map(|(position, end)| {
            let reached = end.map_or(position.next_offset, |end| end.applied_up_to(&position));
            let before = self.0.get(position.place);
            let next_offset = before.map_or(reached, |before| before.offset.max(reached));
            if before.is_some_and(|before| before.is_sent && before.offset == next_offset) {
                return None;
            }
            let sent = Latest {
                offset: next_offset,
                is_sent: true,
            };
            self.0.insert(position.place.clone(), sent);
            Some(Reached {
                place: position.place.clone(),
                epoch: position.epoch,
                next_offset,
            })
        })
        .collect()
    }

    /// Kafka may not have what was sent: all of it is due again.
    pub fn send_all_again(&mut self) {
        for latest in self.0.values_mut() {
            latest.is_sent = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::GroupOffsets;
    use crate::builder::claim::Start;
    use crate::contract::place::TopicPartition;
    use crate::contract::position::Position;
    use crate::kafka::End;
    use crate::letters::Known;

    fn place() -> TopicPartition {
        TopicPartition {
            topic: "user-events".into(),
            partition: 5,
        }
    }

    fn beginning_with(group_offset: Option<i64>) -> GroupOffsets {
        let mut offsets = GroupOffsets::default();
        offsets.begin(&[Start {
            place: place(),
            epoch: 1,
            next_offset: 53,
            new_from: 53,
            group_offset,
            known: Known::at(1),
        }]);
        offsets
    }

    /// What is due with everything before `next_offset` applied, and the topic's end known to be `end`.
    fn due(offsets: &mut GroupOffsets, next_offset: i64, end: Option<(i64, bool)>) -> Option<i64> {
        let place = place();
        let position = Position {
            place: &place,
            epoch: 1,
            next_offset,
            settled: true,
            oldest_us: None,
        };
        let end = end.map(|(end, reached)| End { end, reached });
        let due = offsets.take_due(std::iter::once((position, end)));
        due.first().map(|reached| reached.next_offset)
    }

    #[test]
    fn each_offset_is_sent_once_and_transaction_markers_count() {
        let mut offsets = beginning_with(None);
        assert_eq!(due(&mut offsets, 53, None), Some(53));
        assert_eq!(due(&mut offsets, 53, Some((54, false))), None);
        assert_eq!(due(&mut offsets, 53, Some((54, true))), Some(54));
        assert_eq!(due(&mut offsets, 53, Some((54, true))), None);
    }

    #[test]
    fn the_offset_does_not_go_back_to_before_a_marker_when_the_next_event_comes() {
        let mut offsets = beginning_with(None);
        assert_eq!(due(&mut offsets, 53, Some((54, true))), Some(54));
        assert_eq!(due(&mut offsets, 53, Some((56, false))), None);
        assert_eq!(due(&mut offsets, 55, Some((56, false))), Some(55));
    }

    #[test]
    fn the_offset_does_not_go_back_to_before_what_is_written_down_when_a_builder_starts() {
        let mut offsets = beginning_with(Some(54));
        assert_eq!(due(&mut offsets, 53, Some((56, false))), Some(54));
        assert_eq!(due(&mut offsets, 53, Some((56, false))), None);
    }

    #[test]
    fn what_kafka_has_not_acknowledged_is_sent_again() {
        let mut offsets = beginning_with(None);
        assert_eq!(due(&mut offsets, 53, None), Some(53));
        offsets.send_all_again();
        assert_eq!(due(&mut offsets, 53, None), Some(53));
    }
}
