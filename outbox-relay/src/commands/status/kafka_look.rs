//! What `status` asks Kafka, as a reader of the relay's own topics: it is a member of no group and has no producer. As soon as one question has no
//! answer, Kafka counts as away, and no further question is asked.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, timeout_at};

use crate::findings::sentences;
use crate::kafka::{Readers, StillHidden, StoredCheckpoint};
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
    /// Why the last checkpoint cannot be seen, although Kafka answers.
    pub(super) hidden_because: Option<String>,
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
        // Under `--watch` no thread outlives its round for long.
        let gives_up = move || Instant::now() >= deadline;
        let paused = within(deadline, pause::read_pause(config, gives_up));
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

    /// Reads the last committed checkpoint. An open transaction may hide it: what is hidden still at `patient_until`, which is before the deadline, is not
    /// waited for.
    pub(super) async fn read_checkpoint(&mut self, config: &Config, patient_until: Instant, deadline: Instant) {
        let Some(readers) = self.readers.take() else {
            return;
        };
        let reading = config.clone();
        let read = on_a_thread(deadline, move || {
            let gives_up = || Instant::now() >= patient_until;
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
            Ok((readers, Err(RelayError::Transient(err)))) if err.is::<StillHidden>() => {
                self.readers = Some(readers);
                let minutes = config.sink.kafka.transactions_end_within().as_secs().div_ceil(60);
                self.hidden_because = Some(format!(
                    "{err}, and so the checkpoint; Kafka ends a transaction within {minutes} minutes, or has lost its end"
                ));
            }
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
