//! Where partitions begin or end, by ListOffsets: one request for all of them, with an answer for each.
//!
//! The safe wrapper does not have this request. It asks for one partition at a time, and always with the isolation level of its client.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::admin_request::{AdminRequest, slice, text};

/// The kind of reader for whom the end of a partition is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A reader who sees only committed records. For it, the end is the last stable offset.
    Committed,
    /// A reader who sees all records. For it, the end is the high watermark.
    All,
}

/// An offset that the leader of a partition has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ToldOffset {
    pub(super) offset: i64,
    /// Only for an end: the leader's epoch now. `None` if the cluster does not tell it.
    pub(super) epoch: Option<i32>,
}

/// Where these partitions begin (`Offset::Beginning`) or end (`Offset::End`), or why that could not be learned. Blocks.
///
/// # Errors
/// Kafka does not answer, or the topic may not be read.
#[expect(unsafe_code, reason = "the safe wrapper has no ListOffsets")]
pub(super) fn list_offsets<'p>(
    client: &BaseConsumer<impl ConsumerContext>,
    partitions: impl IntoIterator<Item = (&'p str, i32)>,
    wanted: Offset,
    reader: Reader,
) -> anyhow::Result<BTreeMap<(String, i32), Result<ToldOffset, RDKafkaErrorCode>>> {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition_offset(topic, partition, wanted)
            .context("invalid offset")?;
    }
    if list.count() == 0 {
        return Ok(BTreeMap::new());
    }
    let request = AdminRequest::new(client, native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS)?;
    let isolation_level = match reader {
        Reader::Committed => native::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
        Reader::All => native::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED,
    };
    // SAFETY: the options are valid, and of a kind that knows the setting.
    let refused = unsafe { native::rd_kafka_AdminOptions_set_isolation_level(request.options(), isolation_level) };
    ensure!(refused.is_null(), "kafka's client refuses the isolation level");
    let answer = request
        .answer(|client, options, queue| {
            // SAFETY: all four are valid; librdkafka copies the list, and keeps the queue for as long as it may answer there.
            unsafe { native::rd_kafka_ListOffsets(client, list.ptr(), options, queue) };
        })
        .context("cannot ask where partitions begin and end")?;
    let mut offsets = BTreeMap::new();
    // SAFETY: the event belongs to the answer and is valid as long as it. This is also true of all that is read from the event.
    unsafe {
        let result = native::rd_kafka_event_ListOffsets_result(answer.event());
        ensure!(!result.is_null(), "kafka's client answers something else");
        let mut count = 0;
        let infos = native::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
        for info in slice(infos, count) {
            let info_partition = &*native::rd_kafka_ListOffsetsResultInfo_topic_partition(*info);
            let name = text(info_partition.topic);
            let told = match RDKafkaErrorCode::from(info_partition.err) {
                // If a leader did not answer in time, librdkafka gives neither an error nor an offset.
                RDKafkaErrorCode::NoError if info_partition.offset < 0 => Err(RDKafkaErrorCode::RequestTimedOut),
                RDKafkaErrorCode::NoError => {
                    let epoch = native::rd_kafka_topic_partition_get_leader_epoch(&raw const *info_partition);
                    Ok(ToldOffset {
                        offset: info_partition.offset,
                        epoch: (epoch >= 0).then_some(epoch),
                    })
                }
                code @ RDKafkaErrorCode::TopicAuthorizationFailed => {
                    bail!("partition {} of topic `{name}`: {code}", info_partition.partition);
                }
                code => Err(code),
            };
            offsets.insert((name, info_partition.partition), told);
        }
    }
    Ok(offsets)
}
