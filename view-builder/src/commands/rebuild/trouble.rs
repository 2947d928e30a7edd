//! Why a rebuild does not go on.

use tokio_postgres::Error;

use crate::contract::place::TopicPartition;
use crate::postgres::connection::unanswered;
use crate::process::failure::Failure;
use crate::views::install;

pub(super) enum Trouble {
    /// Postgres is away, or has refused a statement that may succeed later. Connect again and go on.
    Database(Error),
    /// There was too much to do before the caller's deadline, or things have changed meanwhile. Try again.
    NotInTime,
    /// Kafka no longer has the next events of this topic.
    Removed(String),
    /// The generation refuses the event at this offset. The event has a dead letter and other views have applied it, so the generation must leave
    /// it out.
    MustLeaveOut(TopicPartition, i64),
    Final(Failure),
}

impl Trouble {
    /// Ends a command that does not try again.
    pub(super) fn into_failure(self) -> Failure {
        match self {
            Self::Final(failure) => failure,
            Self::Database(err) => unanswered(err),
            Self::NotInTime | Self::Removed(_) | Self::MustLeaveOut(..) => anyhow::anyhow!("not in time").into(),
        }
    }
}

impl From<Error> for Trouble {
    fn from(err: Error) -> Self {
        Self::Database(err)
    }
}

impl From<install::Trouble> for Trouble {
    fn from(trouble: install::Trouble) -> Self {
        match trouble {
            install::Trouble::Database(err) => Self::Database(err),
            install::Trouble::Final(failure) => Self::Final(failure),
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Final(failure)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(err: anyhow::Error) -> Self {
        Self::Final(err.into())
    }
}
