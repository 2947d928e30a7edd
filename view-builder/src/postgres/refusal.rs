//! What an error of Postgres means for the batch at hand.

use std::error::Error as _;

use pg_replication::SessionError;
use tokio_postgres::Error;

use crate::process::faults::{self, Bug};

/// SQLSTATE of `advance_view_positions` when another builder owns a partition.
const FENCED: &str = "VB001";

/// SQLSTATE of `keep_view_letters` when the caller takes a key to wait that waits no longer.
const OTHER_LETTERS: &str = "VB002";

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Another builder owns a partition: give up the batch and all partitions.
    Fenced,
    /// The dead letters of a partition have changed: look at them, and read again.
    OtherLetters,
    /// Neither the batch's nor the program's fault, or not known: reconnect, look where the positions are, once more.
    Away,
    /// It may pass by waiting: once more, and more slowly each time.
    Passing(Passing),
    /// The data was refused: find the event.
    Refused,
    /// The data was refused, or the view cannot be kept as it is: find out which.
    Ambiguous,
}

/// What may pass by waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passing {
    /// The transaction lost against another one.
    Conflict,
    /// A limit was met: of time, of memory, of locks.
    Limit,
    /// The server has no room, or cannot read or write: no event's fault.
    Server,
}

#[must_use]
pub(crate) fn kind(err: &Error) -> Kind {
    err.code().map_or(Kind::Away, |code| kind_of(code.code()))
}

/// What the SQLSTATE means: Appendix A of Postgres' manual, whose classes are the first two characters.
fn kind_of(state: &str) -> Kind {
    // Five ASCII characters, as the protocol has it; anything else is in no class.
    let class = state.get(..2).unwrap_or_default();
    match (class, state) {
        (_, FENCED) => Kind::Fenced,
        (_, OTHER_LETTERS) => Kind::OtherLetters,
        // Without a connection, without a session, on a standby, or the server ends it.
        ("08" | "25" | "26" | "28" | "3D", _) | (_, "57P01" | "57P02" | "57P03" | "57P04" | "57P05") => Kind::Away,
        ("40", _) => Kind::Passing(Passing::Conflict),
        (_, "53100" | "53300") | ("58" | "F0", _) => Kind::Passing(Passing::Server),
        // Memory, other limits, locks, a cancelled statement, somebody else's server.
        ("53" | "57" | "HV", _) | (_, "55P03" | "55006") => Kind::Passing(Passing::Limit),
        // Cardinality, data exception, constraint, triggered data change, a function's own, check option, limit of the program, raised.
        ("20" | "21" | "22" | "23" | "27" | "38" | "44" | "54" | "P0", _) => Kind::Refused,
        (class, _) => kind_of_unlisted(class),
    }
}

/// A state that is in no list above comes from an own class, which a view's function has raised, or it may tell of the view as well as of the event.
/// The planted bug waits for ever.
fn kind_of_unlisted(class: &str) -> Kind {
    if faults::is_planted(Bug::UnknownStatesBlock) {
        Kind::Away
    } else if is_of_postgres(class) {
        Kind::Ambiguous
    } else {
        Kind::Refused
    }
}

/// Whether Postgres itself uses the class. A state of another class is an own one, which a view's function has raised.
fn is_of_postgres(class: &str) -> bool {
    const OTHERS: [&str; 24] = [
        "00", "01", "02", "03", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "24", "2B", "2D", "2F", "34", "39",
        "3B", "3F", "42", "55", "72", "XX",
    ];
    OTHERS.contains(&class)
}

/// Whether an event, or the view, was refused: trying again is of no use.
#[must_use]
pub(crate) fn is_refused(err: &Error) -> bool {
    matches!(kind(err), Kind::Refused | Kind::Ambiguous)
}

/// What to do about an error that an operator's command meets, or the SQL with which a view is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// The server is away, or ends sessions, or is a standby: connect again, for as long as it takes.
    Reconnect,
    /// It may pass: try so many times in all.
    Again(u32),
    /// It does not pass by waiting.
    Mend,
}

#[must_use]
pub(crate) fn remedy(err: &Error) -> Remedy {
    err.code().map_or(Remedy::Reconnect, |code| remedy_of(code.code()))
}

/// Whether an error in a view's own SQL is the SQL's: then it will not pass by waiting.
#[must_use]
pub(crate) fn is_wrong_sql(err: &Error) -> bool {
    err.code().is_some_and(|code| is_wrong_sql_of(code.code()))
}

fn is_wrong_sql_of(code: &str) -> bool {
    // It writes where it may only read, as in `verify`.
    code == "25006" || remedy_of(code) == Remedy::Mend
}

