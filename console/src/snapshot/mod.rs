//! What the parts of the pipeline said last, and when.
//!
//! A task for each part asks it every [`INTERVAL`], and gives it [`TIME_MAX`] to answer. Pages are made from what was said last, so they never wait for a part. A part that
//! does not answer keeps its last figures, and is known to be away since it first did not answer.

mod admin_port;
pub mod builder;
mod collect;
pub mod exposition;
pub mod histogram;
pub mod kafka;
pub mod letters;
pub mod outbox;
mod part;
pub mod relay;
pub mod status;
pub mod trends;
pub mod verdict;
pub mod views;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::builder::BuilderFacts;
pub use self::collect::begin;
use self::kafka::KafkaFacts;
use self::outbox::OutboxFacts;
pub use self::part::{Away, Part};
use self::relay::RelayFacts;
use self::status::StatusFacts;
use self::trends::Trends;
use self::views::ViewsFacts;
use crate::settings::Pipeline;

/// How often each part is asked.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// How long a part has for its answer.
pub const TIME_MAX: Duration = Duration::from_secs(2);

/// For how long a look counts. A page that is open asks again every [`INTERVAL`].
const LOOK_TIME: Duration = Duration::from_secs(30);

/// What all parts said last.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub outboxes: Vec<OutboxParts>,
    pub kafka: Part<KafkaFacts>,
    pub views: Part<ViewsFacts>,
    pub builders: Vec<Part<BuilderFacts>>,
    /// What `view-builder status` says, as above.
    pub builder_status: Option<StatusFacts>,
    pub trends: Trends,
}

/// The parts of one outbox.
#[derive(Clone, Debug)]
pub struct OutboxParts {
    pub name: String,
    pub topics: Vec<String>,
    /// Its database, with the slot.
    pub database: Part<OutboxFacts>,
    pub relay: Part<RelayFacts>,
    /// What `outbox-relay status` says. `None`: nobody has looked, or it cannot be asked.
    pub status: Option<StatusFacts>,
}

/// How far the views are in a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lag {
    /// Events that are in the topic and not in the views. `None`: nobody knows.
    pub events: Option<i64>,
    /// Age of the oldest of them, in seconds.
    pub seconds: Option<f64>,
    /// Transaction markers may be among the events, because no builder is there to tell.
    pub is_upper_bound: bool,
}

impl Snapshot {
    /// A part of each kind that the settings name, of which nothing is known yet.
    #[must_use]
    pub fn new(pipeline: &Pipeline) -> Self {
        let outboxes = pipeline.outboxes.iter().map(|outbox| OutboxParts {
            name: outbox.name.clone(),
            topics: outbox.topics.clone(),
            database: Part::new(format!("database {}", outbox.database.target.database)),
            relay: Part::new(format!("relay {}", outbox.name)),
            status: None,
        });
        let builders = pipeline.views.builders.len();
        Self {
            outboxes: outboxes.collect(),
            kafka: Part::new("Kafka".to_owned()),
            views: Part::new(format!("database {}", pipeline.views.database.target.database)),
            builders: (1..=builders)
                .map(|number| {
                    Part::new(if builders == 1 {
                        "view-builder".to_owned()
                    } else {
                        format!("view-builder {number}")
                    })
                })
                .collect(),
            builder_status: None,
            trends: Trends::default(),
        }
    }

    #[must_use]
    pub fn outbox(&self, name: &str) -> Option<&OutboxParts> {
        self.outboxes.iter().find(|outbox| outbox.name == name)
    }

    /// The parts that do not answer: each once, with its name.
    #[must_use]
    pub fn away(&self) -> Vec<(&str, &Away)> {
        let databases = self
            .outboxes
            .iter()
            .map(|outbox| (outbox.database.name.as_str(), &outbox.database.away));
        let relays = self
            .outboxes
            .iter()
            .map(|outbox| (outbox.relay.name.as_str(), &outbox.relay.away));
        let others = [
            (self.kafka.name.as_str(), &self.kafka.away),
            (self.views.name.as_str(), &self.views.away),
        ];
        let builders = self
            .builders
            .iter()
            .map(|builder| (builder.name.as_str(), &builder.away));
        let mut away: Vec<(&str, &Away)> = Vec::new();
        for (name, part) in databases.chain(relays).chain(others).chain(builders) {
            if let Some(part) = part
                && !away.iter().any(|(known, _)| *known == name)
            {
                away.push((name, part));
            }
        }
        away
    }

