//! What `status` asks Kafka, by a client that joins no group.

use std::time::Duration;

use kafka_client::Refused;
use rdkafka::consumer::Consumer as _;

use super::figures::Group;
use crate::kafka::Observer;

/// How long the client tries to reach Kafka.
const CONNECTS_WITHIN: Duration = Duration::from_millis(2_500);
/// How long reports of the client are served, so that they can say why it did not connect.
const REPORTS_SERVED_FOR: Duration = Duration::from_millis(100);
/// The brokers have so long to tell of the group. In a cluster a broker may be away that does not have the group.
const GROUP_WITHIN: Duration = Duration::from_secs(1);

/// Waits until Kafka answers. `topic` need not exist. Blocks.
///
/// # Errors
/// It does not answer, or refuses us: the reason.
pub(super) fn reach(observer: &Observer, topic: &str) -> anyhow::Result<()> {
    let Err(err) = observer.fetch_metadata(Some(topic), CONNECTS_WITHIN) else {
        return Ok(());
    };
    let reasons = observer.context().reasons();
    let served = std::time::Instant::now();
    while served.elapsed() < REPORTS_SERVED_FOR && reasons.refused().is_none() {
        observer.poll(Duration::from_millis(10));
    }
    match reasons.refused() {
        Some(refused) => Err(Refused::into(refused)),
        None => Err(reasons.explain(err)),
    }
}

/// Asks for the group. What Kafka does not tell is `None`. A group that Kafka does not know has no members. Blocks.
pub(super) fn group(observer: &Observer, name: &str) -> Group {
    let told = observer.fetch_group_list(Some(name), GROUP_WITHIN).ok();
    let group = told
        .as_ref()
        .and_then(|told| told.groups().iter().find(|group| group.name() == name));
    Group {
        name: name.to_owned(),
        state: group.map(|group| group.state().to_owned()),
        // A computer's memory has room for the members.
        members: told
            .is_some()
            .then(|| group.map_or(0, |group| u64::try_from(group.members().len()).unwrap_or(u64::MAX))),
    }
}
