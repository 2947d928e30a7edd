//! The settings that every session of the relay sets for itself, whatever role it logs in as.
//!
//! `alter role … set`, `alter database … set` and postgresql.conf change what a session does and how it writes values down. Most of what they can
//! change would do harm here:
//! - It would change records (`bytea_output`, `IntervalStyle`).
//! - It would end sessions in the middle of their work (`transaction_timeout`).
//! - It would take away what a proof rests on. The guard's second statement sees what was committed after its first one only under
//!   `read committed`. The warning about a skipped publication comes only if `client_min_messages` lets it through.
//!
//! A parameter of the start-up packet wins over all three. It also wins over the URL's `options`, which may set what is not in the list below:
//! `wal_sender_timeout`, `logical_decoding_work_mem`.
//!
//! Three settings are left alone on purpose:
//! - `lc_monetary`: a `money` value is a bare integer, and this setting places its decimal point. Only the program that wrote the value knows the
//!   right place.
//! - `default_transaction_read_only`: with it a server says that it takes no writes now, and `target_session_attrs=read-write` asks for it. A stream
//!   and a read of rows need no writes. `init` and maintenance fail with a clear message.
//! - `lc_messages`: only a superuser may set it. So nothing here depends on the words of a message.

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
    // What names and literals mean, and what a snapshot sees. Tables are named with their schema. All other names are Postgres' own.
    ("search_path", "pg_catalog"),
    ("standard_conforming_strings", "on"),
    ("row_security", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    // Which warnings the server sends.
    ("client_min_messages", "notice"),
    // No time limits: a stream has no end, and the session that reads the rows which are there already waits for Kafka.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    // A refused START_REPLICATION must not end the session: a standby relay tries it again in the same session.
    ("exit_on_error", "off"),
];

/// The statement that pins the settings which only newer servers have. An older server would refuse them in a start-up packet. `None` if this server
/// does not have them.
pub(super) fn statement_to_pin_newer_settings(server_version_num: u32) -> Option<&'static str> {
    (server_version_num >= 170_000).then_some("set transaction_timeout = 0")
}

#[cfg(test)]
mod tests {
    use super::statement_to_pin_newer_settings;

    #[test]
    fn an_older_server_is_not_asked_for_what_it_does_not_have() {
        assert_eq!(statement_to_pin_newer_settings(160_009), None);
        assert!(statement_to_pin_newer_settings(170_000).is_some());
    }
}
