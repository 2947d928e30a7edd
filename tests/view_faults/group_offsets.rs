//! Changes of the consumer group's offsets in Kafka never lose or double an event. The positions in Postgres are the truth. Only an offset that is
//! lower than the one that this group has committed means something: somebody wants a replay.

use std::time::Duration;

use anyhow::ensure;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use stack::Program;

use super::lane::Lane;
use super::oracle::Complete::LatestOfEachKey;
use super::positions::{outsider, read_partition_states};
use super::site::Site;

const TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_groups_offsets_ahead_or_deleted_change_nothing_and_earlier_ones_are_a_replay() {
    let site = Site::shared().await;
    let lane = Lane::new(&site, "group_offsets", LatestOfEachKey).await;
    let builder = lane.builder("builder", false);
    builder.start().expect("a start");
    assert_exact(&lane).await;

    // The new offsets are after the positions. There are events between them.
    stop_and_wait_for_changes(&lane, &builder).await;
    let ahead = set_offsets(&lane, |_, end| end).await.expect("an empty group");
    assert!(ahead > 0, "the offsets are ahead of the positions");
    builder.start().expect("a start");
    assert_exact(&lane).await;

    // The new offsets are after the ends of the topics.
    stop_and_wait_for_changes(&lane, &builder).await;
    set_offsets(&lane, |_, end| end + 1_000).await.expect("an empty group");
    builder.start().expect("a start");
    assert_exact(&lane).await;

    stop_and_wait_for_changes(&lane, &builder).await;
    delete_group(&lane).await.expect("an empty group");
    builder.start().expect("a start");
    assert_exact(&lane).await;

    // The new offsets are before the positions: first in the middle, then at the beginning.
    let left_out = replay(&lane, &builder, |position| position / 2).await;
    assert!(left_out > 0, "what is before the middle is not applied again");
    let left_out = replay(&lane, &builder, |_| 0).await;
    assert_eq!(left_out, 0, "every key is applied again");
    let samples = lane.sampler.verdict().unwrap_or_else(|err| panic!("{err:#}"));
    assert!(samples > 100, "only {samples} samples");
    builder.stop().await.expect("a clean end");
}

/// Sets the group back, and lets the builder replay. Asserts that each event is applied again only once. Returns how many keys were not applied
/// again. If a key has changed meanwhile, only its latest event is applied again.
async fn replay(lane: &Lane, builder: &Program, offset: impl Fn(i64) -> i64) -> i64 {
    builder.stop().await.expect("a clean end");
    let before = query_number(lane, "select max(id) from applied_events").await;
    let distance = set_offsets(lane, |position, _| offset(position)).await;
    assert!(
        distance.expect("an empty group") < 0,
        "the offsets are behind the positions"
    );
    // Until the builder takes its partitions over, the positions are still at the ends of the topics.
    let taken_over = || builder.log_text().matches("partitions are taken over").count();
    let starts = taken_over();
    builder.start().expect("a start");
    stack::eventually(TIMEOUT, "the replay begins", || {
        std::future::ready((taken_over() > starts).then_some(()))
    })
    .await;
    let _pause = lane.site.load.pause().await;
    lane.wait_until_views_are_right()
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    let again = format!("applied_events where id > {before}");
    let doubled =
        format!("select count(*) from (select from {again} group by topic, key, version having count(*) > 1) as d");
    assert_eq!(query_number(lane, &doubled).await, 0, "once each");
    let replayed = format!(
        "select count(*) from (select topic, key, version from {again}
            intersect select topic, key, version from applied_events where id <= {before}) as replayed"
    );
    assert!(query_number(lane, &replayed).await > 0, "a replay applies events again");
    let left_out = format!(
        "select count(*) from (select topic, key from applied_events where id <= {before}
            except select topic, key from {again}) as left_out"
    );
    query_number(lane, &left_out).await
}

async fn query_number(lane: &Lane, sql: &str) -> i64 {
    let value = lane.value(sql).await.unwrap_or_else(|err| panic!("{err:#}"));
    value.parse().expect("a number")
}

/// Asserts that the views are right, and that every event was applied once.
async fn assert_exact(lane: &Lane) {
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Stops the builder, which leaves its group. Waits until more is published than the builder has applied.
async fn stop_and_wait_for_changes(lane: &Lane, builder: &Program) {
    builder.stop().await.expect("a clean end");
    let before = lane.site.load.changes();
    stack::eventually(TIMEOUT, "the clients go on", || {
        std::future::ready((lane.site.load.changes() > before + 20).then_some(()))
    })
    .await;
}

/// Sets the group's offset of each partition to a value that depends on its position and its end. Returns the sum of the distances from the
/// positions.
async fn set_offsets(lane: &Lane, offset: impl Fn(i64, i64) -> i64) -> anyhow::Result<i64> {
    let (servers, group) = (lane.bootstrap(), lane.name.clone());
    let mut list = TopicPartitionList::new();
    let mut distance = 0;
    for state in read_partition_states(lane).await? {
        let wanted = offset(state.position, state.end);
        distance += wanted - state.position;
        list.add_partition_offset(&state.topic, state.partition, Offset::Offset(wanted))?;
    }
    // The group may still have its last member for a moment.
    stack::eventually_ok(TIMEOUT, "the group takes the offsets", || {
        let (servers, group, list) = (servers.clone(), group.clone(), list.clone());
        async move {
            tokio::task::spawn_blocking(move || {
                let consumer: BaseConsumer = outsider(&servers, &group).create()?;
                consumer.commit(&list, CommitMode::Sync)?;
                anyhow::Ok(())
            })
            .await?
        }
    })
    .await?;
    Ok(distance)
}

async fn delete_group(lane: &Lane) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", lane.bootstrap())
        .create()?;
    stack::eventually_ok(TIMEOUT, "the group is deleted", || async {
        let deleted = admin.delete_groups(&[&lane.name], &AdminOptions::new()).await?;
        ensure!(deleted.iter().all(Result::is_ok), "{deleted:?}");
        Ok(())
    })
    .await
}
