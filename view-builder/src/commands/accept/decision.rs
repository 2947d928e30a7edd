//! Decides what `accept` does, from what Kafka and the position say. Pure.

use super::LockedPosition;
use crate::continuity::offsets::{Bounds, Untold};
use crate::continuity::start::{Known, Lost, start};
use crate::contract::place::TopicPartition;
use crate::process::failure::Failure;
use crate::settings::partition_argument::AcceptFrom;

/// What `accept` does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The operator has read the notices of the partition, so they are deleted.
    DeleteNotices,
    /// The partition is paused, but no longer lacks events. The builder goes on by itself.
    NothingIsLost,
    /// The partition goes on at `next_offset`, although events are lost.
    GoOnFrom {
        lost: Lost,
        next_offset: i64,
        /// The id of the topic as it is now, where Kafka tells one.
        topic_id: Option<String>,
    },
}

pub(super) fn decide(
    place: &TopicPartition,
    held: &LockedPosition,
    bounds: Result<&Bounds, Untold>,
    from: Option<AcceptFrom>,
) -> Result<Decision, Failure> {
    let bounds = match (bounds, from) {
        (Ok(bounds), _) => bounds,
        // The notices of a partition that is gone can be deleted too.
        (Err(Untold::NoPartition { .. } | Untold::NoTopic), None) => return Ok(Decision::DeleteNotices),
        (Err(untold @ (Untold::NoPartition { .. } | Untold::NoTopic)), Some(_)) => {
            return Err(Failure::Setting(format!(
                "{place} {untold}, so that it goes on from nowhere"
            )));
        }
        (Err(untold), _) => return Err(anyhow::anyhow!("nothing is changed: {place} {untold}").into()),
    };
    let known = Known {
        topic: held.ids.compare(bounds.topic_id.as_deref()),
        position: held.next_offset,
        group_recorded: None,
        group: None,
        beginning: bounds.beginning,
        end: bounds.end,
    };
    match (start(known), from) {
        (Ok(_), _) if held.is_paused => Ok(Decision::NothingIsLost),
        (Ok(_), Some(_)) => Err(Failure::Setting(format!(
            "{place} is not paused: to read events again: view-builder replay"
        ))),
        (Ok(_), None) => Ok(Decision::DeleteNotices),
        (Err(lost), None) => Err(Failure::Setting(lost.advice(place))),
        (Err(lost), Some(from)) => Ok(Decision::GoOnFrom {
            lost,
            next_offset: offset_in(place, from, bounds)?,
            topic_id: bounds.topic_id.clone(),
        }),
    }
}

fn offset_in(place: &TopicPartition, from: AcceptFrom, bounds: &Bounds) -> Result<i64, Failure> {
    match from {
        AcceptFrom::Beginning => Ok(bounds.beginning),
        AcceptFrom::Offset(offset) if (bounds.beginning..=bounds.end).contains(&offset) => Ok(offset),
        AcceptFrom::Offset(offset) => Err(Failure::Setting(format!(
            "{place} has no offset {offset}: it begins at {} and ends at {}",
            bounds.beginning, bounds.end
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Decision, decide};
    use crate::commands::accept::LockedPosition;
    use crate::continuity::offsets::{Bounds, Untold};
    use crate::continuity::start::Lost;
    use crate::contract::place::place;
    use crate::settings::partition_argument::AcceptFrom;

    /// A topic that has the offsets 10 to 39.
    fn topic_bounds() -> Bounds {
        Bounds {
            beginning: 10,
            end: 40,
            group: None,
            epoch: None,
            topic_id: Some("a".to_owned()),
        }
    }

    fn held(next_offset: i64, is_paused: bool) -> LockedPosition {
        LockedPosition {
            next_offset: Some(next_offset),
            is_paused,
            ..LockedPosition::default()
        }
    }

    /// The decision, or the refusal's words.
    fn decide_or_refusal(
        held: &LockedPosition,
        bounds: Result<&Bounds, Untold>,
        from: Option<AcceptFrom>,
    ) -> Result<Decision, String> {
        decide(&place("user-events", 3), held, bounds, from).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_partition_that_has_lost_events_goes_on_from_an_offset_that_the_topic_has() {
        let held = held(50, true);
        let goes_on_at = |next_offset| {
            Ok(Decision::GoOnFrom {
                lost: Lost::BeyondEnd { position: 50, end: 40 },
                next_offset,
                topic_id: Some("a".to_owned()),
            })
        };
        let topic = topic_bounds();
        assert_eq!(
            decide_or_refusal(&held, Ok(&topic), Some(AcceptFrom::Beginning)),
            goes_on_at(10)
        );
        assert_eq!(
            decide_or_refusal(&held, Ok(&topic), Some(AcceptFrom::Offset(40))),
            goes_on_at(40)
        );
        for offset in [9, 41] {
            let said = decide_or_refusal(&held, Ok(&topic), Some(AcceptFrom::Offset(offset))).unwrap_err();
            assert!(said.contains("it begins at 10 and ends at 40"), "{said}");
        }
        let said = decide_or_refusal(&held, Ok(&topic), None).unwrap_err();
        assert!(
            said.contains("view-builder accept user-events/3 --from beginning"),
            "{said}"
        );
    }

    #[test]
    fn where_nothing_is_lost_a_notice_is_known_and_nothing_is_read_again() {
        let topic = topic_bounds();
        assert_eq!(
            decide_or_refusal(&held(20, false), Ok(&topic), None),
            Ok(Decision::DeleteNotices)
        );
        assert_eq!(
            decide_or_refusal(&held(20, true), Ok(&topic), None),
            Ok(Decision::NothingIsLost)
        );
        let said = decide_or_refusal(&held(20, false), Ok(&topic), Some(AcceptFrom::Beginning)).unwrap_err();
        assert!(said.contains("view-builder replay"), "{said}");
    }

    #[test]
    fn a_notice_of_a_partition_that_is_gone_can_be_known_and_where_kafka_does_not_tell_nothing_is_changed() {
        let gone = Err(Untold::NoPartition { partitions: 2 });
        assert_eq!(
            decide_or_refusal(&held(20, false), gone, None),
            Ok(Decision::DeleteNotices)
        );
        let said = decide_or_refusal(&held(20, true), gone, Some(AcceptFrom::Beginning)).unwrap_err();
        assert!(said.contains("goes on from nowhere"), "{said}");
        let said = decide_or_refusal(&held(20, true), Err(Untold::NoLeader), None).unwrap_err();
        assert!(said.starts_with("nothing is changed: user-events/3 "), "{said}");
    }
}
