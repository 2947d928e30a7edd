//! How the builder is a member of the consumer group: it joins, gets another assignment, leaves and joins again.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use rdkafka::consumer::Consumer as _;

use super::Builder;
use crate::kafka;
use crate::process::failure::Failure;
use crate::process::measure;

/// Time between leaving the group and joining it again. If the reason to leave lasts, the group would otherwise be rebalanced again and again
/// without a pause, and no member could read.
const REJOIN_AFTER: Duration = Duration::from_secs(1);

impl Builder {
    pub(super) fn subscribe(&mut self) -> Result<(), Failure> {
        self.rejoin_at = None;
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        self.consumer
            .subscribe(&topics)
            .map_err(|err| anyhow!("cannot subscribe to {}: {err}", self.topics.join(", ")).into())
    }

    /// Leaves the group for a moment. The next assignment claims all partitions anew, and verifies their positions.
    pub(super) fn rejoin(&mut self) {
        self.consumer.context().forget();
        kafka::decline(&self.consumer);
        self.consumer.unsubscribe();
        self.let_go();
        self.claim = None;
        self.rejoin_at = Some(Instant::now() + REJOIN_AFTER);
    }

    pub(super) fn subscribe_again_when_due(&mut self) -> Result<(), Failure> {
        if self.rejoin_at.is_some_and(|at| at <= Instant::now()) {
            self.subscribe()?;
        }
        Ok(())
    }

    /// The group has assigned partitions, or revoked them.
    pub(super) fn assignment_changed(&mut self) {
        let (generation, places) = self.consumer.context().assigned();
        tracing::info!(partitions = places.len(), "the group has assigned partitions");
        self.let_go();
        self.group_acknowledged.clear();
        if self.rejoin_at.is_some() {
            // This process has left the group, so the assignment is from before that.
            kafka::decline(&self.consumer);
            return;
        }
        if places.is_empty() {
            self.paused_partitions.replace(Vec::new());
            self.waiting_partitions.report(&[], &[]);
        }
        self.claim = (!places.is_empty()).then_some((generation, places));
    }

    pub(super) fn rejoin_since_fenced(&mut self) {
        measure::fenced();
        tracing::warn!("somebody has claimed a partition of this process or set it back: joining the group again");
        self.rejoin();
    }
}
