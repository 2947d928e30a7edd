//! Looking in Postgres at what others may have changed: claims, dead letters, notices.

use std::time::Duration;

use super::Builder;
use crate::builder::claim::{Held, LETTERS_COUNTED, Look};
use crate::builder::paused_partitions;
use crate::letters;
use crate::process::measure;

/// How often this process looks. A busy builder learns by its next batch that it was fenced; an idle one learns it by this look, so an operator
/// who sets positions back waits for so long at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

impl Builder {
    pub(super) fn is_look_due(&self) -> bool {
        self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL)
    }

    /// The claims of all partitions that this process holds: those that are read, paused, or waiting for Kafka.
    pub(super) fn held_claims(&self) -> Vec<Held> {
        self.assignment
            .claims()
            .chain(self.paused_partitions.claims())
            .chain(self.waiting_partitions.claims())
            .collect()
    }

    pub(super) fn act_on_look(&mut self, look: Option<Look>) {
        // Postgres did not answer. The next look comes in two seconds, and the next batch sooner.
        let Some(look) = look else { return };
        self.report_dead_letters(look.letters);
        paused_partitions::report_notices(&self.readiness, &look.notices);
        if look.is_fenced {
            self.rejoin_since_fenced();
        }
    }

    fn report_dead_letters(&self, count: i64) {
        measure::letters(count);
        if count == 0 {
            self.readiness.fine("dead-letters");
            return;
        }
        let at_least = if count < LETTERS_COUNTED { "" } else { "at least " };
        self.readiness
            .warn("dead-letters", format!("{at_least}{}", letters::waiting(count)));
    }
}
