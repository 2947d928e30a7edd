//! Partitions are assigned again at once, as the builder does when an operator takes letters away. If librdkafka is asked for that too early, it
//! aborts the whole process.

use std::env;
use std::process::Command;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::site::Site;

/// Environment variable of the process that assigns: the address of Kafka. Without it, this is the process that tests.
const SERVERS: &str = "ASSIGN_AGAIN_AT";
/// Environment variable of the process that assigns: it calls librdkafka itself, and not `kafka_client::assign`, which waits.
const WITHOUT_WAITING: &str = "ASSIGN_AGAIN_WITHOUT_WAITING";
const TEST_NAME: &str = "view_faults::assigned_again::partitions_are_assigned_a_thousand_times_in_a_row";
const TOPIC: &str = "user-events";
const TIMES: usize = 1_000;

#[test]
fn partitions_are_assigned_a_thousand_times_in_a_row() {
    if let Ok(servers) = env::var(SERVERS) {
        assign_again(&servers).expect("librdkafka takes each assignment");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let site = runtime.block_on(Site::shared());
    let servers = site.pipeline.bootstrap_servers();
    assert!(ends_well(servers, false), "the process that assigns has ended badly");
    assert!(
        !ends_well(servers, true),
        "librdkafka takes each assignment at once: kafka_client::assign need not wait any more"
    );
}

/// Assigns in a process of its own, so that an abort ends only that process. Returns whether the process ended with success.
fn ends_well(servers: &str, without_waiting: bool) -> bool {
    let mut assigning = Command::new(env::current_exe().expect("this test"));
    assigning
        .args(["--exact", TEST_NAME, "--nocapture"])
        .env(SERVERS, servers);
    if without_waiting {
        assigning.env(WITHOUT_WAITING, "1");
    }
    assigning.status().expect("it runs").success()
}

fn assign_again(servers: &str) -> KafkaResult<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", "assigned-again")
        .set("enable.auto.commit", "false")
        .create()?;
    let mut partitions = TopicPartitionList::new();
    for partition in 0..8 {
        partitions.add_partition_offset(TOPIC, partition, Offset::Offset(0))?;
    }
    for _ in 0..TIMES {
        if env::var_os(WITHOUT_WAITING).is_some() {
            consumer.assign(&partitions)?;
        } else {
            kafka_client::assign(&consumer, &partitions)?;
        }
    }
    Ok(())
}
