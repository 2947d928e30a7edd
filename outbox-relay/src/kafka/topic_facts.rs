//! What Kafka says of topics: their ids, partitions and replicas, by DescribeTopics.
//!
//! A topic that was deleted and made anew has the same name and another id; nothing else tells the two apart. The safe wrapper has no
//! DescribeTopics, so this module calls librdkafka's, with a queue of its own for the answer.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaRespErr;

use super::health::Quiet;
use super::settings::KafkaSettings;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// librdkafka gives up by itself before; should it not, the call ends here.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long librdkafka is waited for at a time; its errors and expiring tokens are served in between.
const STEP: Duration = Duration::from_millis(100);

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFacts {
    /// Kafka's id as its tools print it; `None` where the cluster does not tell (brokers before 2.8, and those with ZooKeeper before 3.1).
    pub id: Option<String>,
    pub partitions: i32,
    /// The fewest replicas that a partition has.
    pub replicas: i32,
}

/// The client that asks; it may be kept and asked again.
pub struct TopicAsker(BaseConsumer<Quiet>);

impl TopicAsker {
    /// Makes a client. It connects when it is asked.
    ///
    /// # Errors
    /// A wrong setting, or a token that cannot be used now.
    pub fn open(settings: &KafkaSettings) -> anyhow::Result<Self> {
        Ok(Self(settings.open_reader("read_committed")?))
    }

    /// Those of `names` that exist. Blocks.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub fn ask<'n>(&self, names: impl IntoIterator<Item = &'n String>) -> anyhow::Result<BTreeMap<String, TopicFacts>> {
        facts_by(&self.0, names)
    }
}

/// As [`TopicAsker::ask`], by a client for this question alone, on a thread of its own.
///
/// # Errors
/// As [`TopicAsker::ask`].
pub async fn topic_facts(settings: &KafkaSettings, names: Vec<String>) -> anyhow::Result<BTreeMap<String, TopicFacts>> {
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || TopicAsker::open(&settings)?.ask(&names))
        .await
        .context("task that describes topics")?
}

/// As [`TopicAsker::ask`], by a client that is there already.
pub(super) fn facts_by<'n>(
    client: &BaseConsumer<Quiet>,
    names: impl IntoIterator<Item = &'n String>,
) -> anyhow::Result<BTreeMap<String, TopicFacts>> {
    let names = names.into_iter().map(|name| CString::new(name.as_str()));
    let names: Vec<CString> = names
        .collect::<Result<_, _>>()
        .context("a topic's name has a zero byte")?;
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    describe(client, &names).context("cannot describe topics")?.facts()
}

