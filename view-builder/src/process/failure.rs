//! Why the program ends by itself, and with which exit code.

use std::process::ExitCode;

use rdkafka::error::RDKafkaErrorCode;

/// The exit codes, as `--help` tells them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  stopped as asked (SIGTERM, SIGINT), or the command is done
  1  failed for a reason that is none of the following
  2  wrong usage or a wrong setting
  3  a view cannot be used: its folder is incomplete, or Postgres refuses its SQL
  4  `status`: a partition is paused, since its topic does not have the events at the view's position
  6  `status` and `dead-letters`: events wait that cannot be applied
  7  `status` and `verify`: a view is paused
  8  `status`: the views are behind, or no builder keeps them
  9  `status`: Postgres or Kafka does not answer
 10  `verify` only: a view has rows that its events do not explain
 11  `verify` only: no such row, but rows whose events are still on their way

`run` does not end at an event that cannot be applied: it goes to the dead letters, later events of its key wait behind it, /readyz
warns, all others go on. Nor does it end at a view that Postgres does not let it keep: the view is paused, /readyz warns, all others go on. Nor
does it end where a topic does not have the events at the view's position: that partition is paused, /readyz says what to type, all others
go on.";

/// The exit code of `status` where the views are behind, or no builder keeps them.
pub const BEHIND_OR_NO_BUILDER: u8 = 8;
/// The exit code of `status` where Postgres or Kafka does not answer.
pub const AWAY: u8 = 9;

/// Why the program ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Setting(String),
    #[error("{0}")]
    View(String),
    #[error("a partition is paused: `view-builder accept`, as the line says")]
    Continuity,
    /// Another client can go on where this one cannot.
    #[error(
        "the kafka client has failed for good, and so did one before it: {0}; where two processes have the same \
         GROUP_INSTANCE_ID, give each its own"
    )]
    Client(RDKafkaErrorCode),
    /// As [`Failure::Client`], as often as somebody replaces a secret.
    #[error("kafka refuses the client, and its password or certificate has been replaced since")]
    OutdatedClient,
    #[error("events wait that cannot be applied: see `view-builder dead-letters list`")]
    DeadLetters,
    #[error("a view is paused: mend it, then view-builder resume or rebuild")]
    Paused,
    #[error("a view differs from its source")]
    Different,
    #[error("a view lags behind its source, so that not every row could be compared")]
    Lagging,
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl Failure {
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// The exit code as a number.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Client(_) | Self::OutdatedClient | Self::Other(_) => 1,
            Self::Setting(_) => 2,
            Self::View(_) => 3,
            Self::Continuity => 4,
            Self::DeadLetters => 6,
            Self::Paused => 7,
            Self::Different => 10,
            Self::Lagging => 11,
        }
    }
}
