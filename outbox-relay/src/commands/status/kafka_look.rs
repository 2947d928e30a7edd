//! What `status` asks Kafka, as a reader of the relay's own topics: it is a member of no group and has no producer. As soon as one question has no
//! answer, Kafka counts as away, and no further question is asked.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, timeout_at};

use crate::findings::sentences;
use crate::kafka::{Readers, StoredCheckpoint};
use crate::process::stop::{RelayError, Stop};
use crate::relay::pause::{self, PauseRecord};
use crate::settings::Config;
use crate::topics::identity::{self, Topics};

/// What Kafka has told so far.
#[derive(Default)]
pub(super) struct KafkaLook {
    readers: Option<Readers>,
    /// Why no further question was asked.
    pub(super) away_because: Option<String>,
    /// The last checkpoint, or the stop of one that cannot be used. `None`: it was not read.
    pub(super) checkpoint: Option<Result<Option<StoredCheckpoint>, Stop>>,
    pub(super) pause: Option<PauseRecord>,
    /// The topics of the checkpoint's lineage, and that of the checkpoints.
    pub(super) topics: Topics,
}

impl KafkaLook {
    /// Connects, and reads whether an operator has paused the relay.
    ///
    /// # Errors
    /// A setting that the client does not take ([`Stop::Config`]).
    pub(super) async fn open(config: &Config, patience: Duration, deadline: Instant) -> Result<Self, Stop> {
        let mut look = Self::default();
        let opening = config.clone();
        let opened = on_a_thread(deadline, move || opening.checkpoint_log().open_within(patience));
        let paused = within(deadline, pause::read_pause(config));
        let (opened, paused) = tokio::join!(opened, paused);
        match (opened, paused) {
            (Ok(readers), Ok(paused)) => {
                look.readers = Some(readers);
                look.pause = paused;
            }
            (Err(RelayError::Stop(stop @ Stop::Config { .. })), _) => return Err(stop),
            (Err(RelayError::Stop(stop)), _) => look.checkpoint = Some(Err(stop)),
            (Err(RelayError::Transient(err)), _) | (Ok(_), Err(RelayError::Transient(err))) => {
                look.away_because = Some(sentences::kafka_is_away(config, err));
            }
            (Ok(_), Err(RelayError::Stop(stop))) => look.checkpoint = Some(Err(stop)),
        }
        Ok(look)
    }

    /// Reads the last committed checkpoint.
    pub(super) async fn read_checkpoint(&mut self, config: &Config, deadline: Instant) {
        let Some(readers) = self.readers.take() else {
            return;
        };
        let reading = config.clone();
        let read = on_a_thread(deadline, move || {
            let gives_up = || Instant::now() >= deadline;
            let (key, delivery) = (reading.checkpoint_key(), reading.sink.delivery);
            let found = reading.checkpoint_log().last_with(&readers, &key, delivery, &gives_up);
            Ok((readers, found))
        });
        match read.await {
            Ok((readers, Ok(found))) => {
                self.readers = Some(readers);
                self.checkpoint = Some(Ok(found));
            }
            Ok((_, Err(RelayError::Stop(stop)))) => self.checkpoint = Some(Err(stop)),
            Ok((_, Err(RelayError::Transient(err)))) => self.away_because = Some(sentences::kafka_is_away(config, err)),
            Err(err) => self.away_because = Some(sentences::kafka_is_away(config, err)),
        }
    }

    /// Reads what has become of the topics.
    pub(super) async fn read_topics(&mut self, config: &Config, deadline: Instant) {
        let Some(readers) = self.readers.take() else {
            return;
        };
        let topic = config.sink.checkpoint_topic.to_string();
        let names = match &self.checkpoint {
            Some(Ok(Some(stored))) => identity::names_of_topics(&stored.checkpoint.lineage, &topic),
            _ => vec![topic],
        };
        let read = on_a_thread(deadline, move || Ok(readers.topic_facts(names)?));
        match read.await {
            Ok(topics) => self.topics = topics,
            Err(err) => self.away_because = Some(sentences::kafka_is_away(config, err)),
        }
    }

    /// The checkpoint, if there is one that can be used.
    pub(super) fn stored(&self) -> Option<&StoredCheckpoint> {
        self.checkpoint.as_ref()?.as_ref().ok()?.as_ref()
    }
}

/// Runs what blocks on a thread of its own. If it takes too long, the thread is left to end by itself.
async fn on_a_thread<T: Send + 'static>(
    deadline: Instant,
    work: impl FnOnce() -> Result<T, RelayError> + Send + 'static,
) -> Result<T, RelayError> {
    let working = tokio::task::spawn_blocking(work);
    within(deadline, async { working.await.context("a thread that asks kafka")? }).await
}

async fn within<T>(deadline: Instant, asked: impl Future<Output = Result<T, RelayError>>) -> Result<T, RelayError> {
    timeout_at(deadline, asked)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("kafka does not answer in time").into()))
}
