//! How a command shuts out every earlier producer of the relay.

use anyhow::Context;
use service::Shutdown;

use crate::kafka::{Delivery, Publisher};
use crate::process::stop::RelayError;
use crate::settings::Config;

/// A command fills each of its transactions well within this time. After it, the broker ends what a killed command has left open.
const TRANSACTION_TIMEOUT_MS: u64 = 60_000;

/// Fences every producer of this relay, where its database is in the cluster with this system identifier. What they have left open is aborted or
/// completed. The transactional ids contain the identifier, so relays of another cluster are not fenced by this.
///
/// # Errors
/// Worth another try.
pub(super) async fn fence_relays_of_cluster(
    config: &Config,
    system_identifier: &str,
    shutdown: &Shutdown,
) -> Result<Publisher, RelayError> {
    let settings = config.sink.kafka.with_transaction_timeout(TRANSACTION_TIMEOUT_MS);
    let id = config.transactional_id(system_identifier);
    let topic = config.sink.checkpoint_topic.clone();
    let shutdown = shutdown.clone();
    tokio::task::spawn_blocking(move || {
        Publisher::start(&settings, Delivery::ExactlyOnce, &id, &topic, &|| {
            shutdown.is_triggered()
        })
    })
    .await
    .context("kafka task")?
}
