//! Keeps the positions in the records' headers ascending, even when the server's own positions go back.
//!
//! Each record carries its position. To drop repeats, a reader may drop each record whose position is not above the last one that it saw. After a
//! move to another cluster, or after a restore of an older backup, the server's new positions lie below published ones, and such a reader would
//! drop new events. So from then on the relay adds a number of bytes to every position that it writes into a header. The checkpoint keeps this
//! number. It is 0 for a relay that never needed it.

use super::planted;
use crate::continuity::checkpoint::Checkpoint;
use pg_replication::Lsn;

/// The highest position that the header of a record up to `checkpoint` can have.
#[must_use]
pub(crate) fn highest_position(checkpoint: &Checkpoint) -> u64 {
    let published = checkpoint.published;
    // All published commits lie below `lsn`, except for a transaction of which only a part is published.
    let below_lsn = published.lsn.0.saturating_sub(1);
    let commit_lsn = published
        .partial
        .map_or(below_lsn, |partial| partial.commit_lsn.0.max(below_lsn));
    let before_init = checkpoint.begun.and_then(|begun| begun.highest_position);
    let own = commit_lsn.saturating_add(checkpoint.lineage.positions_raised_by);
    // Without an earlier init there are no records from before it.
    own.max(before_init.unwrap_or(0))
}

/// How many bytes must be added to the server's positions from `start` on, so that each of them is above `highest_published`, the highest position
/// that readers have seen. If the present number, `raised_by`, is enough, it stays.
#[must_use]
pub(crate) fn raise_above(highest_published: Option<u64>, raised_by: u64, start: Lsn) -> u64 {
    if planted::lets_positions_go_back() {
        return raised_by;
    }
    match highest_published {
        Some(highest) if start.0.saturating_add(raised_by) <= highest => (highest + 1).saturating_sub(start.0),
        _ => raised_by,
    }
}

#[cfg(test)]
mod tests {
    use super::{highest_position, raise_above};
    use crate::continuity::checkpoint::{BegunInit, Checkpoint, tests::example};
    use pg_replication::Lsn;

    #[test]
    fn the_highest_position_is_that_of_the_transaction_of_which_a_part_is_published() {
        let mut checkpoint: Checkpoint = example();
        checkpoint.lineage.positions_raised_by = 1;
        assert_eq!(highest_position(&checkpoint), 0x152_9001);
        checkpoint.published.partial = None;
        assert_eq!(highest_position(&checkpoint), 0x152_8C20);
        checkpoint.begun = Some(BegunInit {
            highest_position: Some(0x1_0000_0000),
            ..BegunInit::default()
        });
        assert_eq!(highest_position(&checkpoint), 0x1_0000_0000, "from before the init");
    }

    #[test]
    fn positions_that_ascend_by_themselves_are_left_alone() {
        assert_eq!(raise_above(None, 0, Lsn(5)), 0);
        assert_eq!(raise_above(Some(4), 0, Lsn(5)), 0);
        assert_eq!(raise_above(Some(104), 100, Lsn(5)), 100);
    }

    #[test]
    fn positions_that_would_go_back_are_raised_above_what_readers_have_seen() {
        assert_eq!(raise_above(Some(5), 0, Lsn(5)), 1);
        assert_eq!(raise_above(Some(1_000), 100, Lsn(5)), 996);
        assert_eq!(raise_above(Some(u64::MAX - 1), 0, Lsn(1)), u64::MAX - 1);
    }
}
