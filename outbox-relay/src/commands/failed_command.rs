//! How `init` and `recover` fail once they have begun to publish.
//!
//! All their rows travel in transactions of up to fifteen minutes. One that is left open hides the checkpoint topic's end from every relay that
//! shares it, and from this command's next run, until the broker gives it up. So it is ended here: a producer of the same transactional ids
//! fences the one that failed, and the broker aborts what that had open (KIP-98). librdkafka's own abort would do as well, but not after every
//! error.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::commands::planted;
use crate::intake::poison;
use crate::kafka::{Delivery, Publisher, RefusedRecord};
use crate::process::row_name::{RowName, RowPlace};
use crate::process::stop::RelayError;
use crate::settings::Config;

/// How long Kafka is waited for; whoever ends the program waits as well.
const PATIENCE: Duration = Duration::from_secs(4);

/// Ends the transaction that failed with `err`. Returns why the command fails: `err`, or the row that the broker refused. The command's own publisher
/// must have been dropped.
pub(crate) async fn end_failed_transaction(config: &Config, system_identifier: &str, err: RelayError) -> RelayError {
    let outcome = fence_own_producers(config, system_identifier).await;
    if let Err(reason) = outcome {
        tracing::warn!(
            reason,
            "the kafka transaction of this command stays open until the next run, or for a minute; other relays of the checkpoint topic start behind it"
        );
    }
    match err {
        RelayError::Transient(err) => match RefusedRecord::cause_of(&err) {
            Some(record) => {
                let row = RowName {
                    place: RowPlace::Table,
                    id: Some(record.id.clone()),
                };
                poison::refusal(record, row).into()
            }
            None => err.into(),
        },
        stop => stop,
    }
}

/// Fences the producers of this command; why that failed, in words.
async fn fence_own_producers(config: &Config, system_identifier: &str) -> Result<(), String> {
    if planted::leaves_failed_transaction_open() {
        return Ok(());
    }
    let (settings, topic) = (config.sink.kafka.clone(), config.sink.checkpoint_topic.clone());
    let id = config.transactional_id(system_identifier);
    let began_at = Instant::now();
    let fenced = tokio::task::spawn_blocking(move || {
        let gives_up = || began_at.elapsed() > PATIENCE;
        Publisher::start(&settings, Delivery::ExactlyOnce, &id, &topic, &gives_up).map(drop)
    });
    match fenced.await.context("kafka task") {
        Ok(Ok(())) => Ok(()),
        Ok(Err(err)) => Err(err.to_string()),
        Err(err) => Err(format!("{err:#}")),
    }
}
