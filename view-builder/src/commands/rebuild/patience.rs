//! How long a rebuild goes on trying: for ever where a server is away, and not where it answers and refuses.

use std::collections::HashMap;

use anyhow::anyhow;
use tokio_postgres::Error;

use crate::postgres::refusal::{self, Remedy};
use crate::process::failure::Failure;

/// How often Kafka may say that events are gone where none before the generation's position are.
const REMOVED_MAX: u32 = 5;

/// What has gone wrong so far, in one command.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// By SQLSTATE.
    refusals: HashMap<String, u32>,
    removed: u32,
}

impl Patience {
    /// Postgres has failed a statement that is not of a batch.
    pub(super) fn meets(&mut self, err: &Error) -> Result<(), Failure> {
        let most = match refusal::remedy(err) {
            Remedy::Reconnect => return Ok(()),
            Remedy::Again(most) => most,
            Remedy::Mend => 1,
        };
        let count = self.refusals.entry(refusal::state(err)).or_default();
        *count += 1;
        if *count < most {
            return Ok(());
        }
        Err(anyhow!(
            "postgres has refused it {count} times: {}; the live view is as it was: mend what stands in the way and run rebuild again: it \
             goes on where it is",
            refusal::line(err)
        )
        .into())
    }

    /// Kafka says that the topic does not have what comes next.
    pub(super) fn misses(&mut self, topic: &str) -> Result<(), Failure> {
        self.removed += 1;
        if self.removed < REMOVED_MAX {
            return Ok(());
        }
        Err(anyhow!(
            "kafka says that {topic} does not have the events that come next, though it begins before them: the topic was made anew or has \
             lost its end; the live view is as it was"
        )
        .into())
    }

    /// Events that are gone were found and passed over.
    pub(super) fn passed_over(&mut self) {
        self.removed = 0;
    }
}
