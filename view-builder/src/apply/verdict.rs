//! Who is at fault where a single event cannot be applied: the event, its view, or nobody yet. Pure.
//!
//! A dead letter loses nothing, and neither does a pause; but a dead letter holds up one key, and a pause a whole view. So an event is only
//! parked where the view is seen to work, and a view is only paused where it is seen not to.

use std::time::Duration;

use crate::postgres::refusal::{Kind, Passing};

/// So many events of a view in a row that fail are taken for the view's fault. Fewer go to the dead letters.
pub(super) const IN_A_ROW_MAX: u32 = 10;
/// How long what may pass is waited for before a view is paused for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What is known when a single event has failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) kind: Kind,
    /// A view's statement has failed, and not the server's part of the transaction.
    pub(super) fails_in_a_view: bool,
    /// The view's statement fails without any event as well.
    pub(super) empty_fails: bool,
    /// Another event of the view was applied since the failing began, or could be just now.
    pub(super) other_works: bool,
    /// Another event of the view fails in the same way.
    pub(super) another_fails: bool,
    /// Events of the view that failed one after the other, this one included. Each of these failures could be the event's fault or the view's.
    pub(super) in_a_row: u32,
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

pub(super) fn verdict(facts: Facts) -> Verdict {
    let too_many = facts.in_a_row >= IN_A_ROW_MAX;
    let waited = facts.failing_for >= PATIENCE && facts.rest_works;
    match facts.kind {
        Kind::Refused => Verdict::Event,
        Kind::Ambiguous if !facts.fails_in_a_view => Verdict::Again,
        Kind::Ambiguous if facts.empty_fails => Verdict::View,
        Kind::Ambiguous if too_many && !facts.other_works => Verdict::View,
        Kind::Ambiguous => Verdict::Event,
        // A full disk lets many a change through: that another event works proves nothing.
        Kind::Passing(Passing::Server) if facts.fails_in_a_view && waited => Verdict::View,
        Kind::Passing(Passing::Server) => Verdict::Again,
        Kind::Passing(_) if facts.fails_in_a_view && facts.other_works => Verdict::Event,
        Kind::Passing(_) if facts.fails_in_a_view && waited => {
            if facts.empty_fails || facts.another_fails || too_many {
                Verdict::View
            } else {
                Verdict::Event
            }
        }
        // The connection is lost with this event each time.
        Kind::Away if facts.other_works || waited => Verdict::Event,
        Kind::Passing(_) | Kind::Away | Kind::Fenced | Kind::OtherLetters => Verdict::Again,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Facts, IN_A_ROW_MAX, PATIENCE, Verdict, verdict};
    use crate::postgres::refusal::{Kind, Passing};

    const FACTS: Facts = Facts {
        kind: Kind::Ambiguous,
        fails_in_a_view: true,
        empty_fails: false,
        other_works: false,
        another_fails: false,
        in_a_row: 1,
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
        assert_eq!(verdict(refused), Verdict::Event);
    }

    #[test]
    fn a_view_that_fails_without_an_event_is_at_fault() {
        let empty_fails = Facts {
            empty_fails: true,
            other_works: true,
            ..FACTS
        };
        assert_eq!(verdict(empty_fails), Verdict::View);
    }

    #[test]
    fn of_a_view_that_works_the_event_is_at_fault_and_so_are_the_first_ones_of_any_view() {
        assert_eq!(verdict(FACTS), Verdict::Event);
        let many = Facts {
            in_a_row: IN_A_ROW_MAX,
            ..FACTS
        };
        assert_eq!(verdict(many), Verdict::View);
        let works = Facts {
            other_works: true,
            ..many
        };
        assert_eq!(verdict(works), Verdict::Event);
    }

    #[test]
    fn what_may_pass_is_waited_for_unless_another_event_works() {
        assert_eq!(verdict(LIMIT), Verdict::Again);
        let works = Facts {
            other_works: true,
            ..LIMIT
        };
        assert_eq!(verdict(works), Verdict::Event);
        let long = Facts {
            failing_for: PATIENCE,
            ..LIMIT
        };
        assert_eq!(verdict(long), Verdict::Event);
        assert_eq!(
            verdict(Facts {
                another_fails: true,
                ..long
            }),
            Verdict::View
        );
        assert_eq!(
            verdict(Facts {
                rest_works: false,
                ..long
            }),
            Verdict::Again
        );
    }

    #[test]
    fn a_full_server_never_costs_an_event() {
        for failing_for in [Duration::ZERO, PATIENCE] {
            for other_works in [false, true] {
                for rest_works in [false, true] {
                    let facts = Facts {
                        failing_for,
                        other_works,
                        rest_works,
                        ..FULL
                    };
                    assert_ne!(verdict(facts), Verdict::Event);
                }
            }
        }
        let elsewhere_full = Facts {
            failing_for: PATIENCE,
            ..FULL
        };
        assert_eq!(verdict(elsewhere_full), Verdict::View);
    }

    #[test]
    fn what_no_view_has_failed_in_is_waited_for() {
        for kind in [Kind::Ambiguous, LIMIT.kind, FULL.kind] {
            let facts = Facts {
                kind,
                fails_in_a_view: false,
                failing_for: PATIENCE,
                other_works: true,
                ..FACTS
            };
            assert_eq!(verdict(facts), Verdict::Again, "{kind:?}");
        }
    }
}
