//! Makes librdkafka's clients, each with what the files of passwords and certificates hold now.

use kafka_client::{ClientSettings, OpenError};
use rdkafka::config::ClientConfig;

use super::group::GroupContext;
use super::{GroupConsumer, Observer};
use crate::kafka::servers::Kafka;
use crate::process::failure::Failure;

/// How often librdkafka tells its state.
const STATISTICS_INTERVAL_MS: &str = "1000";

/// A consumer for the group; nothing is subscribed yet.
///
/// # Errors
/// A property is unknown or has a wrong value, a file cannot be read, or the token cannot be used now.
pub fn consumer(servers: &Kafka, instance: Option<&str>, batch_bytes: u32) -> Result<GroupConsumer, Failure> {
    // Before the files are read: one that changes in between is found to have changed.
    let files = servers.client.fingerprint_of_files();
    let settings = servers.client.with_files_read().map_err(|err| refused(err.into()))?;
    let mut config = client(&settings);
    config
        .set("group.id", &*servers.group_id)
        .set("partition.assignment.strategy", "range")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "2000")
        // A process that is stuck with one batch for this long loses its partitions.
        .set("max.poll.interval.ms", "60000")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("statistics.interval.ms", STATISTICS_INTERVAL_MS)
        // What is fetched ahead: two batches, and never a second of pause when that is full.
        .set(
            "queued.max.messages.kbytes",
            (batch_bytes / 1024 * 2).max(1024).to_string(),
        )
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.max.bytes", batch_bytes.max(1_048_576).to_string())
        .set("fetch.message.max.bytes", "524288")
        .set("fetch.error.backoff.ms", "200");
    if let Some(instance) = instance {
        config.set("group.instance.id", instance);
    }
    settings.add_consumers_properties(&mut config);
    let context = GroupContext::new(&settings, files);
    settings.open_consumer(&config, context).map_err(refused)
}

/// An observer that is told where a partition ends.
///
/// # Errors
/// As [`consumer`].
pub fn observer(servers: &Kafka) -> Result<Observer, Failure> {
    observer_with(servers, &[("enable.partition.eof", "true")])
}

/// A client that finds out where logs part from what was read of them.
///
/// # Errors
/// As [`consumer`].
pub(crate) fn parting_observer(servers: &Kafka) -> Result<Observer, Failure> {
    observer_with(
        servers,
        &[("enable.partition.eof", "true"), ("auto.offset.reset", "earliest")],
    )
}

/// As [`observer`], but a partition's end is that of a reader who sees open transactions as well.
///
/// # Errors
/// As [`consumer`].
pub(crate) fn uncommitted_observer(servers: &Kafka) -> Result<Observer, Failure> {
    observer_with(servers, &[("isolation.level", "read_uncommitted")])
}

/// A client with these settings that is no member of the group whose name it bears.
///
/// # Errors
/// As [`consumer`].
pub(crate) fn observer_with(servers: &Kafka, wanted: &[(&str, &str)]) -> Result<Observer, Failure> {
    observer_of_group(servers, &servers.group_id, wanted)
}

/// As [`observer_with`], with the name of another group.
///
/// # Errors
/// As [`consumer`].
pub(crate) fn observer_of_group(servers: &Kafka, group: &str, wanted: &[(&str, &str)]) -> Result<Observer, Failure> {
    let (settings, mut config) = outsider(servers, group)?;
    for (name, value) in wanted {
        config.set(*name, *value);
    }
    settings.open_reader(&config).map_err(refused)
}

/// A client for topics and their settings.
///
/// # Errors
/// As [`consumer`].
pub(crate) fn admin(servers: &Kafka) -> Result<rdkafka::admin::AdminClient<kafka_client::ReaderContext>, Failure> {
    let (settings, config) = outsider(servers, &servers.group_id)?;
    settings.open_admin(&config).map_err(refused)
}

/// Settings of a client that is no member of the group whose name it bears.
fn outsider(servers: &Kafka, group: &str) -> Result<(ClientSettings, ClientConfig), Failure> {
    let settings = servers.client.with_files_read().map_err(|err| refused(err.into()))?;
    let mut config = client(&settings);
    config.set("group.id", group).set("enable.auto.commit", "false");
    settings.add_consumers_properties(&mut config);
    Ok((settings, config))
}

fn client(settings: &ClientSettings) -> ClientConfig {
    let mut config = settings.begin("view-builder");
    config
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.max.ms", "2000");
    config
}

fn refused(err: OpenError) -> Failure {
    match err {
        OpenError::Properties(_) | OpenError::File(_) => Failure::Setting(err.to_string()),
        OpenError::Token(_) => Failure::Other(err.into()),
    }
}
