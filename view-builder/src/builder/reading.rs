//! Takes records from the Kafka client and puts them into the next batch.

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use service::clock;

use super::Builder;
use crate::builder::assignment::Record;
use crate::contract::record;
use crate::kafka;
use crate::process::failure::Failure;
use crate::process::measure;

/// So many records are taken before the main loop looks at its other arms again. A look costs more than taking one record. 500 records take a
/// millisecond or two, so nothing else waits for long.
const RECORDS_AT_ONCE: usize = 500;

impl Builder {
    /// Takes this record, and the next ones that the client has fetched already.
    pub(super) fn take_records<'a>(
        &mut self,
        first: KafkaResult<BorrowedMessage<'a>>,
        records: &mut (impl Stream<Item = KafkaResult<BorrowedMessage<'a>>> + Unpin),
    ) -> Result<(), Failure> {
        self.take_record(first)?;
        for _ in 1..RECORDS_AT_ONCE {
            if !self.assignment.has_room() {
                break;
            }
            let Some(Some(record)) = records.next().now_or_never() else {
                break;
            };
            self.take_record(record)?;
        }
        Ok(())
    }

    fn take_record(&mut self, record: KafkaResult<BorrowedMessage<'_>>) -> Result<(), Failure> {
        match record {
            Ok(record) => {
                self.add_to_batch(&record);
                Ok(())
            }
            Err(KafkaError::MessageConsumptionFatal(code)) => Err(Failure::Client(code)),
            Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
            )) => {
                tracing::warn!("kafka does not have the next offset of a partition: verifying all positions");
                self.rejoin();
                Ok(())
            }
            Err(err) => {
                self.log_once(&err);
                Ok(())
            }
        }
    }

    fn add_to_batch(&mut self, record: &BorrowedMessage<'_>) {
        let partition = (record.topic(), record.partition());
        let Ok(index) = self
            .places
            .binary_search_by(|place| (&*place.topic, place.partition).cmp(&partition))
        else {
            // The client had fetched this record under the former assignment. The builder that holds the partition now reads it.
            return;
        };
        let Some(contract) = self.contracts.get(record.topic()) else {
            // No view reads this topic any more, so this process has just left the group to join it with other topics.
            return;
        };
        let (offset, epoch) = (record.offset(), kafka_client::leader_epoch(record));
        if !self.parting.may_take(&self.places[index], offset, epoch) {
            self.assignment.hold_back(&self.places[index], true);
            return;
        }
        let record_of_partition = Record {
            offset,
            read_us: clock::now_us(),
            epoch,
            key: record::waiting_key(record.key()),
            event: record::event(contract, record),
            letter: |reason| record::letter(record, reason),
        };
        if let Some(reason) = self.assignment.take(&self.places[index], record_of_partition) {
            measure::dead_letter(record.topic());
            tracing::error!(
                topic = record.topic(),
                partition = record.partition(),
                offset = record.offset(),
                reason,
                "an event cannot be applied: it goes to view_dead_letters, and its key waits behind it"
            );
        }
    }

    /// Logs an error, but only once while it repeats. librdkafka reports an error again and again for as long as it lasts.
    fn log_once(&mut self, err: &KafkaError) {
        let error = err.to_string();
        if self.last_error != error {
            tracing::warn!(error, "kafka reports an error; it is tried again");
            self.last_error = error;
        }
    }

    /// Makes Kafka send each partition from the next offset that is to be read. That can be earlier than what Kafka would have sent next.
    pub(super) fn seek_to_next_reads(&mut self) {
        if let Err(err) = kafka::assign(&self.consumer, self.assignment.next_reads()) {
            tracing::warn!(error = %err, "partitions cannot be assigned: joining the group again");
            self.rejoin();
        }
    }
}
