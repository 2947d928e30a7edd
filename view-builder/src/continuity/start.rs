//! Where a claimed partition begins to be read.

use crate::continuity::topic_ids::Topic;
use crate::contract::place::TopicPartition;

/// What is known of a partition when it is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whether the topic is the one that the position is of.
    pub topic: Topic,
    /// The position in Postgres; none: nothing has been applied yet.
    pub position: Option<i64>,
    /// The group's offset that this group last committed to Kafka, as Postgres has it.
    pub group_recorded: Option<i64>,
    /// The group's offset that Kafka has.
    pub group: Option<i64>,
    /// First offset that Kafka still has.
    pub beginning: i64,
    /// One past the last offset that a read_committed reader sees.
    pub end: i64,
}

/// The events from the position on are not in the topic: nothing proves that the view can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error(
        "the view has events up to offset {position}, but the topic ends at {end}: it lost its end, or was made anew"
    )]
    BeyondEnd { position: i64, end: i64 },
    #[error(
        "the view has events up to offset {position}, but the topic begins at {beginning}: events that were never applied have \
         been removed"
    )]
    BelowBeginning { position: i64, beginning: i64 },
    #[error(
        "kafka tells of a topic that was made anew since: a broker lags behind and will tell of the new one, or the cluster was restored from a backup"
    )]
    FormerTopic,
}

impl Lost {
    /// The reason as the metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeyondEnd { .. } => "beyond_end",
            Self::BelowBeginning { .. } => "below_beginning",
            Self::FormerTopic => "former_topic",
        }
    }

    /// The end that lies below the position.
    #[must_use]
    pub const fn low_end(self) -> Option<i64> {
        match self {
            Self::BeyondEnd { end, .. } => Some(end),
            Self::BelowBeginning { .. } | Self::FormerTopic => None,
        }
    }

    /// What is wrong with this partition, and what to type.
    #[must_use]
    pub fn advice(self, place: &TopicPartition) -> String {
        let other = match self {
            Self::BeyondEnd { end, .. } => {
                format!(", or --from {end} where everything before that offset is known to be as it was")
            }
            Self::BelowBeginning { .. } | Self::FormerTopic => String::new(),
        };
        format!(
            "{place} is paused: {self}; to go on: `view-builder accept {place} --from beginning`{other} (docs/lost-continuity.md)"
        )
    }
}

/// The offset to read from.
///
/// Postgres' position is the truth, as long as the topic is the one that it is of. Kafka's group offset matters only when it is
/// *earlier* than the one this group committed last: then an operator has reset it and wants a replay, which is always safe. One that is
/// later, or gone, is ignored.
///
/// # Errors
/// The position lies outside of what the topic has.
pub fn start(known: Known) -> Result<i64, Lost> {
    match known.topic {
        Topic::Same => {}
        Topic::MadeAnew => return Ok(known.beginning),
        Topic::Former => return Err(Lost::FormerTopic),
    }
    let Some(position) = known.position else {
        return Ok(known.beginning);
    };
    if position > known.end {
        return Err(Lost::BeyondEnd {
            position,
            end: known.end,
        });
    }
    if let Some(offset) = planted::trusted_group_offset(&known) {
        return Ok(offset);
    }
    let reset = match (known.group, known.group_recorded) {
        (Some(group), Some(recorded)) if group < recorded => Some(group.max(known.beginning)),
        _ => None,
    };
    // A position below the beginning is no better for a reset: the events between were never applied.
    if position < known.beginning {
        return Err(Lost::BelowBeginning {
            position,
            beginning: known.beginning,
        });
    }
    Ok(reset.map_or(position, |reset| reset.min(position)))
}

/// The offset to read from, and, where that breaks continuity, the offset from which on every event counts as new.
///
/// `paused_end` is the lowest end that Kafka told while the partition was paused because that lay below the position. An end that has
/// grown since proves nothing: where the topic had lost its end, other events have the lost ones' offsets now, and the view has none of them.
/// So everything from the lowest end on is read again. Where a broker only lagged, this is a harmless replay: events that a view has
/// change nothing. Where events from the lowest end on have been removed meanwhile, the topic's beginning is all there is.
///
/// # Errors
/// As [`start`].
pub fn start_after_pause(known: Known, paused_end: Option<i64>) -> Result<(i64, Option<i64>), Lost> {
    let next_offset = start(known)?;
    match paused_end {
        Some(lowest) if known.topic == Topic::Same && !planted::forgets_paused_end() => {
            let lowest = lowest.min(known.end);
            Ok((next_offset.min(lowest).max(known.beginning), Some(lowest)))
        }
        _ => Ok((next_offset, None)),
    }
}

