//! What Kafka says of topics: their ids, partitions and replicas, by DescribeTopics.
//!
//! A topic that was deleted and made anew has the same name and another id; nothing else tells the two apart. The safe wrapper has no
//! DescribeTopics, so this module calls librdkafka's.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::ptr::NonNull;
use std::time::Duration;

use anyhow::{Context, ensure};
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;

use crate::admin_request::{AdminRequest, Answer, destroyed_on_drop, serve_events, slice, text};

const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFacts {
    /// Kafka's id as its tools print it; `None` where the cluster does not tell (brokers before 2.8, and those with ZooKeeper before 3.1).
    pub id: Option<String>,
    pub partitions: i32,
    /// The fewest replicas that a partition has.
    pub replicas: i32,
}

/// Those of `names` that exist. Blocks.
///
/// # Errors
/// Kafka does not answer, or refuses.
pub fn facts_by<'n>(
    client: &BaseConsumer<impl ConsumerContext>,
    names: impl IntoIterator<Item = &'n String>,
) -> anyhow::Result<BTreeMap<String, TopicFacts>> {
    let names = names.into_iter().map(|name| CString::new(name.as_str()));
    let names: Vec<CString> = names
        .collect::<Result<_, _>>()
        .context("a topic's name has a zero byte")?;
    let Some(first) = names.first() else {
        return Ok(BTreeMap::new());
    };
    // librdkafka sends DescribeTopics to the broker that it was last told to be the controller, and waits for that one also where it is away.
    serve_events(client);
    client
        .fetch_metadata(Some(&first.to_string_lossy()), METADATA_TIMEOUT)
        .context("kafka does not tell which brokers there are")?;
    facts_in(&describe(client, &names).context("cannot describe topics")?)
}

/// Asks and waits for the answer.
#[expect(unsafe_code, reason = "the safe wrapper has no DescribeTopics")]
fn describe(client: &BaseConsumer<impl ConsumerContext>, names: &[CString]) -> anyhow::Result<Answer> {
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: the pointers are to texts that end with a zero byte and outlive the call, which copies them.
    let topics = unsafe { native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
    let topics = Topics(NonNull::new(topics).context("kafka's client takes no topics")?);
    let request = AdminRequest::new(client, native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS)?;
    request.answer(|client, options, queue| {
        // SAFETY: all four are valid; librdkafka copies what it needs, and keeps the queue for as long as it may answer there.
        unsafe { native::rd_kafka_DescribeTopics(client, topics.0.as_ptr(), options, queue) };
    })
}

#[expect(unsafe_code, reason = "the answer is in librdkafka's memory")]
fn facts_in(answer: &Answer) -> anyhow::Result<BTreeMap<String, TopicFacts>> {
    // SAFETY: the event is the answer's, and valid as long as that; all that is read from it lives as long.
    unsafe {
        let result = native::rd_kafka_event_DescribeTopics_result(answer.event());
        ensure!(!result.is_null(), "kafka's client answers something else");
        let mut count = 0;
        let topics = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        let mut facts = BTreeMap::new();
        for topic in slice(topics, count) {
            let name = text(native::rd_kafka_TopicDescription_name(*topic));
            let code = native::rd_kafka_error_code(native::rd_kafka_TopicDescription_error(*topic));
            match RDKafkaErrorCode::from(code) {
                RDKafkaErrorCode::NoError => {
                    facts.insert(name, facts_of(*topic)?);
                }
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {}
                // The code stays in the chain: `Refused` looks for it.
                code => return Err(anyhow::Error::new(code).context(format!("topic `{name}`"))),
            }
        }
        Ok(facts)
    }
}

/// # Safety
/// The description has to be valid.
#[expect(unsafe_code, reason = "the description is in librdkafka's memory")]
unsafe fn facts_of(topic: *const native::rd_kafka_TopicDescription_t) -> anyhow::Result<TopicFacts> {
    // SAFETY: the caller's; all that is read belongs to the description.
    unsafe {
        let id = native::rd_kafka_TopicDescription_topic_id(topic);
        // All zero is how a cluster without ids answers.
        let has_id = !id.is_null()
            && (
                native::rd_kafka_Uuid_most_significant_bits(id),
                native::rd_kafka_Uuid_least_significant_bits(id),
            ) != (0, 0);
        let mut count = 0;
        let partitions = native::rd_kafka_TopicDescription_partitions(topic, &raw mut count);
        let replicas = slice(partitions, count).iter().map(|partition| {
            let mut replicas = 0;
            native::rd_kafka_TopicPartitionInfo_replicas(*partition, &raw mut replicas);
            replicas
        });
        // A topic has a partition always; one without would have no replica either.
        let replicas = replicas.min().unwrap_or(0);
        Ok(TopicFacts {
            id: has_id.then(|| text(native::rd_kafka_Uuid_base64str(id))),
            partitions: i32::try_from(count).context("too many partitions")?,
            replicas: i32::try_from(replicas).context("too many replicas")?,
        })
    }
}

struct Topics(NonNull<native::rd_kafka_TopicCollection_t>);

destroyed_on_drop! {
    Topics: rd_kafka_TopicCollection_destroy;
}
