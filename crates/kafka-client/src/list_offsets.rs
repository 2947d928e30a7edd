//! Where partitions begin or end, by ListOffsets: one request for all of them, with an answer for each.
//!
//! The safe wrapper has no ListOffsets. It asks for one partition at a time, with one isolation level a client.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::admin_request::{AdminRequest, slice, text};

/// Whose end of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Of a reader who sees committed records only: the last stable offset.
    Committed,
    /// Of a reader who sees all records: the high watermark.
    All,
}

/// What a leader tells of an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) offset: i64,
    /// Of the end: the epoch in which the leader leads. None where the cluster does not tell.
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
) -> anyhow::Result<BTreeMap<(String, i32), Result<Told, RDKafkaErrorCode>>> {
    let mut asked = TopicPartitionList::new();
    for (topic, partition) in partitions {
        asked
            .add_partition_offset(topic, partition, wanted)
            .context("invalid offset")?;
    }
    if asked.count() == 0 {
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
            unsafe { native::rd_kafka_ListOffsets(client, asked.ptr(), options, queue) };
        })
        .context("cannot ask where partitions begin and end")?;
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
            let told = match RDKafkaErrorCode::from(place.err) {
                // Where a leader did not answer in time, librdkafka says neither so nor an offset.
                RDKafkaErrorCode::NoError if place.offset < 0 => Err(RDKafkaErrorCode::RequestTimedOut),
                RDKafkaErrorCode::NoError => {
                    let epoch = native::rd_kafka_topic_partition_get_leader_epoch(&raw const *place);
                    Ok(Told {
                        offset: place.offset,
                        epoch: (epoch >= 0).then_some(epoch),
                    })
                }
                code @ RDKafkaErrorCode::TopicAuthorizationFailed => {
                    bail!("partition {} of topic `{name}`: {code}", place.partition);
                }
                code => Err(code),
            };
            offsets.insert((name, place.partition), told);
        }
    }
    Ok(offsets)
}
