//! Finds a place of the source's write-ahead log in a partition. Positions ascend in each partition, so halving finds it with some twenty reads, whatever the
//! partition's length.
//!
//! Two kinds of records do not keep this order: a replayed one has no position, and one that was parked and retried has a lower one than its neighbours. The first
//! are passed over. The others can be missed, as the page says.

use std::time::Instant;

use anyhow::bail;

use super::reader::{Read, Reader, Visit, Window};

/// So many records without a position are passed over at one place.
const PASSED_MAX: u32 = 500;

/// The offset of the first record at this position (commit LSN and index) or above it; the window's end if there is none.
///
/// # Errors
/// Kafka does not answer, or not in time.
pub(super) fn first_at_or_above(
    reader: &Reader,
    topic: &str,
    window: Window,
    position: (u64, u64),
    deadline: Instant,
) -> anyhow::Result<i64> {
    let (mut low, mut high) = (window.from, window.to);
    while low < high {
        let middle = low + (high - low) / 2;
        let place = first_position(
            reader,
            topic,
            Window {
                from: middle,
                to: high,
                ..window
            },
            deadline,
        )?;
        match place {
            // Everything from the middle on is above it, or has no position.
            None => high = middle,
            Some((_, found)) if found >= position => high = middle,
            Some((offset, _)) => low = offset + 1,
        }
    }
    Ok(low)
}

/// The first record in the window with a position: its offset and position.
fn first_position(
    reader: &Reader,
    topic: &str,
    window: Window,
    deadline: Instant,
) -> anyhow::Result<Option<(i64, (u64, u64))>> {
    let (mut found, mut passed) = (None, 0);
    let read = reader.read(topic, &[window], deadline, &mut |seen| {
        passed += 1;
        found = seen
            .position()
            .map(|position| (seen.offset, (position.commit_lsn, position.index)));
        if found.is_some() || passed > PASSED_MAX {
            Visit::Stop
        } else {
            Visit::GoOn
        }
    })?;
    if read == Read::TimeOver {
        bail!("the place of the position was not found in time");
    }
    Ok(found)
}
