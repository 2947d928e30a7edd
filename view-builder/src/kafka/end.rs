//! Where a partition ends, and up to where it counts as applied. Pure.

use crate::contract::position::Position;

/// The end of a partition as of the last fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// One past the last offset that a read_committed reader sees, transaction markers included.
    pub end: i64,
    /// Everything before `end` has been handed to this program.
    pub reached: bool,
}

impl End {
    /// The offset that stands for "everything before is applied": the end, where all that was handed over is applied
    /// (between the position and the end are transaction markers only), else the position.
    #[must_use]
    pub fn applied_up_to(&self, position: &Position<'_>) -> i64 {
        if self.reached && position.settled {
            self.end.max(position.next_offset)
        } else {
            position.next_offset
        }
    }
}

#[cfg(test)]
mod tests {
    use super::End;
    use crate::contract::place::place;
    use crate::contract::position::Position;

    #[test]
    fn transaction_markers_at_the_end_are_no_lag() {
        let place = place("user-events", 0);
        let position = Position {
            place: &place,
            epoch: 1,
            next_offset: 10,
            settled: true,
            oldest_us: None,
        };
        let end = End { end: 12, reached: true };
        let reading = End { reached: false, ..end };
        let applying = Position {
            settled: false,
            ..position
        };
        assert_eq!(end.applied_up_to(&position), 12);
        assert_eq!(reading.applied_up_to(&position), 10);
        assert_eq!(end.applied_up_to(&applying), 10);
    }
}