/// The planted bugs of a start. Without the feature `faults` none of them is there.
mod planted {
    use super::Known;
    use crate::process::faults::{self, Bug};

    pub(super) fn trusted_group_offset(known: &Known) -> Option<i64> {
        known.group.filter(|_| faults::is_planted(Bug::TrustTheGroup))
    }

    pub(super) fn forgets_paused_end() -> bool {
        faults::is_planted(Bug::ForgetPausedEnd)
    }
}

#[cfg(test)]
mod tests {
    use super::{Known, Lost, start, start_after_pause};
    use crate::continuity::topic_ids::Topic;

    const KNOWN: Known = Known {
        topic: Topic::Same,
        position: Some(50),
        group_recorded: Some(48),
        group: Some(48),
        beginning: 10,
        end: 60,
    };

    #[test]
    fn the_position_in_postgres_is_the_truth() {
        for group in [None, Some(48), Some(49), Some(60), Some(1_000)] {
            assert_eq!(start(Known { group, ..KNOWN }), Ok(50), "{group:?}");
        }
        let unrecorded = Known {
            group: Some(3),
            group_recorded: None,
            ..KNOWN
        };
        assert_eq!(start(unrecorded), Ok(50));
    }

    #[test]
    fn a_group_reset_to_an_earlier_offset_is_a_replay() {
        for (group, expected) in [(20, 20), (47, 47), (0, 10)] {
            let known = Known {
                group: Some(group),
                ..KNOWN
            };
            assert_eq!(start(known), Ok(expected));
        }
    }

    #[test]
    fn a_group_reset_does_not_hide_that_the_position_is_below_the_beginning() {
        let removed = Known {
            group: Some(20),
            beginning: 51,
            ..KNOWN
        };
        let lost = Lost::BelowBeginning {
            position: 50,
            beginning: 51,
        };
        assert_eq!(start(removed), Err(lost));
    }

    #[test]
    fn an_end_that_was_lost_and_has_grown_again_is_read_from_where_it_was() {
        assert_eq!(start_after_pause(KNOWN, None), Ok((50, None)));
        for end in [50, 55] {
            assert_eq!(start_after_pause(Known { end, ..KNOWN }, Some(40)), Ok((40, Some(40))));
        }
        // Still lost.
        let lost = Lost::BeyondEnd { position: 50, end: 45 };
        assert_eq!(start_after_pause(Known { end: 45, ..KNOWN }, Some(40)), Err(lost));
        // Set back, or null.
        for (position, expected) in [(Some(45), 40), (Some(30), 30), (None, 10)] {
            let known = Known { position, ..KNOWN };
            assert_eq!(
                start_after_pause(known, Some(40)),
                Ok((expected, Some(40))),
                "{position:?}"
            );
        }
        let lower = Known {
            position: Some(30),
            end: 35,
            ..KNOWN
        };
        assert_eq!(start_after_pause(lower, Some(40)), Ok((30, Some(35))));
        let truncated = Known { beginning: 43, ..KNOWN };
        assert_eq!(start_after_pause(truncated, Some(40)), Ok((43, Some(40))));
        let anew = Known {
            topic: Topic::MadeAnew,
            ..KNOWN
        };
        assert_eq!(start_after_pause(anew, Some(40)), Ok((10, None)));
    }

    #[test]
    fn a_partition_without_position_is_read_from_its_beginning() {
        let known = Known {
            position: None,
            group: Some(55),
            ..KNOWN
        };
        assert_eq!(start(known), Ok(10));
    }

    #[test]
    fn a_position_outside_of_the_topic_stops() {
        assert_eq!(
            start(Known { end: 49, ..KNOWN }),
            Err(Lost::BeyondEnd { position: 50, end: 49 })
        );
        assert_eq!(start(Known { end: 50, ..KNOWN }), Ok(50));
        let removed = Known { beginning: 51, ..KNOWN };
        assert!(matches!(
            start(Known { group: None, ..removed }),
            Err(Lost::BelowBeginning { .. })
        ));
    }

    #[test]
    fn a_topic_that_was_made_anew_is_read_from_its_beginning_wherever_the_position_and_the_group_are() {
        for (end, group) in [(20, None), (50, Some(48)), (900, Some(3))] {
            let anew = Known {
                topic: Topic::MadeAnew,
                beginning: 2,
                end,
                group,
                ..KNOWN
            };
            assert_eq!(start(anew), Ok(2));
        }
    }

    #[test]
    fn a_topic_that_was_replaced_is_not_gone_back_to() {
        let former = Known {
            topic: Topic::Former,
            ..KNOWN
        };
        assert_eq!(start(former), Err(Lost::FormerTopic));
    }
}