fn remedy_of(code: &str) -> Remedy {
    let is_of_class = |class: &&str| code.starts_with(*class);
    match code {
        // Shut down, starting, an idle session ended, no connection left, read-only as a standby.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "53300" | "25006" => Remedy::Reconnect,
        _ if code.starts_with("08") => Remedy::Reconnect,
        _ if code.starts_with("40") => Remedy::Again(10),
        // Resources, a lock, a cancelled or too slow statement, system and internal errors.
        _ if ["53", "55", "57", "58", "XX"].iter().any(is_of_class) => Remedy::Again(5),
        _ => Remedy::Mend,
    }
}

/// Whether the session goes on after the error: it is the statement's alone.
#[must_use]
pub(crate) fn goes_on(err: &Error) -> bool {
    err.as_db_error()
        .is_some_and(|db| db.parsed_severity() == Some(tokio_postgres::error::Severity::Error))
}

/// Whether the connection was lost without a word of Postgres, as one is whose server process dies.
#[must_use]
pub(crate) fn is_lost(err: &Error) -> bool {
    err.code().is_none()
}

/// Whether a lock was not granted within `lock_timeout`.
#[must_use]
pub(crate) fn is_lock_timeout(err: &Error) -> bool {
    err.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE)
}

/// Names what refused the data without its values: Postgres' own message may repeat them.
#[must_use]
pub(crate) fn without_values(err: &Error) -> String {
    let Some(db) = err.as_db_error() else {
        return "refused by Postgres".to_owned();
    };
    let parts = [
        ("table", db.table()),
        ("column", db.column()),
        ("constraint", db.constraint()),
    ]
    .into_iter()
    .filter_map(|(part, name)| name.map(|name| format!(", {part} {name}")))
    .collect::<String>();
    format!("refused by Postgres: SQLSTATE {}{parts}", db.code().code())
}

/// One line for the log and for `/readyz`. Only for errors that are not about data.
#[must_use]
pub(crate) fn line(err: &Error) -> String {
    if let Some(words) = SessionError::words_for(err) {
        return words;
    }
    match (err.as_db_error(), err.source()) {
        (Some(db), _) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        (None, Some(source)) => format!("{err}: {source}"),
        (None, None) => err.to_string(),
    }
}

/// The error's SQLSTATE; for one of the client `connection`.
#[must_use]
pub(crate) fn state(err: &Error) -> String {
    err.code()
        .map_or_else(|| "connection".to_owned(), |code| code.code().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Kind, Passing, Remedy, is_wrong_sql_of, kind_of, remedy_of};

    #[test]
    fn each_state_has_its_answer() {
        for (states, wanted) in [
            (&["VB001"][..], Kind::Fenced),
            (&["VB002"], Kind::OtherLetters),
            (
                &["08006", "57P01", "57P03", "25006", "25P02", "26000", "28P01", "3D000"],
                Kind::Away,
            ),
            (&["40001", "40P01"], Kind::Passing(Passing::Conflict)),
            (
                &["57014", "55P03", "53200", "53400", "HV00N"],
                Kind::Passing(Passing::Limit),
            ),
            (&["53100", "53300", "58030"], Kind::Passing(Passing::Server)),
            (
                &[
                    "21000", "22012", "22P02", "23505", "23514", "38000", "44000", "54001", "P0001", "U0001", "VB003",
                    "99999",
                ],
                Kind::Refused,
            ),
            (
                &["0A000", "42501", "42883", "42P01", "3F000", "2F003", "55000", "XX000"],
                Kind::Ambiguous,
            ),
        ] {
            for state in states {
                assert_eq!(kind_of(state), wanted, "{state}");
            }
        }
    }

    #[test]
    fn only_a_connection_is_waited_for_without_end() {
        for (codes, remedy) in [
            (&["08006", "53300", "57P01", "57P03", "25006"][..], Remedy::Reconnect),
            (&["40001", "40P01"], Remedy::Again(10)),
            (
                &["53100", "53200", "55P03", "57014", "58030", "XX000"],
                Remedy::Again(5),
            ),
            (
                &[
                    "21000", "22P02", "23505", "38000", "42501", "42P01", "44000", "0A000", "P0001", "U0001",
                ],
                Remedy::Mend,
            ),
        ] {
            for code in codes {
                assert_eq!(remedy_of(code), remedy, "{code}");
                let is_wrong = remedy == Remedy::Mend || *code == "25006";
                assert_eq!(is_wrong_sql_of(code), is_wrong, "{code}");
            }
        }
    }
}
