//! The command line. It has one subcommand for each task of a person or a supervisor.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

use super::Settings;
use super::init::InitArgs;
use super::parking::{ParkArgs, ParkedCommand};
use super::recover::RecoverArgs;
use super::replay::ReplayArgs;
use super::run::RunArgs;
use super::status::StatusArgs;
use crate::process::stop::Stop;

/// Publishes the rows of a Postgres outbox table to Kafka, exactly once, in commit order.
///
/// It reads a logical replication slot (pgoutput), so that an event is published if and only if its transaction committed. Records and
/// the checkpoint that says up to where everything is published travel in one Kafka transaction; a reader with
/// isolation.level=read_committed sees each event once.
#[derive(Debug, Parser)]
#[command(version, after_long_help = Stop::EXIT_CODES, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say all that is wrong with database, publication, slot, role and cluster, and how to mend it; changes nothing.
    Check(Settings),
    /// Create publication, slot, topics and the first checkpoint; safe to repeat. Needs a role that owns the table and may replicate.
    Init(InitArgs),
    /// Publish until stopped. A second relay of the same slot waits as a warm standby.
    Run(RunArgs),
    /// Say in one line how the relay is, then what is wrong with the commands that mend it, then the figures of slot, checkpoint and topics. Works also
    /// while the relay, Postgres or Kafka is away, within 5 s; changes nothing.
    Status(StatusArgs),
    /// Go on after a stop (exit codes 10 to 21): make the slot anew, compare the outbox with the topics, publish what is missing. Says first
    /// what it will do. Needs a role that may replicate and read the outbox.
    Recover(RecoverArgs),
    /// Publish chosen rows of the outbox again, marked by a header. A running relay goes on beside it. Says first what it will do.
    Replay(ReplayArgs),
    /// Have the relay stop publishing, for as long as it takes; it keeps the slot, and stays paused over restarts. Postgres keeps the WAL meanwhile.
    Pause(PauseArgs),
    /// Have a paused relay publish again.
    Resume(Settings),
    /// Put aside the row at which the relay has stopped: the next `run` parks exactly this one, and goes on behind it.
    Park(ParkArgs),
    /// Look at parked rows, publish them after all, or give them up.
    #[command(subcommand)]
    Parked(ParkedCommand),
    /// Ask the relay that serves ADMIN_LISTEN whether it is ready: 0 if it is, 1 if not.
    Health(HealthArgs),
}

#[derive(Clone, Debug, Args)]
pub struct PauseArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// Why, for those who find the relay paused: one line, up to 500 characters.
    #[arg(long, value_name = "TEXT")]
    pub reason: PauseReason,
}

const REASON_CHARS_MAX: usize = 500;

/// Why an operator pauses the relay: one line without control characters, 1 to 500 characters long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PauseReason(String);

impl FromStr for PauseReason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let line = text.trim();
        if (1..=REASON_CHARS_MAX).contains(&line.chars().count()) && !line.chars().any(char::is_control) {
            Ok(Self(line.to_owned()))
        } else {
            Err(format!("expected one line of 1 to {REASON_CHARS_MAX} characters"))
        }
    }
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, Args)]
pub struct HealthArgs {
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:8083")]
    pub admin_listen: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::PauseReason;

    #[test]
    fn a_reason_to_pause_is_one_line() {
        assert_eq!(
            " a broker moves ".parse::<PauseReason>().unwrap().to_string(),
            "a broker moves"
        );
        let (longest, too_long) = ("ü".repeat(500), "ü".repeat(501));
        assert!(longest.parse::<PauseReason>().is_ok());
        for wrong in ["", " ", "two\nlines", "a\u{7}bell", too_long.as_str()] {
            assert!(wrong.parse::<PauseReason>().is_err(), "{wrong}");
        }
    }
}
