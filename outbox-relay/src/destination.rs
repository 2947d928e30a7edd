//! The topic of a route that comes for the first time.

use crate::checkpoint::Lineage;
use crate::config::{Config, check_topic_name};
use crate::kafka::find_or_create;
use crate::stop::{RelayError, Stop};

/// Partition count of `topic`, where the value `route` leads. The topic is created where it is missing and that is wanted, and the
/// lineage holds it to its partition count from now on.
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
    Ok(partitions)
}
