//! Sends records: producers in turn, each with a transaction of its own, whose commits keep their order.
//!
//! [`publisher`] has the three rules that make several producers as good as one, [`turn`] the order in which they fence earlier ones.

mod abandon;
mod events;
mod flush;
mod lane;
mod planted;
mod publisher;
mod record_limit;
mod turn;
mod undelivered;

pub use abandon::Abandon;
pub(in crate::kafka) use events::serve_events;
pub(in crate::kafka) use flush::flush;
pub use publisher::{Committed, HeaderText, Outgoing, Publisher, Sent, with_header};
pub use record_limit::batch_bytes;
