//! The partition of a key, as Kafka's Java client chooses it.

/// Partition of `key` in a topic of `partition_count` partitions: the choice of Java's default partitioner. So our records and those of a Java
/// producer are in the same partition if they have the same key.
#[must_use]
pub fn partition_of_key(key: &[u8], partition_count: i32) -> i32 {
    // Java's `toPositive`: the sign bit is cleared, not negated.
    (murmur2(key) & 0x7FFF_FFFF).cast_signed() % partition_count
}

/// The murmur2 hash of Kafka's `org.apache.kafka.common.utils.Utils`.
#[must_use]
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5BD1_E995;
    // Kafka takes no key of more than 2 GiB, so the length always fits.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut hash = 0x9747_B28C ^ length;
    let mut words = data.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::{murmur2, partition_of_key};

    /// The values of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_as_java_does() {
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ] {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), hash, "{text}");
        }
    }

    #[test]
    fn a_key_goes_where_the_recorded_debezium_sent_it() {
        assert_eq!(partition_of_key(b"k1", 8), 1);
    }
}
