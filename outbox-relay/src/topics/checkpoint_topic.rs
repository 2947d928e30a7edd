//! Writes this relay's checkpoint.

use crate::continuity::checkpoint::Checkpoint;
use crate::kafka::Publisher;
use crate::process::stop::RelayError;
use crate::settings::Config;

/// Commits the open Kafka transaction with `checkpoint` as its last record, or a transaction that has nothing else. Waits until Kafka has committed.
///
/// # Errors
/// Kafka has not committed, as far as is known. Worth another try from the last checkpoint.
pub(crate) async fn commit_checkpoint(
    publisher: &mut Publisher,
    config: &Config,
    checkpoint: &Checkpoint,
) -> Result<(), RelayError> {
    publisher.commit(
        &config.sink.checkpoint_topic,
        &config.checkpoint_key(),
        &checkpoint.to_json(),
    )?;
    publisher.wait_for_commits().await.map(|_| ())
}
