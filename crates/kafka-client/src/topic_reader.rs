//! Reads partitions of a topic, and reports the offset at which the broker said that a partition ends.
//!
//! A program that must read a whole history needs this offset. The answer to a Fetch says where a partition ends. A broker that lags behind (a
//! follower, or a leader that was just deposed) says an end that is too early. So the program asks for the end beforehand, and reads on until a
//! broker has said an end at that offset or beyond.
//!
//! The consumer's own position cannot be used. Transaction markers take offsets and are never handed out. If a marker comes last, the position stays
//! below the end. The safe wrapper reports that an end was reached, but not at which offset. So this module reads librdkafka's queue itself.

use std::ffi::{CStr, CString, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::time::Duration;

use anyhow::Context;
use rdkafka::TopicPartitionList;
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use crate::assign::{assign, stop};
use crate::record_headers::{RecordHeader, RecordHeaders};

/// Reads some partitions of one topic, each from a given offset on.
pub struct TopicReader<'c, C: ConsumerContext> {
    consumer: &'c BaseConsumer<C>,
    queue: Queue<'c>,
}

/// What comes next.
pub enum Next<'q> {
    Record(Record<'q>),
    /// The broker says that the partition ends here: the next record, or marker, will have this offset.
    End {
        partition: i32,
        offset: i64,
    },
    /// Nothing came within the wait.
    Nothing,
}

/// A record, in librdkafka's memory.
pub struct Record<'q> {
    message: NonNull<native::rd_kafka_message_t>,
    _queue: PhantomData<&'q Queue<'q>>,
}

/// A queue of librdkafka's, which must not outlive its client.
struct Queue<'c> {
    native: NonNull<native::rd_kafka_queue_t>,
    _client: PhantomData<&'c ()>,
}

impl<'c, C: ConsumerContext> TopicReader<'c, C> {
    /// Reads `partitions`, each from its offset on. Whatever the consumer read before is stopped.
    ///
    /// From then on the same client can read these partitions only by a `TopicReader`. librdkafka never forwards their queues to the consumer's own
    /// queue again, so `poll` would get nothing from them.
    ///
    /// # Errors
    /// librdkafka refuses.
    #[expect(
        unsafe_code,
        reason = "the safe wrapper keeps the offset of a partition's end to itself"
    )]
    pub fn start(consumer: &'c BaseConsumer<C>, topic: &str, partitions: &[(i32, i64)]) -> anyhow::Result<Self> {
        let name = CString::new(topic).context("a topic's name has no zero byte")?;
        stop(consumer).context("the partitions that were read before cannot be given back")?;
        let client = consumer.client().native_ptr();
        // SAFETY: the client is valid as long as the consumer, which is borrowed for as long as the queue lives.
        let queue = Queue::from_native(unsafe { native::rd_kafka_queue_new(client) })?;
        let mut assignment = TopicPartitionList::new();
        for (partition, offset) in partitions {
            // The queue is forwarded before the assignment, so that nothing goes to the consumer's own queue. librdkafka does not change a queue that
            // was forwarded by hand.
            // SAFETY: as above; the name outlives the call.
            let source =
                Queue::from_native(unsafe { native::rd_kafka_queue_get_partition(client, name.as_ptr(), *partition) })?;
            // SAFETY: both queues are valid; librdkafka keeps the destination alive for as long as something is forwarded to it.
            unsafe { native::rd_kafka_queue_forward(source.native.as_ptr(), queue.native.as_ptr()) };
            assignment
                .add_partition_offset(topic, *partition, rdkafka::Offset::Offset(*offset))
                .context("invalid offset")?;
        }
        assign(consumer, &assignment).context("cannot read the topic")?;
        Ok(Self { consumer, queue })
    }

    /// The next record, or end of a partition. Blocks for `wait` at most.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    #[expect(
        unsafe_code,
        reason = "the safe wrapper keeps the offset of a partition's end to itself"
    )]
    pub fn next(&self, wait: Duration) -> anyhow::Result<Next<'_>> {
        // Serves the events that belong to no partition: tokens that expire, and errors.
        if let Some(Err(err)) = without_lost_brokers(self.consumer.poll(Duration::ZERO)) {
            return Err(err.into());
        }
        // A longer wait ends after 24 days, and the caller asks again.
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is valid, and the message is ours until it is destroyed.
        let message = unsafe { native::rd_kafka_consume_queue(self.queue.native.as_ptr(), wait_ms) };
        let Some(message) = NonNull::new(message) else {
            return Ok(Next::Nothing);
        };
        let record = Record {
            message,
            _queue: PhantomData,
        };
        match record.native().err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(Next::Record(record)),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF => Ok(Next::End {
                partition: record.partition(),
                offset: record.offset(),
            }),
            // As in `without_lost_brokers`.
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT => Ok(Next::Nothing),
            code => Err(KafkaError::MessageConsumption(RDKafkaErrorCode::from(code)).into()),
        }
    }
}

