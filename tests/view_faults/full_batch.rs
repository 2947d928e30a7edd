//! A batch waits in Postgres, the next one is full, and nobody asks Kafka's client for records.

use std::time::Duration;

use anyhow::Context;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rig::ViewRig;
use rig::view_rig::DEADLINE;
use stack::eventually_ok;

use super::rebuild_positions::{CONTENT, ITEMS, item};
use super::rig_itself::{TABLE, apply};

const TIMEOUT: Duration = Duration::from_secs(5);

/// How many members the rig's group has. A group that Kafka does not name is an error.
async fn members(rig: &ViewRig) -> anyhow::Result<usize> {
    let (servers, group) = (rig.servers.kafka.bootstrap_servers(), rig.name().to_owned());
    tokio::task::spawn_blocking(move || {
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", servers).create()?;
        let groups = client.fetch_group_list(Some(&group), TIMEOUT)?;
        let found = groups.groups().iter().find(|found| found.name() == group);
        Ok(found.context("Kafka names no such group")?.members().len())
    })
    .await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_builder_that_leaves_its_group_while_a_batch_waits_loses_nothing() {
    let rig = ViewRig::new("full_batch").await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 2, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let builder = rig
        .builder("builder")
        .env("BATCH_ROWS", "10")
        .env("KAFKA_PROPERTIES", "max.poll.interval.ms=6000\nsession.timeout.ms=6000");
    builder.start().expect("a start");
    rig.produce(&topic, (1..=20).map(|id| item(&topic, id, 1)))
        .await
        .expect("offsets");
    rig.wait_until_applied(&topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    let holder = rig.client().await.expect("a client");
    let hold = "begin; lock table item in access exclusive mode";
    holder.batch_execute(hold).await.expect("a lock");
    let events = (1..=ITEMS).map(|id| item(&topic, id, 2));
    rig.produce(&topic, events).await.expect("offsets");
    let left = eventually_ok(DEADLINE, "it has left its group", || async {
        let members = members(&rig).await?;
        anyhow::ensure!(members == 0, "{members} members");
        Ok(())
    });
    left.await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    holder.batch_execute("rollback").await.expect("the lock is gone");
    rig.wait_until_applied(&topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    let content = rig.value(CONTENT).await.expect("a view");
    let wanted: Vec<String> = (1..=ITEMS).map(|id| format!("{id}:2")).collect();
    assert_eq!(content, wanted.join(" "));
    let letters = "select count(*) from view_dead_letters";
    assert_eq!(rig.value(letters).await.expect("a count"), "0");
    builder.stop().await.expect("a clean end");
}
