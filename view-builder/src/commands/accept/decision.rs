//! What the operator's word comes to, by what Kafka and the position say. Pure.

use super::Held;
use crate::continuity::offsets::{Bounds, Untold};
use crate::continuity::start::{Known, Lost, start};
use crate::contract::place::TopicPartition;
use crate::process::failure::Failure;
use crate::settings::partition_argument::AcceptFrom;

/// What the operator's word comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The notices of the partition are known from now on.
    TakeNote,
    /// The builder goes on by itself.
    NothingIsLost,
    GoOn {
        lost: Lost,
        next_offset: i64,
        /// The id of the topic as it is now, where Kafka tells one.
        topic_id: Option<String>,
    },
}

pub(super) fn decide(
    place: &TopicPartition,
    held: &Held,
    told: Result<&Bounds, Untold>,
    from: Option<AcceptFrom>,
) -> Result<Decision, Failure> {
    let bounds = match (told, from) {
        (Ok(bounds), _) => bounds,
        // A notice of a partition that is gone can be known all the same.
        (Err(Untold::NoPartition { .. } | Untold::NoTopic), None) => return Ok(Decision::TakeNote),
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
        (Ok(_), None) => Ok(Decision::TakeNote),
        (Err(lost), None) => Err(Failure::Setting(lost.advice(place))),
        (Err(lost), Some(from)) => Ok(Decision::GoOn {
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
    use crate::commands::accept::Held;
    use crate::continuity::offsets::{Bounds, Untold};
    use crate::continuity::start::Lost;
    use crate::contract::place::place;
    use crate::settings::partition_argument::AcceptFrom;

    /// A topic that has the offsets 10 to 39.
    fn bounds() -> Bounds {
        Bounds {
            beginning: 10,
            end: 40,
            group: None,
            epoch: None,
            topic_id: Some("a".to_owned()),
        }
    }

    fn held(next_offset: i64, is_paused: bool) -> Held {
        Held {
            next_offset: Some(next_offset),
            is_paused,
            ..Held::default()
        }
    }

    /// The decision, or the refusal's words.
    fn decided(held: &Held, told: Result<&Bounds, Untold>, from: Option<AcceptFrom>) -> Result<Decision, String> {
        decide(&place("user-events", 3), held, told, from).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_partition_that_has_lost_events_goes_on_from_an_offset_that_the_topic_has() {
        let held = held(50, true);
        let goes_on_at = |next_offset| {
            Ok(Decision::GoOn {
                lost: Lost::BeyondEnd { position: 50, end: 40 },
                next_offset,
                topic_id: Some("a".to_owned()),
            })
        };
        let told = bounds();
        assert_eq!(decided(&held, Ok(&told), Some(AcceptFrom::Beginning)), goes_on_at(10));
        assert_eq!(decided(&held, Ok(&told), Some(AcceptFrom::Offset(40))), goes_on_at(40));
        for offset in [9, 41] {
            let said = decided(&held, Ok(&told), Some(AcceptFrom::Offset(offset))).unwrap_err();
            assert!(said.contains("it begins at 10 and ends at 40"), "{said}");
        }
        let said = decided(&held, Ok(&told), None).unwrap_err();
        assert!(
            said.contains("view-builder accept user-events/3 --from beginning"),
            "{said}"
        );
    }

    #[test]
    fn where_nothing_is_lost_a_notice_is_known_and_nothing_is_read_again() {
        let told = bounds();
        assert_eq!(decided(&held(20, false), Ok(&told), None), Ok(Decision::TakeNote));
        assert_eq!(decided(&held(20, true), Ok(&told), None), Ok(Decision::NothingIsLost));
        let said = decided(&held(20, false), Ok(&told), Some(AcceptFrom::Beginning)).unwrap_err();
        assert!(said.contains("view-builder replay"), "{said}");
    }

    #[test]
    fn a_notice_of_a_partition_that_is_gone_can_be_known_and_where_kafka_does_not_tell_nothing_is_changed() {
        let gone = Err(Untold::NoPartition { partitions: 2 });
        assert_eq!(decided(&held(20, false), gone, None), Ok(Decision::TakeNote));
        let said = decided(&held(20, true), gone, Some(AcceptFrom::Beginning)).unwrap_err();
        assert!(said.contains("goes on from nowhere"), "{said}");
        let said = decided(&held(20, true), Err(Untold::NoLeader), None).unwrap_err();
        assert!(said.starts_with("nothing is changed: user-events/3 "), "{said}");
    }
}
