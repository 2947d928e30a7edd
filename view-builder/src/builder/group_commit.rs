//! Telling Kafka how far the group is, for tools that show its lag.
//!
//! An offset goes to Kafka first. Once Kafka has acknowledged it, a job writes it down in Postgres.

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rdkafka::consumer::Consumer as _;

use super::Builder;
use crate::contract::position::Reached;
use crate::kafka;

/// How often the group's offsets are committed to Kafka. They serve people's tools, which can do with some seconds of age, and each commit costs a
/// write in Kafka and one in Postgres.
const GROUP_COMMIT_INTERVAL: Duration = Duration::from_secs(3);

impl Builder {
    pub(super) fn commit_group_offsets(&mut self) {
        if let Some(commit) = &mut self.group_commit {
            let Some(acknowledged) = commit.now_or_never() else {
                return;
            };
            self.group_commit = None;
            // What belongs to an earlier assignment has an epoch that is gone, so writing it down changes nothing. A commit whose thread
            // panicked counts as one that Kafka has not acknowledged.
            self.group_acknowledged = acknowledged.unwrap_or_default();
            if self.group_acknowledged.is_empty() {
                self.group_offsets.send_all_again();
            }
        }
        // librdkafka keeps what it cannot send; a static member that has lost its session by then sends it under no name, and is
        // expelled for that.
        if self.group_sent_at.elapsed() < GROUP_COMMIT_INTERVAL || self.consumer.context().trouble().is_some() {
            return;
        }
        self.group_sent_at = Instant::now();
        let due = self.take_group_offsets_due();
        if !due.is_empty() {
            let consumer = self.consumer.clone();
            self.group_commit = Some(tokio::task::spawn_blocking(move || kafka::commit(&consumer, due)));
        }
    }

    pub(super) fn take_group_offsets_due(&mut self) -> Vec<Reached> {
        let context = self.consumer.context();
        let held = self
            .assignment
            .positions()
            .map(|position| (position, context.end(position.place)));
        self.group_offsets.take_due(held)
    }
}
