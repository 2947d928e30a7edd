//! How the builder begins to hold the partitions that a takeover gave it, and how it lets them go.

use std::time::Duration;

use super::Builder;
use crate::builder::lag;
use crate::builder::parting;
use crate::builder::takeover::{ClientsToAsk, TakenOver};
use crate::contract::place::TopicPartition;

/// A job under way for longer makes the program not ready. A batch takes milliseconds, and a takeover some seconds while leaders change.
const JOB_DURATION_MAX: Duration = Duration::from_secs(5);

impl Builder {
    /// The clients that a takeover asks.
    pub(super) fn clients_to_ask(&self) -> ClientsToAsk {
        ClientsToAsk {
            consumer: self.consumer.clone(),
            observer: self.watch.observer(),
            question: self.question.clone(),
        }
    }

    /// Holds the partitions that were taken over, and no others.
    pub(super) fn hold_taken_over(&mut self, generation: u64, taken: TakenOver) {
        let TakenOver {
            starts,
            paused,
            ids,
            marks,
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
        self.waiting_partitions.report(&[], &[]);
        self.found = None;
        let doubtful = self.parting.begin(marks);
        self.watch.begin(ids);
        self.places = starts.iter().map(|start| start.place.clone()).collect();
        self.places.sort();
        self.group_offsets.begin(&starts);
        self.unsure_keys.clear();
        self.looked_at = None;
        self.assignment.replace(starts);
        self.hold_back(&doubtful);
        self.seek_to_next_reads();
    }

    /// Also holds these partitions, which waited for Kafka at the takeover. Kafka has told of them since.
    pub(super) fn hold_those_that_waited(&mut self, taken: TakenOver) {
        let TakenOver {
            starts,
            paused,
            ids,
            marks,
            waiting,
        } = taken;
        tracing::info!(
            partitions = starts.len(),
            partitions.paused = paused.len(),
            "partitions begin that have waited for kafka"
        );
        self.paused_partitions.add(paused);
        self.waiting_partitions.put_back(waiting);
        let doubtful = self.parting.add(marks);
        self.watch.add(ids);
        self.places.extend(starts.iter().map(|start| start.place.clone()));
        self.places.sort();
        self.group_offsets.add(&starts);
        self.looked_at = None;
        if !starts.is_empty() {
            self.assignment.add(starts);
            self.hold_back(&doubtful);
            self.seek_to_next_reads();
        }
        self.waiting_partitions
            .report(self.watch.without_leader(), &self.parting.unanswered_for_long());
    }

    /// Holds no partition any more.
    pub(super) fn let_go(&mut self) {
        self.assignment.replace(Vec::new());
        self.paused_partitions.let_go();
        self.waiting_partitions.let_go();
        self.found = None;
        self.parting.begin(Vec::new());
        self.watch.begin(Vec::new());
        lag::forget();
    }

    fn hold_back(&mut self, doubtful: &[TopicPartition]) {
        for place in doubtful {
            self.assignment.hold_back(place, true);
        }
    }

    /// Kafka has answered whether partitions still have the records that were read from them. If a partition has them, it is no longer held back,
    /// and the records that were dropped meanwhile are read again.
    pub(super) fn handle_answer_about_logs(&mut self, answer: parting::Answer) {
        let logs = self.parting.act_on_answer(answer);
        self.parted.extend(logs.parted);
        if logs.certain.is_empty() {
            return;
        }
        for place in &logs.certain {
            self.assignment.hold_back(place, false);
        }
        self.seek_to_next_reads();
    }

    /// Asks Kafka for the partitions that wait, and reports which of them wait.
    pub(super) fn ask_for_waiting_partitions(&mut self) {
        if self.found.is_none() {
            self.found = self.waiting_partitions.ask_when_due(&self.watch.observer());
        }
        // Between two assignments it is not known which partitions wait.
        if self.assignment.positions().next().is_some() || !self.waiting_partitions.is_empty() {
            self.waiting_partitions
                .report(self.watch.without_leader(), &self.parting.unanswered_for_long());
        }
    }

    /// A job that takes long makes the program not ready: `/readyz` says whether it waits for Kafka or for Postgres.
    pub(super) fn report_slow_job(&self) {
        let is_slow = self
            .job
            .as_ref()
            .is_some_and(|job| job.since.elapsed() > JOB_DURATION_MAX);
        if !is_slow {
            return;
        }
        let seconds = JOB_DURATION_MAX.as_secs();
        let reason = match self.question.unanswered() {
            Some(error) => {
                format!("kafka has not told for more than {seconds} s where the partitions begin and end: {error}")
            }
            None => format!("postgres has not answered for more than {seconds} s"),
        };
        self.readiness.not_ready("batch", reason);
    }
}