impl Queue<'_> {
    fn from_native(queue: *mut native::rd_kafka_queue_t) -> anyhow::Result<Self> {
        Ok(Self {
            native: NonNull::new(queue).context("kafka's client gives no queue")?,
            _client: PhantomData,
        })
    }
}

impl Drop for Queue<'_> {
    #[expect(unsafe_code, reason = "a queue of librdkafka's has to be given back")]
    fn drop(&mut self) {
        // SAFETY: it was made by librdkafka for us, and is given back once.
        unsafe { native::rd_kafka_queue_destroy(self.native.as_ptr()) };
    }
}

impl Record<'_> {
    pub fn partition(&self) -> i32 {
        self.native().partition
    }

    pub fn offset(&self) -> i64 {
        self.native().offset
    }

    pub fn key(&self) -> Option<&[u8]> {
        self.bytes(self.native().key, self.native().key_len)
    }

    /// `None` is a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        self.bytes(self.native().payload, self.native().len)
    }

    /// The record's time in milliseconds since 1970, if it has one.
    #[expect(unsafe_code, reason = "the record is in librdkafka's memory")]
    pub fn timestamp_ms(&self) -> Option<i64> {
        // SAFETY: the message is valid; the kind of time may be left out.
        let timestamp_ms = unsafe { native::rd_kafka_message_timestamp(self.message.as_ptr(), ptr::null_mut()) };
        (timestamp_ms >= 0).then_some(timestamp_ms)
    }

    /// The value of a header, if the record has the header and its value is not null.
    #[expect(unsafe_code, reason = "the record is in librdkafka's memory")]
    pub fn header(&self, name: &CStr) -> Option<&[u8]> {
        let mut headers = ptr::null_mut();
        let (mut value, mut length) = (ptr::null::<c_void>(), 0);
        // SAFETY: the message is valid, and owns its headers, which live as long as it does.
        let found = unsafe {
            native::rd_kafka_message_headers(self.message.as_ptr(), &raw mut headers)
                == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
                && native::rd_kafka_header_get(headers, 0, name.as_ptr(), &raw mut value, &raw mut length)
                    == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
        };
        if found { self.bytes(value, length) } else { None }
    }

    /// All headers, in their order: each with its name and its value, which may be null. Both may be any bytes, also those that are no text.
    #[expect(unsafe_code, reason = "the record is in librdkafka's memory")]
    pub fn headers(&self) -> Vec<RecordHeader<'_>> {
        // SAFETY: the message is valid for as long as the record is borrowed.
        unsafe { RecordHeaders::from_native(self.message) }.collect()
    }

    #[expect(unsafe_code, reason = "the record is in librdkafka's memory")]
    fn native(&self) -> &native::rd_kafka_message_t {
        // SAFETY: the message is ours, and valid until it is destroyed.
        unsafe { self.message.as_ref() }
    }

    #[expect(unsafe_code, reason = "the record is in librdkafka's memory")]
    fn bytes(&self, start: *const c_void, length: usize) -> Option<&[u8]> {
        if start.is_null() {
            return None;
        }
        // SAFETY: librdkafka gives this length with this pointer, into memory that lives as long as the message.
        Some(unsafe { std::slice::from_raw_parts(start.cast(), length) })
    }
}

impl Drop for Record<'_> {
    #[expect(unsafe_code, reason = "a message of librdkafka's has to be given back")]
    fn drop(&mut self) {
        // SAFETY: it is ours, and given back once.
        unsafe { native::rd_kafka_message_destroy(self.message.as_ptr()) };
    }
}

/// Drops the error that a broker cannot be reached. librdkafka goes on trying, and asks another broker as soon as that one leads the partition. Every
/// caller limits how long nothing may come.
fn without_lost_brokers<M>(polled: Option<KafkaResult<M>>) -> Option<KafkaResult<M>> {
    polled.filter(|polled| {
        let code = polled.as_ref().err().and_then(KafkaError::rdkafka_error_code);
        code != Some(RDKafkaErrorCode::BrokerTransportFailure)
    })
}
