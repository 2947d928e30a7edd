//! What `outbox-relay status` and `view-builder status` say, so that the console says the same in the same words.
//!
//! These commands take a part of a second of a processor. So they are run only while somebody looks at the pipeline.

use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};

use super::{INTERVAL, Store};
use crate::programs::{CommandLine, Program};
use crate::settings::Settings;

/// How often a command is run while somebody looks.
const ASK_INTERVAL: Duration = Duration::from_secs(15);
/// Longer than the commands take.
const ANSWER_MAX: Duration = Duration::from_secs(7);

/// The answer of `status --json`, as far as the console shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StatusFacts {
    pub problems: Vec<Problem>,
}

/// What is wrong, and what mends it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// `problem` or `warning`.
    pub severity: String,
    /// The part that it concerns, such as `slot`.
    pub stage: String,
    pub text: String,
    /// Whole command lines, the first to try first.
    pub commands: Vec<String>,
}

impl StatusFacts {
    /// Reads what the command prints. `None`: it is no such answer, as that of an earlier version.
    #[must_use]
    pub fn parse(printed: &str) -> Option<Self> {
        serde_json::from_str(printed.trim()).ok()
    }
}

/// Asks again and again while somebody looks, for ever.
pub(super) async fn ask_while_looked_at(settings: Settings, store: std::sync::Arc<Store>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked_at: Option<Instant> = None;
    loop {
        ticks.tick().await;
        if !store.is_looked_at() || asked_at.is_some_and(|at| at.elapsed() < ASK_INTERVAL) {
            continue;
        }
        asked_at = Some(Instant::now());
        for (index, outbox) in settings.pipeline.outboxes.iter().enumerate() {
            let program = Program::OutboxRelay {
                outbox: outbox.name.clone(),
            };
            let facts = ask(&settings, program).await;
            store.update(|snapshot| snapshot.outboxes[index].status = facts);
        }
        let facts = ask(&settings, Program::ViewBuilder).await;
        store.update(|snapshot| snapshot.builder_status = facts);
    }
}

async fn ask(settings: &Settings, program: Program) -> Option<StatusFacts> {
    let command = CommandLine::new(program, &["status", "--json"]);
    match command.ask(settings, "", ANSWER_MAX).await {
        Ok(answer) => StatusFacts::parse(&answer.printed),
        Err(err) => {
            tracing::debug!(error = format!("{err:#}"), "status gives no answer");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::StatusFacts;

    #[test]
    fn an_answer_of_an_earlier_version_is_none() {
        assert_eq!(StatusFacts::parse("slot outbox_relay confirmed 0/1\n"), None);
        assert_eq!(StatusFacts::parse(""), None);
    }
}
