//! What the operator wants done with poison rows.

use clap::{Args, ValueEnum};

/// What `run` does with a row that can never become a record.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Poison rows (rows that can never become records)")]
pub struct PoisonOptions {
    /// What to do at a poison row. The parking topic is made by `init --poison park`, or when it is first needed.
    #[arg(long, env = "OUTBOX_POISON", value_enum, default_value_t)]
    pub poison: PoisonPolicy,
    /// What to do with later rows of a parked row's key.
    #[arg(long, env = "OUTBOX_POISON_ORDER", value_enum, default_value_t)]
    pub poison_order: PoisonOrder,
    /// Most poison rows that are parked in a minute (1 to 1000000), those behind them not counted; then the relay stops with exit code 33, since
    /// something is wrong with all rows.
    #[arg(long, env = "OUTBOX_POISON_LIMIT", value_name = "ROWS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub poison_limit: u32,
}

impl Default for PoisonOptions {
    fn default() -> Self {
        Self {
            poison: PoisonPolicy::Stop,
            poison_order: PoisonOrder::Park,
            poison_limit: 10,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PoisonPolicy {
    /// Publish what stands before it, stop with exit code 30 or 31, and say its position; `outbox-relay park POSITION` puts it aside.
    #[default]
    Stop,
    /// Put it aside in the parking topic, with the reason, and go on.
    Park,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PoisonOrder {
    /// Park them behind it, so that a reader sees the rows of a key in their order.
    #[default]
    Park,
    /// Publish them; the parked row comes later, or never.
    Skip,
}
