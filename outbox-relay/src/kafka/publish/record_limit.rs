//! How large a record a topic takes.
//!
//! The broker measures whole batches against the topic's `max.message.bytes` and refuses one that is larger, whichever of its records is to
//! blame; librdkafka does not cut it in two, as Kafka's own client does. So the limit is asked for before anything is sent there: a row
//! that is larger is found by itself, and batches are made no larger than the limit.

use rdkafka::message::{Headers, OwnedHeaders};

/// A record batch's header: base offset to record count (<https://kafka.apache.org/documentation/#recordbatch>).
const BATCH_HEADER_BYTES: usize = 61;

/// Bytes of a batch that holds this record alone, uncompressed.
#[must_use]
pub fn batch_bytes(key: Option<&[u8]>, value: Option<&[u8]>, headers: &OwnedHeaders) -> u64 {
    let field = |bytes: Option<&[u8]>| bytes.map_or(1, |bytes| varint_bytes(bytes.len()) + bytes.len());
    let headers_bytes: usize = headers
        .iter()
        .map(|header| field(Some(header.key.as_bytes())) + field(header.value))
        .sum();
    // Attributes, time stamp and offset relative to the batch's are a byte each.
    let body = 3 + field(key) + field(value) + varint_bytes(headers.count()) + headers_bytes;
    (BATCH_HEADER_BYTES + varint_bytes(body) + body) as u64
}

/// Bytes of a length as a zigzag varint.
fn varint_bytes(length: usize) -> usize {
    let bits = (usize::BITS - (length << 1).leading_zeros()).max(1);
    bits.div_ceil(7) as usize
}

#[cfg(test)]
mod tests {
    use rdkafka::message::OwnedHeaders;

    use super::{batch_bytes, varint_bytes};
    use crate::kafka::with_header;

    #[test]
    fn lengths_take_a_byte_for_each_seven_bits_after_zigzag() {
        assert_eq!(
            [0, 63, 64, 8_191, 8_192, 1_000_000].map(varint_bytes),
            [1, 1, 2, 2, 3, 3]
        );
    }

    #[test]
    fn a_batch_of_one_is_counted_as_kafka_writes_it() {
        assert_eq!(batch_bytes(None, None, &OwnedHeaders::new()), 61 + 1 + 6);
        let headers = with_header(OwnedHeaders::new(), "id", Some("abcd"));
        assert_eq!(
            batch_bytes(Some(b"k"), Some(b"vv"), &headers),
            61 + 1 + 3 + 2 + 3 + 1 + 3 + 5
        );
    }
}
