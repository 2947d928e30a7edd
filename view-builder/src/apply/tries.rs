//! How often a failed transaction is tried again before it is suspect, and how long the pauses between the tries are.

use std::time::Duration;

use crate::postgres::refusal::Passing;

/// Tries of a transaction that loses against other transactions. It loses by chance, so it is tried more often and after shorter pauses.
const CONFLICTS_MAX: u32 = 20;
/// Tries of a transaction that fails for another reason that may pass.
const OTHERS_MAX: u32 = 5;
/// Tries of a part of a batch that has failed already.
const PIECE_MAX: u32 = 3;
/// A transaction that loses so many connections, while Postgres accepts new ones, is suspect.
const LOST_CONNECTIONS_MAX: u32 = 5;

/// Pause before the second try.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// The pauses grow up to this length. So the next try comes soon after somebody has mended the server.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The same after a conflict. It is shorter, since a conflict is over as soon as the other transaction ends.
const CONFLICT_PAUSE_MAX: Duration = Duration::from_millis(500);

/// What is known of a transaction before its first try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// A whole batch, which has not failed yet.
    None,
    /// A part of a batch that has failed.
    PartOfFailedBatch,
}

/// Counts the tries of one transaction.
#[derive(Debug)]
pub(super) struct Tries {
    suspicion: Suspicion,
    failures: u32,
    lost_connections: u32,
}

impl Tries {
    pub(super) const fn new(suspicion: Suspicion) -> Self {
        Self {
            suspicion,
            failures: 0,
            lost_connections: 0,
        }
    }

    /// Counts a failure for a reason that may pass. Returns the pause before the next try. `None`: the transaction is suspect now.
    pub(super) fn pause_after(&mut self, passing: Passing) -> Option<Duration> {
        self.failures += 1;
        let (tries_max, growth, longest) = match passing {
            Passing::Conflict => (CONFLICTS_MAX, 2, CONFLICT_PAUSE_MAX),
            Passing::Limit | Passing::Server => (OTHERS_MAX, 5, PAUSE_MAX),
        };
        let tries_max = match self.suspicion {
            Suspicion::None => tries_max,
            Suspicion::PartOfFailedBatch => PIECE_MAX,
        };
        (self.failures < tries_max).then(|| growing_pause(PAUSE_MIN, growth, self.failures - 1, longest))
    }

    /// Counts a lost connection. Returns whether the transaction is suspect now.
    pub(super) fn count_lost_connection(&mut self) -> bool {
        self.lost_connections += 1;
        self.lost_connections >= LOST_CONNECTIONS_MAX
    }
}

/// The pause before a suspect event is looked at again for the `times`-th time.
pub(super) fn pause_before_another_look(times: u32) -> Duration {
    growing_pause(Duration::from_millis(100), 2, times, PAUSE_MAX)
}

fn growing_pause(first: Duration, growth: u32, times: u32, longest: Duration) -> Duration {
    growth
        .checked_pow(times)
        .and_then(|factor| first.checked_mul(factor))
        .map_or(longest, |pause| pause.min(longest))
}

#[cfg(test)]
mod tests {
    use super::{PAUSE_MAX, Suspicion, Tries, pause_before_another_look};
    use crate::postgres::refusal::Passing;

    #[test]
    fn a_transaction_is_tried_again_more_slowly_each_time_and_not_for_ever() {
        for (passing, suspicion, tries_expected) in [
            (Passing::Conflict, Suspicion::None, 20),
            (Passing::Limit, Suspicion::None, 5),
            (Passing::Server, Suspicion::None, 5),
            (Passing::Conflict, Suspicion::PartOfFailedBatch, 3),
        ] {
            let mut tries = Tries::new(suspicion);
            let pauses: Vec<_> = std::iter::from_fn(|| tries.pause_after(passing)).collect();
            assert_eq!(pauses.len() + 1, tries_expected, "{passing:?}");
            assert!(pauses.is_sorted() && pauses.iter().all(|pause| *pause <= PAUSE_MAX));
        }
    }

    #[test]
    fn the_fifth_lost_connection_makes_it_suspect() {
        let mut tries = Tries::new(Suspicion::None);
        let suspect: Vec<bool> = (0..5).map(|_| tries.count_lost_connection()).collect();
        assert_eq!(suspect, [false, false, false, false, true]);
    }

    #[test]
    fn a_pause_is_never_longer_than_its_limit() {
        assert_eq!(pause_before_another_look(1_000), PAUSE_MAX);
    }
}
