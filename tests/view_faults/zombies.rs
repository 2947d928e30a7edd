//! A builder freezes for longer than its session's timeout. Another builder takes its partitions. Then the first one wakes up in the middle of its
//! work, and nothing of that work may become visible.

use std::time::Duration;

use rustix::process::Signal;
use stack::{Program, eventually};

use super::lane::Lane;
use super::oracle::Complete::LatestOfEachKey;
use super::site::Site;
use super::trouble::{Reach::Working, Trouble, hits_in};

/// This includes the session's timeout, the rebalance of the group, and the wait for the lock of the frozen transaction.
const TAKEOVER_DEADLINE: Duration = Duration::from_secs(90);

/// A builder that was frozen and has just woken up, and the builder that has taken its place.
pub(crate) struct Awake {
    pub zombie: Program,
    pub successor: Program,
}

/// Lets a builder freeze at `point`, lets another builder take over and go on, and lets the first one wake up.
pub(crate) async fn wake_behind_a_successor(lane: &Lane, point: &'static str) -> anyhow::Result<Awake> {
    let (zombie, successor) = (lane.builder("zombie", false), lane.builder("successor", false));
    let trouble = Trouble {
        point,
        reach: Working,
        action: "freeze",
        hit: 5,
    };
    let (zombie, hits) = trouble.arm(lane, &zombie);
    zombie.start()?;
    eventually(TAKEOVER_DEADLINE, "the builder freezes", || {
        std::future::ready((hits_in(&hits) >= trouble.hit).then_some(()))
    })
    .await;
    successor.start()?;
    let successor_id = successor.process().expect("a started builder").id();
    let successor_has_all = format!(
        "select 1 where (select bool_and(owner like '%/{successor_id}') and count(*) = 16 from view_positions)"
    );
    eventually(TAKEOVER_DEADLINE, "another builder has all partitions", || async {
        let rows = lane.query(&successor_has_all).await.ok()?;
        (!rows.is_empty()).then_some(())
    })
    .await;
    // The successor goes on. So what the frozen builder holds is old when it wakes up.
    let before = last_applied_event(lane).await?;
    eventually(TAKEOVER_DEADLINE, "the successor applies events", || async {
        (last_applied_event(lane).await.ok()? > before + 15).then_some(())
    })
    .await;
    zombie.process().expect("a started builder").signal(Signal::CONT);
    Ok(Awake { zombie, successor })
}

/// The number of the last event that was applied.
async fn last_applied_event(lane: &Lane) -> anyhow::Result<i64> {
    Ok(lane
        .value("select coalesce(max(id), 0) from applied_events")
        .await?
        .parse()?)
}

async fn assert_zombie_is_fenced(name: &str, point: &'static str) {
    let site = Site::shared().await;
    let lane = Lane::new(&site, name, LatestOfEachKey).await;
    let awake = wake_behind_a_successor(&lane, point).await;
    let Awake { zombie, successor } = awake.unwrap_or_else(|err| panic!("{err:#}\n{}", lane.log_tails()));
    eventually(TAKEOVER_DEADLINE, "the zombie finds that it is one", || {
        let log = zombie.log_text();
        let noticed = log.contains("somebody has claimed a partition")
            || log.contains("the group has assigned partitions partitions=0");
        std::future::ready(noticed.then_some(()))
    })
    .await;
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
    // Now both are members of the group, and share the partitions.
    successor.stop().await.expect("a clean end");
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
    zombie.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_zombie_with_an_open_transaction_is_fenced() {
    assert_zombie_is_fenced("zombie_in_transaction", "positions.sent").await;
}

#[tokio::test]
async fn a_zombie_that_was_about_to_send_a_batch_is_fenced() {
    assert_zombie_is_fenced("zombie_with_batch", "batch.before").await;
}

#[tokio::test]
async fn a_zombie_that_was_about_to_hear_of_its_commit_is_fenced() {
    assert_zombie_is_fenced("zombie_in_commit", "commit.sent").await;
}
