//! Parked rows: rows of the outbox that cannot become records, put aside so that the others go on.
//!
//! A poison row stops the relay, unless an operator says otherwise: `run --poison park`, or `outbox-relay park POSITION` for the one row at which
//! it stopped. Then the row goes to the parking topic, with its columns and the reason, in the Kafka transaction whose checkpoint passes it. So a
//! row is in its topic or in the parking topic, never in both and never in neither, whenever the relay dies. Later rows of its key park behind it,
//! so that a reader never sees them before it; the relay reads its own parked rows at its start, after fencing, and knows their keys again.
//! `outbox-relay parked retry` routes parked rows once more and publishes each in one Kafka transaction with the tombstone of its parked entry.
//!
//! [`behind`] parks rows of the table while a command publishes the others.
//! [`record`] is the entry's format, [`keys`] decides what parks, [`log`] reads the entries, [`send`] writes them.
//! What the checkpoint says of parked rows is [`ParkingNote`](crate::continuity::parking_note::ParkingNote).

pub(crate) mod behind;
pub mod keys;
pub mod log;
mod planted;
pub mod position;
pub mod record;
pub(crate) mod send;
pub mod table;
pub mod topic;
