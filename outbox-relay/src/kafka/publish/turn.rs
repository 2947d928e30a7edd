//! The order of a publisher's lanes: which one fences first, and which one is filled next. Two rules keep two publishers apart:
//!
//! 1. **The first lane is fenced first.** The others fence once it has.
//! 2. **A publisher's first transaction goes through the first lane**, and every later one commits after it.
//!
//! Owning the slot is not enough to keep them apart. A firewall can forget a connection without telling either side. Then the server gives the slot
//! to a successor, while the first relay goes on with its start, and with the bytes that its socket still holds. So two starts can run at the
//! same time, and the broker sees their requests to fence in any order.
//!
//! Why the rules are enough: let X and Y be publishers of the same ids that have both committed something, and X the one that fenced the
//! first lane earlier. X's first transaction went through the first lane (rule 2), so it committed before Y fenced that lane. X had fenced all
//! its lanes and read the checkpoint before. Y fences the others after the first (rule 1). So each of Y's requests comes after X's for the same
//! lane: when Y reads the checkpoint, X can commit nothing more, and Y sees all that X has committed. A publisher that is overtaken
//! at the first lane before its first commit never commits.
//!
//! Why neither rule can be left out:
//!
//! - Without rule 2: X fences the first lane, Y fences all three, X fences the others. Each has a lane of its own now, both read the same
//!   checkpoint, X begins at the second lane and Y at the first, and both publish the same rows.
//! - Without rule 1: Y fences the others, X fences all three and commits through the first, and Y fences the first. X can still commit its second
//!   transaction on its second lane. Y has not seen it, and publishes the same rows.
//!
//! A start that dies half way does no harm: some lanes of an earlier publisher are fenced, the transactions on the others commit in their order or
//! not at all, and nobody else writes.

use std::sync::mpsc;

use super::planted;
use crate::process::faults;
use crate::process::stop::RelayError;

/// How many producers take turns. A later version may have more, but never fewer: it would not fence the last lanes of an earlier relay.
pub(in crate::kafka) const LANES: usize = 3;

/// Which lane is filled now. It begins at the first lane (rule 2), so there is no function that sets it.
#[derive(Debug)]
pub(in crate::kafka) struct Turn(usize);

impl Turn {
    /// The turn of a publisher that has ordered no commit yet.
    pub(in crate::kafka) fn first() -> Self {
        Self(usize::from(planted::begins_at_any_lane()))
    }

    /// Index of the lane, from 0.
    pub(in crate::kafka) fn lane(&self) -> usize {
        self.0
    }

    /// Passes the turn on, once the lane's transaction is ordered to commit.
    pub(in crate::kafka) fn pass_on(&mut self) {
        self.0 = (self.0 + 1) % LANES;
    }
}

/// When a lane may fence (rule 1).
#[derive(Debug)]
pub(in crate::kafka) enum FenceTurn {
    /// At once. Then it tells the other lanes.
    First(Vec<mpsc::Sender<()>>),
    /// After the first lane. The channel closes without a message if the first lane has failed.
    AfterFirst(mpsc::Receiver<()>),
}

impl FenceTurn {
    /// One for each lane, in the lanes' order.
    pub(in crate::kafka) fn of_all_lanes() -> Vec<Self> {
        let (senders, receivers): (Vec<_>, Vec<_>) = (1..LANES).map(|_| mpsc::channel()).unzip();
        let others = receivers.into_iter().map(Self::AfterFirst);
        std::iter::once(Self::First(senders)).chain(others).collect()
    }

    /// Waits for this lane's turn, then runs `fence`.
    ///
    /// # Errors
    /// `fence` failed, or the first lane's did.
    pub(in crate::kafka) fn fence_in_turn(
        self,
        fence: impl FnOnce() -> Result<(), RelayError>,
    ) -> Result<(), RelayError> {
        match self {
            Self::First(others) => {
                faults::point("fence.first.before")?;
                fence()?;
                faults::point("fence.first.after")?;
                for other in others {
                    // A lane that could not connect has ended and does not wait.
                    let _gone = other.send(());
                }
                Ok(())
            }
            Self::AfterFirst(first) => {
                if !planted::fences_in_any_order() && first.recv().is_err() {
                    return Err(anyhow::anyhow!("the first producer has not fenced the earlier relay").into());
                }
                fence()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FenceTurn, LANES, Turn};

    #[test]
    fn the_first_transaction_goes_through_the_first_lane_and_the_others_take_turns() {
        let mut turn = Turn::first();
        let mut lanes = Vec::new();
        for _ in 0..=LANES {
            lanes.push(turn.lane());
            turn.pass_on();
        }
        assert_eq!(lanes, [0, 1, 2, 0]);
    }

    #[test]
    fn no_other_lane_fences_where_the_first_has_failed() {
        let mut turns = FenceTurn::of_all_lanes().into_iter();
        let first = turns.next().unwrap();
        assert!(first.fence_in_turn(|| Err(anyhow::anyhow!("refused").into())).is_err());
        for other in turns {
            assert!(other.fence_in_turn(|| panic!("it must not fence")).is_err());
        }
    }
}
