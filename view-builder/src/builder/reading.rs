//! Records of Kafka become the next batch.

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

/// Records taken before the loop looks at its other arms again. Looking costs more than taking one record, and 500 take a millisecond or two, so
/// nothing else waits for long.
const RECORDS_AT_ONCE: usize = 500;

impl Builder {
    /// Takes this record, and those behind it that are there already.
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
                self.take(&record);
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

    fn take(&mut self, record: &BorrowedMessage<'_>) {
        let at = (record.topic(), record.partition());
        let Ok(index) = self
            .places
            .binary_search_by(|place| (&*place.topic, place.partition).cmp(&at))
        else {
            // A record of the assignment before, which the client had fetched already. Its new holder reads it.
            return;
        };
        let Some(contract) = self.contracts.get(record.topic()) else {
            // No view has this topic any more, so this process has just left the group to get other topics.
            return;
        };
        let (offset, epoch) = (record.offset(), kafka_client::leader_epoch(record));
        if !self.parting.may_take(&self.places[index], offset, epoch) {
            self.assignment.hold_back(&self.places[index], true);
            return;
        }
        let taken = Record {
            offset,
            read_us: clock::now_us(),
            epoch,
            key: record::waiting_key(record.key()),
            event: record::event(contract, record),
            letter: |reason| record::letter(record, reason),
        };
        if let Some(reason) = self.assignment.take(&self.places[index], taken) {
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

    /// librdkafka repeats an error for as long as it lasts.
    fn log_once(&mut self, err: &KafkaError) {
        let error = err.to_string();
        if self.last_error != error {
            tracing::warn!(error, "kafka reports an error; it is tried again");
            self.last_error = error;
        }
    }

    /// Reads every partition from its next offset on, which may be an earlier one than Kafka would send next.
    pub(super) fn read_on(&mut self) {
        if let Err(err) = kafka::assign(&self.consumer, self.assignment.next_reads()) {
            tracing::warn!(error = %err, "partitions cannot be assigned: joining the group again");
            self.rejoin();
        }
    }
}
