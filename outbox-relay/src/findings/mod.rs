//! What is wrong, or could become so, with servers, outbox and topics: the findings that `check` prints and that a start warns of.
//!
//! Each module looks at one thing and says what it found; none changes anything.

pub mod failover;
pub(crate) mod lineage_check;
pub mod outbox_check;
pub(crate) mod sentences;
pub mod server_check;
pub(crate) mod topic_check;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Good(String),
    /// It works, but …
    Warning(String),
    /// It does not work; with how to mend it.
    Problem(String),
}
