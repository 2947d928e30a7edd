//! How often a transaction that failed is tried again before it is suspect, and how long is waited between.

use std::time::Duration;

use crate::postgres::refusal::Passing;

/// Tries of a transaction that loses against others. It loses by chance, so it is tried more often, and sooner.
const CONFLICTS_MAX: u32 = 20;
/// Tries of a transaction that fails for another reason that may pass.
const OTHERS_MAX: u32 = 5;
/// Tries of a part of a batch that is suspect already.
const PIECE_MAX: u32 = 3;
/// Lost connections in a row, while Postgres takes new ones.
const LOST_MAX: u32 = 5;

/// Before the second try.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// The pauses grow up to this. Whoever mends the server waits no longer than that for the next try.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Up to this after a conflict, which is over as soon as the other transaction ends.
const CONFLICT_PAUSE_MAX: Duration = Duration::from_millis(500);

/// The tries of one transaction.
#[derive(Debug)]
pub(super) struct Tries {
    is_piece: bool,
    failed: u32,
    lost: u32,
}

impl Tries {
    /// `is_piece`: what is tried is a part of a batch that is suspect.
    pub(super) const fn of(is_piece: bool) -> Self {
        Self {
            is_piece,
            failed: 0,
            lost: 0,
        }
    }

    /// The transaction failed for a reason that may pass. Gives how long to wait before the next try; `None`: it is suspect now.
    pub(super) fn failed(&mut self, passing: Passing) -> Option<Duration> {
        self.failed += 1;
        let (most, growth, longest) = match passing {
            Passing::Conflict => (CONFLICTS_MAX, 2, CONFLICT_PAUSE_MAX),
            Passing::Limit | Passing::Server => (OTHERS_MAX, 5, PAUSE_MAX),
        };
        let most = if self.is_piece { PIECE_MAX } else { most };
        (self.failed < most).then(|| pause(PAUSE_MIN, growth, self.failed - 1, longest))
    }

    /// The transaction lost its connection. Gives whether it is suspect now.
    pub(super) fn lost(&mut self) -> bool {
        self.lost += 1;
        self.lost >= LOST_MAX
    }
}

/// The pause before a suspect event is looked at again for the `times`-th time.
pub(super) fn pause_again(times: u32) -> Duration {
    pause(Duration::from_millis(100), 2, times, PAUSE_MAX)
}

fn pause(first: Duration, growth: u32, times: u32, longest: Duration) -> Duration {
    growth
        .checked_pow(times)
        .and_then(|factor| first.checked_mul(factor))
        .map_or(longest, |pause| pause.min(longest))
}

#[cfg(test)]
mod tests {
    use super::{PAUSE_MAX, Tries, pause_again};
    use crate::postgres::refusal::Passing;

    #[test]
    fn a_transaction_is_tried_again_more_slowly_each_time_and_not_for_ever() {
        for (passing, is_piece, wanted) in [
            (Passing::Conflict, false, 20),
            (Passing::Limit, false, 5),
            (Passing::Server, false, 5),
            (Passing::Conflict, true, 3),
        ] {
            let mut tries = Tries::of(is_piece);
            let pauses: Vec<_> = std::iter::from_fn(|| tries.failed(passing)).collect();
            assert_eq!(pauses.len() + 1, wanted, "{passing:?}");
            assert!(pauses.is_sorted() && pauses.iter().all(|pause| *pause <= PAUSE_MAX));
        }
    }

    #[test]
    fn the_fifth_lost_connection_makes_it_suspect() {
        let mut tries = Tries::of(false);
        let suspect: Vec<bool> = (0..5).map(|_| tries.lost()).collect();
        assert_eq!(suspect, [false, false, false, false, true]);
    }

    #[test]
    fn a_pause_is_never_longer_than_its_limit() {
        assert_eq!(pause_again(1_000), PAUSE_MAX);
    }
}
