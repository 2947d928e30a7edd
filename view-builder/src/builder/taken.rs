//! The partitions that a takeover gives, until they are let go.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Builder;
use crate::builder::lag;
use crate::builder::takeover::{Asking, TakenOver};

/// A job under way for longer makes the program not ready.
const JOB_DURATION_MAX: Duration = Duration::from_secs(5);

impl Builder {
    /// Whom a takeover asks.
    pub(super) fn asking(&self) -> Asking {
        Asking {
            consumer: self.consumer.clone(),
            observer: self.watch.observer(),
            servers: self.parting.servers().clone(),
            is_asking: self.is_asking_kafka.clone(),
        }
    }

    /// Holds what was taken over, and nothing else.
    pub(super) fn assign(&mut self, generation: u64, taken: TakenOver) {
        let TakenOver {
            starts,
            paused,
            ids,
            waiting,
        } = taken;
        tracing::info!(
            partitions = starts.len(),
            partitions.paused = paused.len(),
            partitions.waiting = waiting.len(),
            "partitions are taken over"
        );
        self.paused_partitions.replace(paused);
        self.waiting_partitions.replace(generation, waiting);
        self.waiting_partitions.tell(&[]);
        self.found = None;
        self.parting.begin(&ids);
        self.watch.begin(ids);
        self.places = starts.iter().map(|start| start.place.clone()).collect();
        self.places.sort();
        self.group_offsets.begin(&starts);
        self.unsure_keys.clear();
        self.looked_at = None;
        self.assignment.replace(starts);
        self.read_on();
    }

    /// Holds these as well: Kafka has told of them since the takeover.
    pub(super) fn assign_more(&mut self, taken: TakenOver) {
        let TakenOver {
            starts,
            paused,
            ids,
            waiting,
        } = taken;
        tracing::info!(
            partitions = starts.len(),
            partitions.paused = paused.len(),
            "partitions begin that have waited for kafka"
        );
        self.paused_partitions.add(paused);
        self.waiting_partitions.put_back(waiting);
        self.parting.add(&ids);
        self.watch.add(ids);
        self.places.extend(starts.iter().map(|start| start.place.clone()));
        self.places.sort();
        self.group_offsets.add(&starts);
        self.looked_at = None;
        if !starts.is_empty() {
            self.assignment.add(starts);
            self.read_on();
        }
    }

    /// Holds nothing any more.
    pub(super) fn let_go(&mut self) {
        self.assignment.replace(Vec::new());
        self.paused_partitions.let_go();
        self.waiting_partitions.let_go();
        self.found = None;
        self.watch.begin(Vec::new());
        lag::forget();
    }

    /// Asks Kafka for the partitions that wait, and tells which wait.
    pub(super) fn look_for_waiting(&mut self) {
        if self.found.is_none() {
            self.found = self.waiting_partitions.look(&self.watch.observer());
        }
        // Between two assignments nobody knows.
        if self.assignment.positions().next().is_some() || !self.waiting_partitions.is_empty() {
            self.waiting_partitions.tell(self.watch.without_leader());
        }
    }

    /// Says whom a job waits for that takes long.
    pub(super) fn tell_slow_job(&self) {
        let is_slow = |since: &std::time::Instant| since.elapsed() > JOB_DURATION_MAX;
        if !self.job.as_ref().is_some_and(|(_, since)| is_slow(since)) {
            return;
        }
        let seconds = JOB_DURATION_MAX.as_secs();
        let reason = if self.is_asking_kafka.load(Ordering::Relaxed) {
            format!("kafka has not told for more than {seconds} s where the partitions begin and end")
        } else {
            format!("postgres has not answered for more than {seconds} s")
        };
        self.readiness.not_ready("batch", reason);
    }
}