/// Asks and waits for the answer.
#[expect(unsafe_code, reason = "the safe wrapper has no DescribeTopics")]
fn describe(client: &BaseConsumer<Quiet>, names: &[CString]) -> anyhow::Result<Answer> {
    let native_client = client.client().native_ptr();
    // SAFETY: the client is valid as long as the consumer, which is borrowed here.
    let queue = Queue(
        NonNull::new(unsafe { native::rd_kafka_queue_new(native_client) }).context("kafka's client gives no queue")?,
    );
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: the pointers are to texts that end with a zero byte and outlive the call, which copies them.
    let topics = unsafe { native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
    let topics = Topics(NonNull::new(topics).context("kafka's client takes no topics")?);
    // SAFETY: the client is valid; the kind of request is the one that is made.
    let options = unsafe {
        native::rd_kafka_AdminOptions_new(
            native_client,
            native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        )
    };
    let options = Options(NonNull::new(options).context("kafka's client takes no options")?);
    let timeout_ms = i32::try_from(REQUEST_TIMEOUT.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the options are valid; no text is wanted of an error, whose buffer may then be null and empty.
    let set = unsafe {
        native::rd_kafka_AdminOptions_set_request_timeout(options.0.as_ptr(), timeout_ms, ptr::null_mut(), 0)
    };
    ensure!(
        set == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
        "kafka's client refuses the timeout"
    );
    // SAFETY: all four are valid; librdkafka copies what it needs, and keeps the queue for as long as it may answer there.
    unsafe {
        native::rd_kafka_DescribeTopics(native_client, topics.0.as_ptr(), options.0.as_ptr(), queue.0.as_ptr());
    }
    let started = Instant::now();
    while started.elapsed() < ANSWER_TIMEOUT {
        // Serves tokens that expire, and errors; the client reads no topic meanwhile.
        if let Some(Err(err)) = client.poll(Duration::ZERO) {
            tracing::debug!(error = %err, "kafka");
        }
        let step_ms = i32::try_from(STEP.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is valid, and the event is ours until it is destroyed.
        let event = unsafe { native::rd_kafka_queue_poll(queue.0.as_ptr(), step_ms) };
        if let Some(event) = NonNull::new(event) {
            return Ok(Answer(event));
        }
    }
    bail!("kafka does not answer")
}

/// The event that answers the request.
struct Answer(NonNull<native::rd_kafka_event_t>);

impl Answer {
    #[expect(unsafe_code, reason = "the answer is in librdkafka's memory")]
    fn facts(&self) -> anyhow::Result<BTreeMap<String, TopicFacts>> {
        let event = self.0.as_ptr();
        // SAFETY: the event is ours and valid until it is destroyed; all that is read from it lives as long.
        unsafe {
            if native::rd_kafka_event_error(event) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                bail!(
                    "cannot describe topics: {}",
                    text(native::rd_kafka_event_error_string(event))
                );
            }
            let result = native::rd_kafka_event_DescribeTopics_result(event);
            ensure!(!result.is_null(), "kafka's client answers something else");
            let mut count = 0;
            let topics = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            let mut facts = BTreeMap::new();
            for topic in slice(topics, count) {
                let name = text(native::rd_kafka_TopicDescription_name(*topic));
                let code = native::rd_kafka_error_code(native::rd_kafka_TopicDescription_error(*topic));
                match RDKafkaErrorCode::from(code) {
                    RDKafkaErrorCode::NoError => {
                        facts.insert(name, facts_of(*topic));
                    }
                    RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {}
                    code => bail!("topic `{name}`: {code}"),
                }
            }
            Ok(facts)
        }
    }
}

/// # Safety
/// The description has to be valid.
#[expect(unsafe_code, reason = "the description is in librdkafka's memory")]
unsafe fn facts_of(topic: *const native::rd_kafka_TopicDescription_t) -> TopicFacts {
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
            i32::try_from(replicas).unwrap_or(i32::MAX)
        });
        TopicFacts {
            id: has_id.then(|| text(native::rd_kafka_Uuid_base64str(id))),
            partitions: i32::try_from(count).unwrap_or(i32::MAX),
            replicas: replicas.min().unwrap_or(0),
        }
    }
}

/// # Safety
/// The pointer has to be null, or to a text that ends with a zero byte.
#[expect(unsafe_code, reason = "the text is in librdkafka's memory")]
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// The pointer has to be null, or to so many elements, which live as long as `'e`.
#[expect(unsafe_code, reason = "the elements are in librdkafka's memory")]
unsafe fn slice<'e, T>(first: *const T, count: usize) -> &'e [T] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(first, count) }
}

struct Queue(NonNull<native::rd_kafka_queue_t>);
struct Topics(NonNull<native::rd_kafka_TopicCollection_t>);
struct Options(NonNull<native::rd_kafka_AdminOptions_t>);

macro_rules! given_back {
    ($($kind:ident: $destroy:ident;)*) => {
        $(impl Drop for $kind {
            #[expect(unsafe_code, reason = "what librdkafka gave has to be given back")]
            fn drop(&mut self) {
                // SAFETY: it is ours, and given back once.
                unsafe { native::$destroy(self.0.as_ptr()) };
            }
        })*
    };
}

given_back! {
    Queue: rd_kafka_queue_destroy;
    Topics: rd_kafka_TopicCollection_destroy;
    Options: rd_kafka_AdminOptions_destroy;
    Answer: rd_kafka_event_destroy;
}
