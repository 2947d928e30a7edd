//! Finds the topic of a route that comes for the first time.

use super::planted;
use crate::continuity::checkpoint::Lineage;
use crate::kafka::{
    Destination, NewTopic, NoDestination, TopicError, TopicRules, create_missing, find_or_create, topic_facts,
};
use crate::process::row_name::RowName;
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use crate::settings::names::TopicName;
use crate::topics::identity;

/// Finds where the value `route` leads: to `topic`. If the topic is missing, it is created if `--create-topics` says so. From now on the lineage pins its
/// partition count and its id. A route that leads to no topic is not an error here, since only the caller knows its row.
///
/// # Errors
/// [`Stop::PartitionsChanged`]; anything else is worth another try.
pub(crate) async fn find_destination(
    config: &Config,
    lineage: &mut Lineage,
    route: &str,
    topic: &str,
) -> Result<Result<Destination, NoDestination>, RelayError> {
    if let Some(what) = why_no_row_may_go_there(config, route, topic) {
        return Ok(Err(NoDestination::Never { what }));
    }
    // The topics of the lineage were verified at the start. Asking again would only delay the first row.
    let partitions = match lineage.partitions.get(topic) {
        Some(partitions) => *partitions,
        None => {
            let template = config.sink.create_topics.then_some(&config.sink.topic_template);
            let partitions = match find_or_create(&config.sink.kafka, topic, template).await {
                Ok(Some(partitions)) => partitions,
                Ok(None) => {
                    return Ok(Err(NoDestination::Missing {
                        topic: topic.to_owned(),
                    }));
                }
                Err(err) => return Ok(Err(reason_of_refusal(config, route, err)?)),
            };
            lineage.pin(topic, partitions)?;
            let facts = topic_facts(&config.sink.kafka, vec![topic.to_owned()]).await?;
            identity::pin_ids(lineage, &facts);
            partitions
        }
    };
    let rules = TopicRules::ask(&config.sink.kafka, topic).await;
    let batch_bytes_max = batch_bytes_max(config, topic, &rules)?;
    Ok(Ok(Destination::new(
        topic.to_owned(),
        partitions,
        batch_bytes_max,
        rules,
    )))
}

/// Creates the topics that are missing, and returns their names.
///
/// # Errors
/// [`Stop::TopicRefused`] if Kafka refuses one. Any other error is worth another try.
pub(crate) async fn create_topics(config: &Config, topics: &[NewTopic]) -> Result<Vec<String>, RelayError> {
    let created = create_missing(&config.sink.kafka, topics).await;
    created.map_err(|err| match definite_topic_error(&err) {
        Some(error) => Stop::TopicRefused {
            topic: error.topic.clone(),
            what: error.describe(),
            row: None,
        }
        .into(),
        None => err.into(),
    })
}

/// Why no row may ever go to `topic`, whatever the cluster says.
#[must_use]
pub(crate) fn why_no_row_may_go_there(config: &Config, route: &str, topic: &str) -> Option<String> {
    let column = &config.outbox.router.route_column;
    if let Err(err) = topic.parse::<TopicName>() {
        return Some(format!("column `{column}` is `{route}`, and topic `{topic}`: {err}"));
    }
    let whose = is_not_for_rows(config, topic)?;
    Some(format!(
        "column `{column}` is `{route}`, which leads to topic `{topic}`, {whose}: no row may go there"
    ))
}

/// Whose topic it is, if it is not for rows. `None`: it is for rows. A row in the checkpoint topic could be taken for a checkpoint.
#[must_use]
pub(crate) fn is_not_for_rows(config: &Config, topic: &str) -> Option<&'static str> {
    if planted::lets_rows_go_anywhere() {
        return None;
    }
    if config.own_topics().any(|own| own == topic) {
        Some("the relay's own topic")
    } else if topic.starts_with("__") {
        Some("one of Kafka's internal topics")
    } else {
        None
    }
}

/// The stop of a row whose route leads to no topic.
#[must_use]
pub(crate) fn stop_of_no_destination(why: &NoDestination, row: RowName, route_column: &str) -> Stop {
    match why.clone() {
        NoDestination::Never { what } => Stop::Row { row, what },
        NoDestination::Missing { topic } => Stop::TopicMissing {
            topic,
            column: route_column.to_owned(),
            row,
        },
        NoDestination::Refused { topic, what } => Stop::TopicRefused {
            topic,
            what,
            row: Some(row),
        },
    }
}

fn definite_topic_error(err: &anyhow::Error) -> Option<&TopicError> {
    let error = err.chain().find_map(|cause| cause.downcast_ref::<TopicError>());
    error.filter(|error| error.is_definite())
}

/// What a refusal of the cluster means. If the cluster refuses the name itself, the row is at fault. Any other refusal is about the topic.
fn reason_of_refusal(config: &Config, route: &str, err: anyhow::Error) -> Result<NoDestination, RelayError> {
    match definite_topic_error(&err) {
        Some(error) if error.refuses_the_name() => Ok(NoDestination::Never {
            what: format!(
                "column `{}` is `{route}`, which leads to topic `{}`, and that cannot be created: {}",
                config.outbox.router.route_column,
                error.topic,
                error.describe()
            ),
        }),
        Some(error) => Ok(NoDestination::Refused {
            topic: error.topic.clone(),
            what: error.describe(),
        }),
        None => Err(err.into()),
    }
}

/// Makes sure that new producers send no larger batches than these topics take. A command has to know this before it publishes: unlike the relay, it has no
/// next start that would make them smaller.
pub(crate) async fn learn_batch_limits(config: &Config, topics: impl IntoIterator<Item = impl AsRef<str>>) {
    for topic in topics {
        if let Some(limit) = TopicRules::ask(&config.sink.kafka, topic.as_ref())
            .await
            .batch_bytes_max
        {
            // No producer exists yet that would have to be replaced.
            let _made_smaller = config.sink.kafka.limit_batches(limit);
        }
    }
}

/// The largest batch that may be made for a topic.
///
/// # Errors
/// The producers make larger batches. The next start makes smaller ones, and nothing was sent yet.
fn batch_bytes_max(config: &Config, topic: &str, rules: &TopicRules) -> Result<u64, RelayError> {
    let Some(limit) = rules.batch_bytes_max else {
        return Ok(u64::MAX);
    };
    if config.sink.kafka.limit_batches(limit) {
        return Err(anyhow::anyhow!(
            "topic `{topic}` takes batches of {limit} bytes at most: new producers that make no larger ones replace these"
        )
        .into());
    }
    Ok(if config.sink.kafka.compresses() {
        u64::MAX
    } else {
        limit
    })
}
