//! The same client reads a topic again, at once and from the beginning. It does not matter where the reading before was given up.

use std::time::{Duration, Instant};

use kafka_client::{ClientSettings, Next, ReaderContext, TopicReader};
use rdkafka::consumer::BaseConsumer;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use stack::{Kafka, KafkaOptions};

const TOPIC: &str = "orders";
const PARTITIONS: i32 = 2;
/// Records of each partition.
const RECORDS: usize = 300;
const READINGS: usize = 300;
const POLL: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_secs(30);

fn produce(settings: &ClientSettings) {
    let producer: BaseProducer = settings
        .open_producer(&settings.begin("writer"), DefaultProducerContext)
        .expect("a producer");
    for partition in 0..PARTITIONS {
        for _ in 0..RECORDS {
            let record = BaseRecord::<str, str>::to(TOPIC).partition(partition).payload("1");
            producer.send(record).map_err(|(err, _)| err).expect("room");
        }
    }
    producer.flush(DEADLINE).expect("an answer");
}

fn open(settings: &ClientSettings) -> BaseConsumer<ReaderContext> {
    let mut config = settings.begin("reader");
    config.set("group.id", "reader").set("enable.partition.eof", "true");
    // A broker that waits for records would delay the next reading.
    config.set("fetch.wait.max.ms", "10");
    settings.add_consumers_properties(&mut config);
    settings.open_reader(&config).expect("a client")
}

/// Reads so many records, then gives up. Asserts that each partition is read from its beginning, in order.
fn read(client: &BaseConsumer<ReaderContext>, records: usize) {
    let reader = TopicReader::start(client, TOPIC, &[(0, 0), (1, 0)]).expect("a reader");
    let began = Instant::now();
    let mut next = [0; 2];
    let mut read = 0;
    while read < records {
        if let Next::Record(record) = reader.next(POLL).expect("an answer") {
            let partition = usize::try_from(record.partition()).expect("a partition");
            assert_eq!(record.offset(), next[partition], "partition {partition}");
            next[partition] += 1;
            read += 1;
        }
        assert!(
            began.elapsed() < DEADLINE,
            "{read} of {records} records after {DEADLINE:?}"
        );
    }
}

#[tokio::test]
async fn a_topic_is_read_again_wherever_the_reading_before_was_given_up() {
    let kafka = Kafka::start(KafkaOptions::default()).await.expect("a Kafka");
    let partitions = PARTITIONS.to_string();
    let create = ["--create", "--topic", TOPIC, "--partitions", &partitions];
    kafka.topic_tool(&create).await.expect("a topic");
    let settings = ClientSettings::new(&kafka.bootstrap_servers());
    let looked = tokio::task::spawn_blocking(move || {
        produce(&settings);
        let all = RECORDS * usize::try_from(PARTITIONS).expect("a few");
        let client = open(&settings);
        for reading in 0..READINGS {
            // Some are given up before anything came, some in the middle, and some have read everything.
            read(&client, (reading * 97) % (all + 1));
        }
    });
    looked.await.expect("no panic");
}