    /// Whether a builder that answers reads the partition now.
    #[must_use]
    pub fn is_read(&self, topic: &str, partition: i32) -> bool {
        let key = (topic.to_owned(), partition);
        let mut builders = self.builders.iter().filter_map(Part::fresh);
        builders.any(|facts| facts.lag.contains_key(&key))
    }

    /// How far the views are in a partition. A builder knows best. Without one, the difference of Kafka's end and the view's position is told.
    #[must_use]
    pub fn lag(&self, topic: &str, partition: i32) -> Lag {
        let key = (topic.to_owned(), partition);
        let builders = self.builders.iter().filter(|builder| builder.away.is_none());
        let told = builders
            .filter_map(|builder| builder.value.as_ref()?.lag.get(&key))
            .next();
        if let Some((events, seconds)) = told {
            return Lag {
                events: Some(*events),
                seconds: Some(*seconds),
                is_upper_bound: false,
            };
        }
        let end = self.kafka.value.as_ref().and_then(|kafka| kafka.end(topic, partition));
        let position = self
            .views
            .value
            .as_ref()
            .and_then(|views| views.position(topic, partition));
        let events = end
            .zip(position)
            .map(|(end, position)| (end - position.applied_up_to).max(0));
        Lag {
            events,
            seconds: (events == Some(0)).then_some(0.0),
            is_upper_bound: events.is_some_and(|events| events > 0),
        }
    }

    /// The lag of a whole topic: the events of all its partitions, and the oldest of them.
    #[must_use]
    pub fn lag_of_topic(&self, topic: &str) -> Lag {
        let Some(kafka) = &self.kafka.value else {
            return Lag::default();
        };
        let partitions = kafka.topics.get(topic).into_iter().flatten();
        let lags = partitions.map(|facts| self.lag(topic, facts.partition));
        let sum = lags.reduce(|sum, lag| Lag {
            events: sum.events.zip(lag.events).map(|(sum, events)| sum + events),
            seconds: sum.seconds.zip(lag.seconds).map(|(a, b)| a.max(b)),
            is_upper_bound: sum.is_upper_bound || lag.is_upper_bound,
        });
        sum.unwrap_or_default()
    }

    /// Events that builders have applied each second, of a topic. `None`: no builder tells.
    #[must_use]
    pub fn applied_rate(&self, topic: &str) -> Option<f64> {
        let builders = self.builders.iter().filter(|builder| builder.away.is_none());
        let rates: Vec<f64> = builders
            .filter_map(|builder| builder.value.as_ref()?.rates.get(topic).copied())
            .collect();
        (!rates.is_empty()).then(|| rates.iter().sum())
    }
}

/// The newest snapshot, and who waits for the next.
#[derive(Debug)]
pub struct Store {
    newest: RwLock<Arc<Snapshot>>,
    /// Counts the rounds in which all parts were asked.
    rounds: watch::Sender<u64>,
    /// When somebody last looked at the pipeline.
    looked_at: Mutex<Option<Instant>>,
}

impl Store {
    /// Nothing has been said yet.
    #[must_use]
    pub fn new(pipeline: &Pipeline) -> Self {
        Self {
            newest: RwLock::new(Arc::new(Snapshot::new(pipeline))),
            rounds: watch::Sender::new(0),
            looked_at: Mutex::new(None),
        }
    }

    /// What was said last. It does not change any more.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.newest.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the newest snapshot.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut newest));
    }

    /// Somebody looks at the pipeline.
    pub fn note_look(&self) {
        *self.looked_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether somebody has looked lately.
    #[must_use]
    pub fn is_looked_at(&self) -> bool {
        let looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        looked_at.is_some_and(|at| at.elapsed() < LOOK_TIME)
    }

    /// All parts have been asked once more.
    pub fn end_round(&self) {
        self.rounds.send_modify(|rounds| *rounds += 1);
    }

    /// Tells of each round.
    #[must_use]
    pub fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.subscribe()
    }
}
