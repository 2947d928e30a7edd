//! Where partitions end, for those who read what is committed and for those who read all, by ListOffsets.
//!
//! The safe wrapper has no ListOffsets, and asks with one isolation level a client; both answers are wanted here, from one client.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::admin_request::{AdminRequest, slice, text};

/// Where a partition ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    pub topic: String,
    pub partition: i32,
    /// The last stable offset: an open transaction that begins here hides what lies behind.
    pub stable: i64,
    /// The high watermark.
    pub all: i64,
}

/// The ends of these partitions, where both could be learned: one that has no leader, or whose leader does not answer, is left out. Blocks.
///
/// # Errors
/// Kafka does not answer, or refuses; a partition does not exist.
pub fn ends_by<'p>(
    client: &BaseConsumer<impl ConsumerContext>,
    partitions: impl IntoIterator<Item = (&'p str, i32)> + Clone,
) -> anyhow::Result<Vec<Ends>> {
    use native::rd_kafka_IsolationLevel_t::{
        RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED, RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED,
    };
    // What is stable is asked for first: between the two it only moves on, so that nothing looks hidden that is not.
    let stable = latest(client, partitions.clone(), RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED)?;
    let all = latest(client, partitions, RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED)?;
    let both = stable.into_iter().filter_map(|(place, stable)| {
        let all = *all.get(&place)?;
        let (topic, partition) = place;
        Some(Ends {
            topic,
            partition,
            stable,
            all,
        })
    });
    Ok(both.collect())
}

#[expect(unsafe_code, reason = "the safe wrapper has no ListOffsets")]
fn latest<'p>(
    client: &BaseConsumer<impl ConsumerContext>,
    partitions: impl IntoIterator<Item = (&'p str, i32)>,
    isolation_level: native::rd_kafka_IsolationLevel_t,
) -> anyhow::Result<BTreeMap<(String, i32), i64>> {
    let mut asked = TopicPartitionList::new();
    for (topic, partition) in partitions {
        asked
            .add_partition_offset(topic, partition, Offset::End)
            .context("invalid offset")?;
    }
    if asked.count() == 0 {
        return Ok(BTreeMap::new());
    }
    let request = AdminRequest::new(client, native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS)?;
    // SAFETY: the options are valid, and of a kind that knows the setting.
    let refused = unsafe { native::rd_kafka_AdminOptions_set_isolation_level(request.options(), isolation_level) };
    ensure!(refused.is_null(), "kafka's client refuses the isolation level");
    let answer = request
        .answer(|client, options, queue| {
            // SAFETY: all four are valid; librdkafka copies the list, and keeps the queue for as long as it may answer there.
            unsafe { native::rd_kafka_ListOffsets(client, asked.ptr(), options, queue) };
        })
        .context("cannot ask where partitions end")?;
    let mut offsets = BTreeMap::new();
    // SAFETY: the event is the answer's, and valid as long as that; all that is read from it lives as long.
    unsafe {
        let result = native::rd_kafka_event_ListOffsets_result(answer.event());
        ensure!(!result.is_null(), "kafka's client answers something else");
        let mut count = 0;
        let infos = native::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
        for info in slice(infos, count) {
            let place = &*native::rd_kafka_ListOffsetsResultInfo_topic_partition(*info);
            let name = text(place.topic);
            match RDKafkaErrorCode::from(place.err) {
                // Where a leader did not answer in time, librdkafka says neither so nor an offset.
                RDKafkaErrorCode::NoError if place.offset < 0 => {}
                RDKafkaErrorCode::NoError => {
                    offsets.insert((name, place.partition), place.offset);
                }
                code @ (RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::TopicAuthorizationFailed) => {
                    bail!("partition {} of topic `{name}`: {code}", place.partition);
                }
                // It has no leader just now, or has just got one.
                _ => {}
            }
        }
    }
    Ok(offsets)
}
