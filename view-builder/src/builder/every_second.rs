//! What the loop looks at once a second.

use rdkafka::consumer::Consumer as _;
use service::clock;

use super::Builder;
use crate::builder::lag;
use crate::process::failure::Failure;
use crate::process::measure;

impl Builder {
    /// # Errors
    /// Another Kafka client is needed, or the topics cannot be subscribed to.
    pub(super) fn look_at_everything(&mut self) -> Result<(), Failure> {
        self.ensure_client_is_up_to_date()?;
        self.report_whether_kafka_is_away();
        self.report_slow_job();
        self.measure_partitions();
        self.measure_lag();
        self.commit_group_offsets();
        self.rejoin_where_topics_changed();
        self.ask_for_waiting_partitions();
        self.parting.ask_when_due();
        self.subscribe_again_when_due()
    }

    fn ensure_client_is_up_to_date(&self) -> Result<(), Failure> {
        if self.consumer.context().is_outdated(self.watch.is_refused()) {
            return Err(Failure::OutdatedClient);
        }
        Ok(())
    }

    fn report_whether_kafka_is_away(&mut self) {
        match self.consumer.context().trouble() {
            Some(reason) => self.kafka.goes_on(reason),
            None => self.kafka.ends(),
        }
    }

    fn measure_partitions(&self) {
        let read = self.assignment.positions().count();
        let paused = self.paused_partitions.all().len();
        measure::partitions(read + paused + self.waiting_partitions.len());
    }

    fn measure_lag(&self) {
        let context = self.consumer.context();
        let read = self.assignment.positions();
        let with_end = read.filter_map(|position| Some((position, context.end(position.place)?)));
        lag::observe(clock::now_us(), with_end);
    }

    /// A topic that was made anew, or has lost its end, is only found by asking: to the consumer it looks as if nothing came.
    fn rejoin_where_topics_changed(&mut self) {
        let found = self
            .watch
            .ask_when_due(self.assignment.positions(), self.paused_partitions.all());
        if let Some(reason) = found {
            tracing::warn!(reason, "joining the group again, to look at all positions anew");
            self.rejoin();
        }
    }
}
