//! Where a claimed partition begins to be read.

use crate::faults::{self, Bug};

/// What is known of a partition when it is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
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
        "the view has events up to offset {position}, but the topic ends at {end}: it was made anew or lost its end; if the \
         view is to be kept by this topic from now on, delete the partition's row from view_positions, and it is read from its beginning"
    )]
    BeyondEnd { position: i64, end: i64 },
    #[error(
        "the view has events up to offset {position}, but the topic begins at {beginning}: events that were never applied have \
         been removed; to go on without them, set next_offset to {beginning} in the partition's row of view_positions"
    )]
    BelowBeginning { position: i64, beginning: i64 },
}

/// The offset to read from.
///
/// Postgres' position is the truth. Kafka's group offset matters only when it is *earlier* than the one this group
/// committed last: then an operator has reset it and wants a replay, which is always safe. One that is later, or gone, is
/// ignored.
///
/// # Errors
/// The position lies outside of what the topic has.
pub fn start(known: Known) -> Result<i64, Lost> {
    let Some(position) = known.position else {
        return Ok(known.beginning);
    };
    if position > known.end {
        return Err(Lost::BeyondEnd {
            position,
            end: known.end,
        });
    }
    if let Some(group) = known.group
        && faults::is_planted(Bug::TrustTheGroup)
    {
        return Ok(group);
    }
    let reset = match (known.group, known.group_recorded) {
        (Some(group), Some(recorded)) if group < recorded => Some(group.max(known.beginning)),
        _ => None,
    };
    if let Some(reset) = reset {
        return Ok(reset.min(position));
    }
    if position < known.beginning {
        return Err(Lost::BelowBeginning {
            position,
            beginning: known.beginning,
        });
    }
    Ok(position)
}

#[cfg(test)]
mod tests {
    use super::{Known, Lost, start};

    const KNOWN: Known = Known {
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
}
