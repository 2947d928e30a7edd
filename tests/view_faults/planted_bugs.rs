//! Tests of the tests: a builder with a planted bug does not survive what the right one survives. Each bug meets the trouble for which it is a
//! mistake. It is caught if an event is applied twice, in the wrong order or not at all, or if the sampler sees something impossible.

use std::time::Duration;

use super::lane::Lane;
use super::oracle::Complete::LatestOfEachKey;
use super::site::Site;
use super::trouble::{Reach::Working, Trouble};
use super::zombies::wake_behind_a_successor;

/// By then each partition has had another event.
const MOVED: Duration = Duration::from_secs(90);
/// The oracle's words for an event that is not in the views, and for one that was applied twice or too late.
const LOST: &str = "not applied: ";
const AGAIN: &str = " applied after ";

/// Makes the trouble without the bug, which the builder must survive, and with the bug, which it must not survive. The first batch has everything
/// that was published before, so that nothing hides what is done to it.
async fn assert_caught(
    bug: &str,
    point: &'static str,
    right_point: &'static str,
    action: &'static str,
    hit: usize,
    finding: &str,
) {
    for planted in ["", bug] {
        let lane = lane(bug, planted).await;
        let builder = lane.builder("builder", true);
        let trouble = Trouble {
            point: if planted.is_empty() { right_point } else { point },
            reach: Working,
            action,
            hit,
        };
        let met = trouble.meet(&lane, &builder).await;
        let met = met.unwrap_or_else(|err| panic!("{planted}: {err:#}"));
        wait_until_every_partition_moves(&lane).await;
        assert_outcome(&lane, bug, planted, finding).await;
        met.kill_hard().await;
    }
}

/// Waits until a new event of each partition was applied. If events were skipped, the position of their partition shows it only then.
async fn wait_until_every_partition_moves(lane: &Lane) {
    lane.query("create table moves_from as select topic, partition, next_offset from view_positions")
        .await
        .expect("positions");
    let still = "select count(*) from view_positions join moves_from using (topic, partition)
        where view_positions.next_offset <= moves_from.next_offset";
    stack::eventually_ok(MOVED, "every partition has new events", || async {
        let still = lane.value(still).await?;
        anyhow::ensure!(still == "0", "{still} have none");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", lane.log_tails()));
}

async fn lane(bug: &str, planted: &str) -> Lane {
    let site = Site::shared().await;
    let suffix = if planted.is_empty() { "right" } else { "wrong" };
    let name = format!("planted_{}_{suffix}", bug.to_lowercase());
    Lane::new(&site, &name, LatestOfEachKey).await.bug(planted)
}

async fn assert_outcome(lane: &Lane, bug: &str, planted: &str, finding: &str) {
    match (planted.is_empty(), lane.check_exact().await) {
        (true, Err(err)) => panic!("the right builder does not survive: {err:#}"),
        (false, Ok(())) => panic!("{bug} goes unnoticed\n{}", lane.log_tails()),
        (true, Ok(())) => {}
        (false, Err(err)) => {
            let text = format!("{err:#}");
            assert!(text.contains(finding), "{bug} is found otherwise: {text}");
        }
    }
}

#[tokio::test]
async fn moving_the_position_before_the_views_is_caught() {
    assert_caught(
        "PositionFirst",
        "positions.committed",
        "positions.sent",
        "kill",
        1,
        LOST,
    )
    .await;
}

#[tokio::test]
async fn moving_the_position_after_the_views_is_caught() {
    assert_caught("PositionLast", "commit.answered", "commit.answered", "kill", 1, AGAIN).await;
}

#[tokio::test]
async fn trusting_the_groups_offset_is_caught() {
    // The group has an offset from its first commit. The positions are after it, because otherwise there would be no second commit.
    assert_caught(
        "TrustTheGroup",
        "group-commit.before",
        "group-commit.before",
        "kill",
        2,
        AGAIN,
    )
    .await;
}

#[tokio::test]
async fn taking_an_unknown_commit_for_failed_is_caught() {
    assert_caught(
        "UnknownIsFailed",
        "commit.answered",
        "commit.answered",
        "error",
        1,
        AGAIN,
    )
    .await;
}

#[tokio::test]
async fn taking_an_unknown_commit_for_done_is_caught() {
    assert_caught("UnknownIsDone", "positions.sent", "positions.sent", "error", 1, LOST).await;
}

#[tokio::test]
async fn moving_without_a_fence_is_caught() {
    let (bug, finding) = ("NoFence", AGAIN);
    for planted in ["", bug] {
        let lane = lane(bug, planted).await;
        let awake = wake_behind_a_successor(&lane, "batch.before").await;
        let awake = awake.unwrap_or_else(|err| panic!("{err:#}\n{}", lane.log_tails()));
        assert_outcome(&lane, bug, planted, finding).await;
        awake.zombie.kill_hard().await;
        awake.successor.kill_hard().await;
    }
}
