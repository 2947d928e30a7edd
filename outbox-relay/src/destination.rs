//! The topic of a route that comes for the first time.

use crate::checkpoint::Lineage;
use crate::config::{Config, check_topic_name};
use crate::kafka::{find_or_create, record_bytes_max, topic_facts};
use crate::stop::{RelayError, Stop};
use crate::topic_identity;

/// Partition count of `topic`, where the value `route` leads. The topic is created where it is missing and that is wanted, and the
/// lineage holds it to its partition count and its id from now on.
///
/// # Errors
/// [`Stop::Row`] for a name that no topic can have, [`Stop::TopicMissing`], [`Stop::PartitionsChanged`]; anything else is worth
/// another try.
pub(crate) async fn partitions_of(
    config: &Config,
    lineage: &mut Lineage,
    route: &str,
    topic: &str,
) -> Result<i32, RelayError> {
    check_topic_name("topic", topic).map_err(|stop| Stop::Row {
        row: format!("with {} `{route}`", config.router.route_column),
        what: stop.to_string(),
    })?;
    // Those of the lineage were verified at the start; asking again would only delay the first row.
    if let Some(partitions) = lineage.partitions.get(topic) {
        return Ok(*partitions);
    }
    let template = config.create_topics.then_some(&config.topic_template);
    let found = find_or_create(&config.kafka, topic, template).await?;
    let partitions = found.ok_or_else(|| Stop::TopicMissing {
        topic: topic.to_owned(),
        column: config.router.route_column.clone(),
    })?;
    lineage.pin(topic, partitions)?;
    let facts = topic_facts(&config.kafka, vec![topic.to_owned()]).await?;
    topic_identity::pin_ids(lineage, &facts);
    Ok(partitions)
}

/// The largest batch that `topic` takes, in bytes of records as they are before compression; without a limit where the cluster does not
/// tell, or where compression leaves it to the broker.
///
/// # Errors
/// The producers make larger batches: the next start makes them smaller, before anything was sent.
pub(crate) async fn batch_bytes_max(config: &Config, topic: &str) -> Result<u64, RelayError> {
    let Some(limit) = record_bytes_max(&config.kafka, topic).await else {
        return Ok(u64::MAX);
    };
    if config.kafka.limit_batches(limit) {
        return Err(anyhow::anyhow!(
            "topic `{topic}` takes batches of {limit} bytes: the producers are replaced by such"
        )
        .into());
    }
    Ok(if config.kafka.compresses() { u64::MAX } else { limit })
}
