//! Decides who is at fault when a single event cannot be applied: the event, its view, or nobody yet. Pure.
//!
//! Neither a dead letter nor a pause loses anything. But a dead letter holds up one key, and a pause holds up a whole view. So an event becomes a
//! dead letter only if the view is seen to work, and a view is paused only if it is seen to fail.

use std::time::Duration;

use crate::postgres::refusal::{Kind, Passing};

/// If so many events of a view fail one after the other, the view is at fault. If fewer fail, they become dead letters.
pub(super) const FAILURES_IN_A_ROW_MAX: u32 = 10;
/// How long a trouble that may pass is waited for before the view is paused for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What is known when a single event has failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) kind: Kind,
    /// A view's statement has failed, and not the server's part of the transaction.
    pub(super) fails_in_a_view: bool,
    /// The view's statement fails without any event as well.
    pub(super) fails_without_events: bool,
    /// Another event of the view was applied since this event began to fail, or could be applied just now.
    pub(super) another_works: bool,
    /// Another event of the view fails in the same way.
    pub(super) another_fails: bool,
    /// Events of the view that failed one after the other, this one included. Each of these failures could be the event's fault or the view's.
    pub(super) failures_in_a_row: u32,
    /// How long this event has been failing.
    pub(super) failing_for: Duration,
    /// Postgres has room, and everything but the view works.
    pub(super) rest_works: bool,
}

/// Who is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The event is at fault, and goes to the dead letters.
    Event,
    /// The view is at fault, and is paused.
    View,
    /// Neither is at fault, or it cannot be told yet. The event is tried again.
    Again,
}

pub(super) fn who_is_at_fault(facts: Facts) -> Verdict {
    let too_many = facts.failures_in_a_row >= FAILURES_IN_A_ROW_MAX;
    let waited = facts.failing_for >= PATIENCE && facts.rest_works;
    match facts.kind {
        Kind::Refused => Verdict::Event,
        Kind::Ambiguous if !facts.fails_in_a_view => Verdict::Again,
        Kind::Ambiguous if facts.fails_without_events => Verdict::View,
        Kind::Ambiguous if too_many && !facts.another_works => Verdict::View,
        Kind::Ambiguous => Verdict::Event,
        // On a full disk some changes still work. So it proves nothing that another event works.
        Kind::Passing(Passing::Server) if facts.fails_in_a_view && waited => Verdict::View,
        Kind::Passing(Passing::Server) => Verdict::Again,
        Kind::Passing(_) if facts.fails_in_a_view && facts.another_works => Verdict::Event,
        Kind::Passing(_) if facts.fails_in_a_view && waited => {
            if facts.fails_without_events || facts.another_fails || too_many {
                Verdict::View
            } else {
                Verdict::Event
            }
        }
        // The connection is lost with this event each time.
        Kind::Away if facts.another_works || waited => Verdict::Event,
        Kind::Passing(_) | Kind::Away | Kind::Fenced | Kind::OtherLetters => Verdict::Again,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{FAILURES_IN_A_ROW_MAX, Facts, PATIENCE, Verdict, who_is_at_fault};
    use crate::postgres::refusal::{Kind, Passing};

    const FACTS: Facts = Facts {
        kind: Kind::Ambiguous,
        fails_in_a_view: true,
        fails_without_events: false,
        another_works: false,
        another_fails: false,
        failures_in_a_row: 1,
        failing_for: Duration::ZERO,
        rest_works: true,
    };
    const LIMIT: Facts = Facts {
        kind: Kind::Passing(Passing::Limit),
        ..FACTS
    };
    const FULL: Facts = Facts {
        kind: Kind::Passing(Passing::Server),
        ..FACTS
    };

    #[test]
    fn refused_data_is_the_events_fault() {
        let refused = Facts {
            kind: Kind::Refused,
            fails_in_a_view: false,
            ..FACTS
        };
        assert_eq!(who_is_at_fault(refused), Verdict::Event);
    }

    #[test]
    fn a_view_that_fails_without_an_event_is_at_fault() {
        let fails_without_events = Facts {
            fails_without_events: true,
            another_works: true,
            ..FACTS
        };
        assert_eq!(who_is_at_fault(fails_without_events), Verdict::View);
    }

    #[test]
    fn of_a_view_that_works_the_event_is_at_fault_and_so_are_the_first_ones_of_any_view() {
        assert_eq!(who_is_at_fault(FACTS), Verdict::Event);
        let many = Facts {
            failures_in_a_row: FAILURES_IN_A_ROW_MAX,
            ..FACTS
        };
        assert_eq!(who_is_at_fault(many), Verdict::View);
        let works = Facts {
            another_works: true,
            ..many
        };
        assert_eq!(who_is_at_fault(works), Verdict::Event);
    }

    #[test]
    fn what_may_pass_is_waited_for_unless_another_event_works() {
        assert_eq!(who_is_at_fault(LIMIT), Verdict::Again);
        let works = Facts {
            another_works: true,
            ..LIMIT
        };
        assert_eq!(who_is_at_fault(works), Verdict::Event);
        let long = Facts {
            failing_for: PATIENCE,
            ..LIMIT
        };
        assert_eq!(who_is_at_fault(long), Verdict::Event);
        assert_eq!(
            who_is_at_fault(Facts {
                another_fails: true,
                ..long
            }),
            Verdict::View
        );
        assert_eq!(
            who_is_at_fault(Facts {
                rest_works: false,
                ..long
            }),
            Verdict::Again
        );
    }

    #[test]
    fn a_full_server_never_costs_an_event() {
        for failing_for in [Duration::ZERO, PATIENCE] {
            for another_works in [false, true] {
                for rest_works in [false, true] {
                    let facts = Facts {
                        failing_for,
                        another_works,
                        rest_works,
                        ..FULL
                    };
                    assert_ne!(who_is_at_fault(facts), Verdict::Event);
                }
            }
        }
        let elsewhere_full = Facts {
            failing_for: PATIENCE,
            ..FULL
        };
        assert_eq!(who_is_at_fault(elsewhere_full), Verdict::View);
    }

    #[test]
    fn what_no_view_has_failed_in_is_waited_for() {
        for kind in [Kind::Ambiguous, LIMIT.kind, FULL.kind] {
            let facts = Facts {
                kind,
                fails_in_a_view: false,
                failing_for: PATIENCE,
                another_works: true,
                ..FACTS
            };
            assert_eq!(who_is_at_fault(facts), Verdict::Again, "{kind:?}");
        }
    }
}
