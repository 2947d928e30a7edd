//! Builders start and stop under load.

use std::time::Duration;

use stack::{Program, eventually};

use super::lane::Lane;
use super::oracle::Complete::LatestOfEachKey;
use super::site::Site;
use super::trouble::{Reach::Working, Trouble, hits_in};

const REBALANCED: Duration = Duration::from_secs(90);

/// Waits until these builders share all partitions, and each has some.
async fn wait_until_shared_by(lane: &Lane, builders: &[Program]) {
    let owners: Vec<String> = builders
        .iter()
        .map(|builder| builder.process().expect("a started builder").id().to_string())
        .collect();
    let sql = format!(
        "select count(distinct owner) from view_positions having count(*) = 16
            and count(*) filter (where split_part(owner, '/', 2) in ('{}')) = 16",
        owners.join("', '")
    );
    let what = format!("{} builders share the partitions", builders.len());
    stack::eventually_ok(REBALANCED, &what, || async {
        let owners = lane.value(&sql).await?;
        anyhow::ensure!(owners == builders.len().to_string(), "{owners} have some");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", lane.log_tails()));
}

/// Waits until the clients have made some more changes.
async fn wait_for_changes(lane: &Lane) {
    let before = lane.site.load.changes();
    eventually(REBALANCED, "the clients go on", || {
        std::future::ready((lane.site.load.changes() > before + 30).then_some(()))
    })
    .await;
}

#[tokio::test]
async fn builders_that_come_and_go_apply_each_event_once() {
    let site = Site::shared().await;
    let lane = Lane::new(&site, "rebalances", LatestOfEachKey).await;
    let mut builders = Vec::new();
    for name in ["first", "second", "third", "fourth"] {
        let builder = lane.builder(name, false);
        builder.start().expect("a start");
        builders.push(builder);
        wait_until_shared_by(&lane, &builders).await;
        wait_for_changes(&lane).await;
    }
    // The oldest builder stops in order, the next one is killed, and the third one stops in order.
    for is_killed in [false, true, false] {
        let leaving = builders.remove(0);
        if is_killed {
            leaving.kill_hard().await;
        } else {
            leaving.stop().await.expect("a clean end");
        }
        wait_until_shared_by(&lane, &builders).await;
        wait_for_changes(&lane).await;
    }
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
    builders[0].stop().await.expect("a clean end");
}

/// librdkafka waits for an answer to each assignment. If an assignment is dropped without an answer, the builder does nothing more.
#[tokio::test]
async fn a_builder_that_is_fenced_while_it_is_given_partitions_comes_back() {
    let site = Site::shared().await;
    let lane = Lane::new(&site, "fenced_in_rebalance", LatestOfEachKey).await;
    let slow = Trouble {
        point: "batch.before",
        reach: Working,
        action: "delay:12000",
        hit: 3,
    };
    let (first, hits) = slow.arm(&lane, &lane.builder("first", false));
    first.start().expect("a start");
    eventually(REBALANCED, "the first builder dawdles", || {
        std::future::ready((hits_in(&hits) >= slow.hit).then_some(()))
    })
    .await;
    let second = lane.builder("second", false);
    second.start().expect("a start");
    eventually(REBALANCED, "the first builder is given a half", || {
        let given = first
            .log_text()
            .contains("the group has assigned partitions partitions=8");
        std::future::ready(given.then_some(()))
    })
    .await;
    let own = first.process().expect("a started builder").id();
    let fence = format!("update view_positions set epoch = epoch + 1 where owner like '%/{own}'");
    lane.query(&fence).await.expect("positions");
    eventually(REBALANCED, "the first builder is fenced", || {
        let fenced = first.log_text().contains("somebody has claimed a partition");
        std::future::ready(fenced.then_some(()))
    })
    .await;
    let builders = [first, second];
    wait_until_shared_by(&lane, &builders).await;
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
    for builder in builders {
        builder.stop().await.expect("a clean end");
    }
}
