//! Sends entries of the parking topic.

use rdkafka::message::OwnedHeaders;
use service::clock::now_us;

use super::record::Entry;
use crate::kafka::{Outgoing, Publisher, Sent};
use crate::process::row_name::RowPosition;
use crate::process::stop::RelayError;
use crate::settings::Config;

/// Adds an entry, or its tombstone, to the open transaction.
pub(crate) async fn send_entry(
    publisher: &mut Publisher,
    config: &Config,
    position: RowPosition,
    value: Option<&str>,
) -> Result<(), RelayError> {
    let key = Entry::record_key(&config.checkpoint_key(), &position);
    loop {
        let outgoing = Outgoing {
            topic: &config.sink.parking_topic,
            partition: 0,
            key: Some(key.as_bytes()),
            value: value.map(str::as_bytes),
            timestamp_ms: now_us() / 1_000,
        };
        match publisher.send(outgoing, OwnedHeaders::new())? {
            Sent::Queued => return Ok(()),
            Sent::QueueFull => {
                publisher.poll();
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            Sent::TooLarge => return Err(anyhow::anyhow!("the parked row at {position} is too large").into()),
        }
    }
}
