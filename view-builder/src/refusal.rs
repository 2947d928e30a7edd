//! What an error of Postgres means for the batch at hand.

use std::error::Error as _;

use tokio_postgres::Error;

/// SQLSTATE of `move_view_positions` when another builder owns a partition.
const FENCED: &str = "VB001";

/// SQLSTATE of `move_view_positions` when the dead letters are others than the caller knows.
const OTHER_LETTERS: &str = "VB002";

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Another builder owns a partition: give up the batch and all partitions.
    Fenced,
    /// The dead letters of a partition have changed: look at them, and read again.
    OtherLetters,
    /// The transaction lost against another one: once more.
    Conflict,
    /// The data was refused: find the event.
    Refused,
    /// Neither the batch's nor the program's fault, or not known: reconnect, look where the positions are, once more.
    Away,
}

#[must_use]
pub(crate) fn kind(err: &Error) -> Kind {
    let Some(code) = err.code().map(tokio_postgres::error::SqlState::code) else {
        return Kind::Away;
    };
    match code {
        FENCED => Kind::Fenced,
        OTHER_LETTERS => Kind::OtherLetters,
        "40001" | "40P01" => Kind::Conflict,
        // Data exception, constraint violation, program limit exceeded, raised by a function.
        _ if ["22", "23", "54", "P0"].contains(&&code[..2]) => Kind::Refused,
        _ => Kind::Away,
    }
}

/// Whether an error in a view's own SQL is the SQL's: then it will not pass by waiting.
#[must_use]
pub(crate) fn is_wrong_sql(err: &Error) -> bool {
    let class = err.code().map(|code| &code.code()[..2]);
    // Connection, conflict, resources, operator's intervention, system error, internal error.
    class.is_some_and(|class| !["08", "40", "53", "55", "57", "58", "XX"].contains(&class))
}

/// What a rebuild does about an error that its statements meet.
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

fn remedy_of(code: &str) -> Remedy {
    match code {
        // Shut down, starting, an idle session ended, no connection left, read-only as a standby.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "53300" | "25006" => Remedy::Reconnect,
        _ if code.starts_with("08") => Remedy::Reconnect,
        _ if code.starts_with("40") => Remedy::Again(10),
        // Resources, a lock, a cancelled or too slow statement, system and internal errors.
        _ if ["53", "55", "57", "58", "XX"].contains(&&code[..2]) => Remedy::Again(5),
        _ => Remedy::Mend,
    }
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
    match (err.as_db_error(), err.source()) {
        (Some(db), _) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        (None, Some(source)) => format!("{err}: {source}"),
        (None, None) => err.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Remedy, remedy_of};

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
            }
        }
    }
}
