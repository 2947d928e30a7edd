//! Settings of `view-builder dead-letters`.

use clap::{Args, Subcommand};

use crate::contract::name::TopicName;
use crate::postgres::server::ViewsDatabase;
use crate::process::checked::Checked;

#[derive(Clone, Debug, Subcommand)]
pub enum LettersCommand {
    /// Print what waits, in the order of the topics. Ends with 6 where something does.
    List(ListLetters),
    /// Print one of them whole: place, reason, headers, value.
    Show(ShowLetter),
    /// Apply them again, each with those that wait behind it, up to the first that is still dead.
    Retry(RetryLetters),
    /// Give them up for good, also for replays, and apply what waits behind them.
    Discard(DiscardLetters),
}

/// Settings of `view-builder dead-letters list`.
#[derive(Clone, Debug, Args)]
pub struct ListLetters {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    /// Only those of this topic.
    #[arg(long)]
    pub topic: Option<TopicName>,
    /// Only those with this key.
    #[arg(long)]
    pub key: Option<String>,
    /// Those that were discarded too.
    #[arg(long)]
    pub discarded: bool,
    /// Most that are printed.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// Settings of `view-builder dead-letters show`.
#[derive(Clone, Debug, Args)]
pub struct ShowLetter {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    /// Its id, as `list` prints it.
    pub id: i64,
}

/// Settings of `view-builder dead-letters retry`.
#[derive(Clone, Debug, Args)]
pub struct RetryLetters {
    #[command(flatten)]
    pub letters: Letters,
    /// The first of each key, and all behind them.
    #[arg(long, conflicts_with = "ids", required_unless_present_any = ["ids", "all_with_reason"])]
    pub all: bool,
    /// Those of the first of each key whose reason is exactly this text, and all behind them. Letters of former topics are left alone.
    #[arg(long, value_name = "REASON", conflicts_with_all = ["ids", "all"])]
    pub all_with_reason: Option<String>,
}

/// Settings of `view-builder dead-letters discard`.
#[derive(Clone, Debug, Args)]
pub struct DiscardLetters {
    #[command(flatten)]
    pub letters: Letters,
    /// Why they are given up. `show` and `list --discarded` print it, and it stays with the letters.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub reason: Option<String>,
}

/// Some dead letters, and what applies them.
#[derive(Clone, Debug, Args)]
pub struct Letters {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    /// Their ids, as `list` prints them; each must be the first of its key.
    pub ids: Vec<i64>,
}
