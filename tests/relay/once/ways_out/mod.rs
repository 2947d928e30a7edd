//! The way out of each stop: the command that the relay's last line names brings the relay back, nothing is lost and nothing comes twice.

mod checkpoint;
mod database;
mod partitions;
mod publication;
mod settings;
mod slot;

use std::time::Duration;

use rig::Rig;
use rig::rig::READY_DEADLINE;

async fn delete_checkpoint_topic(rig: &Rig) {
    let topic = rig.checkpoint_topic();
    let deleted = rig.servers.kafka.topic_tool(&["--delete", "--topic", &topic]).await;
    deleted.expect("a deletion");
}

/// Runs `outbox-relay recover --yes` with further arguments. Asserts that it ends with this exit code and says `says`.
async fn assert_recover_stops(rig: &Rig, arguments: &[&str], exit_code: i32, says: &str) {
    let logged = rig.relay.log_text().len();
    let all: Vec<&str> = ["recover", "--yes"].iter().chain(arguments).copied().collect();
    let status = rig.relay.run_for_status(&all).await.expect("an end");
    let log = rig.relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(exit_code), "{log}");
    assert!(log.contains(says), "it says `{says}`: {log}");
}

/// A minute is the transactions' timeout, and Kafka looks for those that are past it every ten seconds.
const KAFKA_ENDS_A_TRANSACTION_WITHIN: Duration = Duration::from_secs(75);

/// Runs `outbox-relay recover --yes`, and kills it when it has published everything but has not ended its last transaction, which has the checkpoint
/// of the new slot.
pub(super) async fn kill_recover_before_its_end(rig: &Rig, name: &str, arguments: &[&str]) {
    let all: Vec<&str> = ["recover", "--yes"].iter().chain(arguments).copied().collect();
    let dies = rig
        .relay
        .with_binary("outbox-relay-faults")
        .with_env("OUTBOX_RELAY_FAILPOINT", "commit.before=kill@2")
        .with_env("OUTBOX_RELAY_FAILPOINT_HITS", &rig.logs().join(name).to_string_lossy())
        .command_of(name, &all);
    dies.start().expect("a start");
    // Its comparison comes before it fences anybody. Where an earlier recover was killed in a transaction, the comparison waits until Kafka ends that one.
    let status = dies
        .exited(READY_DEADLINE + KAFKA_ENDS_A_TRANSACTION_WITHIN)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(status.code(), None, "{}", dies.log_tail(10));
    rig.wait_until_slot_is_free().await;
}
