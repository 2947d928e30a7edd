//! Kafka: where each partition of the topics begins and ends.

use std::collections::BTreeMap;

use kafka_client::{ClientSettings, PartitionBounds, Reader, ReaderContext};
use rdkafka::consumer::BaseConsumer;
use tokio::task::JoinHandle;

/// What Kafka says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KafkaFacts {
    /// The partitions of each topic. A topic that does not exist is missing.
    pub topics: BTreeMap<String, Vec<PartitionFacts>>,
    /// Offsets that came each second since the last look, by topic; those of transaction markers count.
    pub rates: BTreeMap<String, f64>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionFacts {
    pub partition: i32,
    /// The first offset that it has. `None`: Kafka does not tell now.
    pub beginning: Option<i64>,
    /// The offset of the record that comes next, for who reads committed records.
    pub end: Option<i64>,
    /// Why Kafka does not tell.
    pub why: Option<&'static str>,
}

impl KafkaFacts {
    /// Where the partition ends.
    #[must_use]
    pub fn end(&self, topic: &str, partition: i32) -> Option<i64> {
        let partitions = self.topics.get(topic)?;
        partitions.iter().find(|facts| facts.partition == partition)?.end
    }

    /// The ends of all partitions of a topic together. `None`: one is not known.
    #[must_use]
    pub fn end_of_topic(&self, topic: &str) -> Option<i64> {
        self.topics.get(topic)?.iter().map(|facts| facts.end).sum()
    }
}

type Client = BaseConsumer<ReaderContext>;
type Asked = (Option<Client>, Result<KafkaFacts, String>);

/// Asks with a client that is kept, on a thread for what blocks. There is never more than one question under way.
pub(super) struct Asker {
    settings: ClientSettings,
    topics: Vec<String>,
    client: Option<Client>,
    /// A question whose answer nobody has waited for to the end.
    under_way: Option<JoinHandle<Asked>>,
}

impl Asker {
    pub(super) fn new(settings: ClientSettings, topics: Vec<String>) -> Self {
        Self {
            settings,
            topics,
            client: None,
            under_way: None,
        }
    }

    /// Cancel-safe: a question that is under way is waited for again.
    pub(super) async fn ask(&mut self) -> Result<KafkaFacts, String> {
        let question = match &mut self.under_way {
            Some(question) => question,
            None => {
                let (settings, topics, client) = (self.settings.clone(), self.topics.clone(), self.client.take());
                let question = tokio::task::spawn_blocking(move || ask_blocking(&settings, &topics, client));
                self.under_way.insert(question)
            }
        };
        let asked = question.await;
        self.under_way = None;
        let (client, answer) = asked.map_err(|err| format!("asking Kafka failed: {err}"))?;
        self.client = client;
        answer
    }
}

/// A client that got no answer is given up: the next one reads the files of passwords and certificates again.
fn ask_blocking(settings: &ClientSettings, topics: &[String], client: Option<Client>) -> Asked {
    let client = match client.map_or_else(|| open(settings), Ok) {
        Ok(client) => client,
        Err(err) => return (None, Err(format!("{err:#}"))),
    };
    match look(&client, topics) {
        Ok(facts) => (Some(client), Ok(facts)),
        Err(err) => (None, Err(format!("{err:#}"))),
    }
}

fn open(settings: &ClientSettings) -> anyhow::Result<Client> {
    let settings = settings.with_files_read()?;
    let mut config = settings.begin("console");
    config
        .set("group.id", "console")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .set("socket.timeout.ms", "4000")
        .set("reconnect.backoff.max.ms", "2000");
    settings.add_consumers_properties(&mut config);
    Ok(settings.open_reader(&config)?)
}

fn look(client: &Client, topics: &[String]) -> anyhow::Result<KafkaFacts> {
    let led = kafka_client::leaders_by(client, topics.iter().map(String::as_str))?;
    let places: Vec<(&str, i32)> = led
        .iter()
        .flat_map(|(topic, partitions)| partitions.keys().map(move |partition| (topic.as_str(), *partition)))
        .collect();
    let mut facts = KafkaFacts::default();
    for ((topic, partition), bounds) in kafka_client::bounds_by(client, &places, Reader::Committed)? {
        let (known, why) = match bounds {
            PartitionBounds::Known { beginning, end, .. } => (Some((beginning, end)), None),
            PartitionBounds::NoLeader => (None, Some("has no leader: the brokers that have its events are away")),
            PartitionBounds::NoAnswer => (None, Some("has a leader that does not answer")),
            PartitionBounds::NotThere => (None, Some("is not there")),
        };
        facts.topics.entry(topic).or_default().push(PartitionFacts {
            partition,
            beginning: known.map(|(beginning, _)| beginning),
            end: known.map(|(_, end)| end),
            why,
        });
    }
    Ok(facts)
}
