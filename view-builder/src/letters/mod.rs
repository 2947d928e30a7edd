//! Dead letters: events that cannot be applied, and what stands behind them.
//!
//! A record that is no event, or that Postgres refuses, goes with its headers, its place and the reason into the table
//! `view_dead_letters`, in the transaction that moves the position behind it: so it is neither lost nor in the way. Its *key*
//! waits from there on, since a later event applied before an earlier one would be out of order: later events of the key are
//! parked in the same table, until an operator has retried or discarded what stands before them. All other keys go on.
//!
//! A builder knows the keys that wait in its partitions by heart ([`Known`]), as of its claim. From then on only operators take letters away,
//! so what it knows can only be too much: it may take a key to wait that waits no longer. Putting down an event that is parked therefore
//! fails, and with it the batch, where no earlier letter of its key is open (`keep_view_letters`); the builder then asks for these keys
//! alone, and reads the events again.

pub(crate) mod known;
pub(crate) mod store;

pub use known::Known;
pub use store::LettersOfKey;

/// For people: so many events wait, and the command that shows them.
#[must_use]
pub(crate) fn waiting(count: i64) -> String {
    format!("{count} events wait in view_dead_letters: see `view-builder dead-letters list`")
}
