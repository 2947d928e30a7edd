//! Why a rebuild does not go on.

use tokio_postgres::Error;

use crate::contract::place::TopicPartition;
use crate::postgres::connection::unanswered;
use crate::process::failure::Failure;
use crate::views::install;

pub(super) enum Trouble {
    /// Postgres is away, or has refused something that may pass: connect again, and go on.
    Database(Error),
    /// It took longer than the caller can wait.
    NotInTime,
    /// Kafka does not have the events of this topic any more that come next.
    Removed(String),
    /// The generation refuses the event at this offset, which other views have applied and which has a dead letter: that stands.
    Stands(TopicPartition, i64),
    Final(Failure),
}

impl Trouble {
    /// Ends a command that does not try again.
    pub(super) fn into_failure(self) -> Failure {
        match self {
            Self::Final(failure) => failure,
            Self::Database(err) => unanswered(err),
            Self::NotInTime | Self::Removed(_) | Self::Stands(..) => anyhow::anyhow!("not in time").into(),
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
