//! The settings that every session of the relay brings along, whoever it logs in as.
//!
//! `alter role … set`, `alter database … set` and postgresql.conf change what a session does and how it writes values down. Most of what they can
//! change would change records (`bytea_output`, `IntervalStyle`), end sessions in the middle of their work (`transaction_timeout`), or take away what a
//! proof rests on: the guard's second statement sees what was committed after its first only under `read committed`, and the warning of a
//! publication that is skipped comes only where `client_min_messages` lets it. A parameter of the start-up packet outranks all three, and
//! outranks the URL's `options` as well, which may set whatever is not here: `wal_sender_timeout`, `logical_decoding_work_mem`.
//!
//! Left alone on purpose:
//! - `lc_monetary`: a `money` value is a bare integer, whose decimal point it places. Only who wrote the value knows which one is right.
//! - `default_transaction_read_only`: it says of a server that it takes no writes now, which `target_session_attrs=read-write` asks for. A stream and
//!   the rows that are read need none; `init` and maintenance fail in words.
//! - `lc_messages`: it takes a superuser, so nothing here depends on the words of a message.

/// Names and values for the start-up packet. All of them exist in PostgreSQL 15 and later, and may be set by any role.
pub(super) const PINNED: [(&str, &str); 18] = [
    // How values are written down.
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("quote_all_identifiers", "off"),
    // What a name, a literal and a snapshot mean: tables are named with their schema, all else is Postgres' own.
    ("search_path", "pg_catalog"),
    ("standard_conforming_strings", "on"),
    ("row_security", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    // What is told.
    ("client_min_messages", "notice"),
    // How long a session may take: a stream has no end, and the snapshot of the rows that are there already waits for Kafka.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    // A refused START_REPLICATION must leave the session to the standby that waits on it.
    ("exit_on_error", "off"),
];

/// The statement that pins what older servers would refuse in a start-up packet; `None` where this server has nothing of the kind.
pub(super) fn pinned_since(server_version_num: u32) -> Option<&'static str> {
    (server_version_num >= 170_000).then_some("set transaction_timeout = 0")
}

#[cfg(test)]
mod tests {
    use super::pinned_since;

    #[test]
    fn an_older_server_is_not_asked_for_what_it_does_not_have() {
        assert_eq!(pinned_since(160_009), None);
        assert!(pinned_since(170_000).is_some());
    }
}
