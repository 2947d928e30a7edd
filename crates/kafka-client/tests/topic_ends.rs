//! The example of the crate's documentation, with a real broker: an operator's lines become a client, and the client tells where a topic ends.

use std::time::Duration;

use kafka_client::{ClientSettings, Ends, Next, OpenError, TopicReader, ends_by, facts_by};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use stack::{Kafka, KafkaOptions};

const TOPIC: &str = "orders";
const DEADLINE: Duration = Duration::from_secs(30);

/// Writes two records to partition 1, and two more in a transaction that stays open as long as the returned producer lives. Partition 0 stays empty.
fn produce(servers: &str) -> BaseProducer {
    let settings = ClientSettings::new(servers);
    let mut config = settings.begin("a-test");
    config.set("transactional.id", "a-test");
    let producer: BaseProducer = settings
        .open_producer(&config, rdkafka::producer::DefaultProducerContext)
        .expect("a producer");
    producer.init_transactions(DEADLINE).expect("transactions");
    for is_committed in [true, false] {
        producer.begin_transaction().expect("a transaction");
        for value in ["1", "2"] {
            let record = BaseRecord::<str, str>::to(TOPIC).partition(1).payload(value);
            producer.send(record).map_err(|(err, _)| err).expect("room");
        }
        producer.flush(DEADLINE).expect("an answer");
        if is_committed {
            producer.commit_transaction(DEADLINE).expect("a commit");
        }
    }
    producer
}

fn look(servers: &str) {
    let settings = ClientSettings::new(servers)
        .with_properties(&["client.rack=a", "compression.type=zstd"], &["group.id"])
        .expect("settings");
    let mut config = settings.begin("topic-ends");
    config.set("group.id", "topic-ends").set("enable.partition.eof", "true");
    settings.add_consumers_properties(&mut config);
    let client = settings.open_reader(&config).expect("a client");

    let facts = facts_by(&client, &[TOPIC.to_owned(), "nothing".to_owned()]).expect("an answer");
    assert_eq!(facts.len(), 1, "a topic that does not exist is left out");
    let facts = &facts[TOPIC];
    assert_eq!((facts.partitions, facts.replicas), (2, 1));
    assert!(facts.id.is_some());

    let ends = ends_by(&client, (0..facts.partitions).map(|partition| (TOPIC, partition))).expect("ends");
    let at = |partition, stable, all| Ends {
        topic: TOPIC.to_owned(),
        partition,
        stable,
        all,
    };
    // A marker has the offset behind the two committed records.
    assert_eq!(ends, [at(0, 0, 0), at(1, 3, 5)]);

    let reader = TopicReader::start(&client, TOPIC, &[(1, 0)]).expect("a reader");
    let mut values = Vec::new();
    let end = loop {
        match reader.next(DEADLINE).expect("an answer") {
            Next::Record(record) => values.push(record.value().expect("a value").to_vec()),
            Next::End { offset, .. } => break offset,
            Next::Nothing => panic!("the broker says nothing"),
        }
    };
    assert_eq!((values, end), (vec![b"1".to_vec(), b"2".to_vec()], 3));
}

#[tokio::test]
async fn a_client_of_an_operators_lines_tells_where_a_topic_ends() {
    let kafka = Kafka::start(KafkaOptions::default()).await.expect("a Kafka");
    let create = ["--create", "--topic", TOPIC, "--partitions", "2"];
    kafka.topic_tool(&create).await.expect("a topic");
    let servers = kafka.bootstrap_servers();
    let looked = tokio::task::spawn_blocking(move || {
        let _open = produce(&servers);
        look(&servers);
    });
    looked.await.expect("no panic");
}

#[test]
fn a_property_that_librdkafka_does_not_know_is_named() {
    let settings = ClientSettings::new("127.0.0.1:1").with_property("nonsense", "1");
    let mut config = settings.begin("topic-ends");
    settings.add_consumers_properties(&mut config);
    let err = settings.open_admin(&config).map(drop).expect_err("nonsense");
    assert!(matches!(err, OpenError::Properties(_)));
    assert!(err.to_string().contains("nonsense"), "{err}");
}
