//! How long a rebuild goes on trying: for ever while a server is away, but only some times if the server answers and refuses.

use std::collections::HashMap;

use anyhow::anyhow;
use tokio_postgres::Error;

use crate::postgres::refusal::{self, Remedy};
use crate::process::failure::Failure;

/// So many times Kafka may say that the next events are gone, though the partition begins before them. Then the rebuild gives up.
const MISSING_EVENTS_MAX: u32 = 5;

/// Counts what has gone wrong so far in one command.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// How many times Postgres has refused a statement, by SQLSTATE.
    refusals: HashMap<String, u32>,
    /// How many times in a row Kafka has said that the next events are gone.
    missing_events: u32,
}

impl Patience {
    /// Counts an error of a statement that does not belong to a batch.
    ///
    /// # Errors
    /// Postgres has refused too often.
    pub(super) fn count_database_error(&mut self, err: &Error) -> Result<(), Failure> {
        let refusals_max = match refusal::remedy(err) {
            Remedy::Reconnect => return Ok(()),
            Remedy::Again(attempts) => attempts,
            Remedy::Mend => 1,
        };
        let count = self.refusals.entry(refusal::state(err)).or_default();
        *count += 1;
        if *count < refusals_max {
            return Ok(());
        }
        Err(anyhow!(
            "postgres has refused it {count} times: {}; the live view is as it was: mend what stands in the way and run rebuild again: it \
             goes on where it is",
            refusal::line(err)
        )
        .into())
    }

    /// Counts that Kafka says the topic does not have the next events.
    ///
    /// # Errors
    /// Kafka has said so too often.
    pub(super) fn count_missing_events(&mut self, topic: &str) -> Result<(), Failure> {
        self.missing_events += 1;
        if self.missing_events < MISSING_EVENTS_MAX {
            return Ok(());
        }
        Err(anyhow!(
            "kafka says that {topic} does not have the events that come next, though it begins before them: the topic was made anew or has \
             lost its end; the live view is as it was"
        )
        .into())
    }

    /// The events that are gone were found and skipped, so the count begins anew.
    pub(super) fn forget_missing_events(&mut self) {
        self.missing_events = 0;
    }
}
