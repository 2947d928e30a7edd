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
