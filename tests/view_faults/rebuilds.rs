//! A rebuild dies or fails at each of its steps, under load and beside the sampler: the old generation stays, and the next command goes on.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::lane::Lane;
use super::oracle::Complete::LatestOfEachKey;
use super::site::Site;
use super::trouble::{Reach::Working, Trouble, hits_in};

const SIGKILL: i32 = 9;
const ENDED: Duration = Duration::from_secs(90);
const VIEW: &str = "user_view";
/// Other tests make letters of keys that never had a row; nobody can tell those from keys whose events were compacted away.
const REBUILD: [&str; 3] = ["rebuild", VIEW, "--accept-compacted"];
/// In the order in which a rebuild comes by.
const POINTS: [&str; 9] = [
    "rebuild.made",
    "rebuild.begun",
    "fill.applied",
    "fill.committed",
    "rebuild.filled",
    "swap.locked",
    "swap.last-events",
    "swap.made",
    SWAPPED,
];
/// What fails here is not tried again.
const UNBEGUN: [&str; 2] = ["rebuild.made", "rebuild.begun"];
/// From here on the new generation is the live one.
const SWAPPED: &str = "swap.committed";

/// What tells one generation of the view from another.
async fn generation(lane: &Lane) -> anyhow::Result<String> {
    lane.value(&format!("select '{VIEW}'::regclass::oid")).await
}

/// Rebuilds the view with this trouble, and once more where it died of it.
async fn meet(lane: &Lane, trouble: Trouble) -> anyhow::Result<()> {
    let before = generation(lane).await?;
    let name = format!("rebuild-{}-{}", trouble.point, trouble.action);
    let command = lane.builder("rebuild", false).command_of(&name, &REBUILD);
    let (armed, hits) = trouble.arm(lane, &command);
    armed.start()?;
    let status = armed.exited(ENDED).await?;
    ensure!(
        hits_in(&hits) >= trouble.hit,
        "it did not come by\n{}",
        armed.log_tail(20)
    );
    let is_killed = trouble.action == "kill";
    ensure!(
        (status.signal() == Some(SIGKILL)) == is_killed,
        "{status}\n{}",
        armed.log_tail(20)
    );
    // A rebuild that has begun waits for a database that went away; before, it says that there is none.
    if is_killed || UNBEGUN.contains(&trouble.point) {
        ensure!(!status.success(), "{status}\n{}", armed.log_tail(20));
        let is_swapped = generation(lane).await? != before;
        ensure!(is_swapped == (trouble.point == SWAPPED), "swapped: {is_swapped}");
        lane.is_in_order().await?;
        command.start()?;
        let status = command.exited(ENDED).await?;
        ensure!(status.success(), "{status}\n{}", command.log_tail(20));
    } else {
        ensure!(status.success(), "{status}\n{}", armed.log_tail(20));
    }
    ensure!(generation(lane).await? != before, "the view is the old one");
    let left = "select (select count(*) from view_rebuilds) + (select count(*) from pg_namespace where nspname like '%\\_re%')";
    let left = lane.value(left).await?;
    ensure!(left == "0", "{left} things are left");
    Ok(())
}

#[tokio::test]
async fn a_rebuild_that_dies_or_fails_anywhere_leaves_the_old_view_and_goes_on() {
    let site = Site::shared().await;
    let lane = Lane::new(&site, "rebuilds", LatestOfEachKey).await;
    let builder = lane.builder("builder", true);
    builder.start().expect("a start");
    lane.is_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
    for point in POINTS {
        for action in ["kill", "error"] {
            let trouble = Trouble {
                point,
                reach: Working,
                action,
                hit: 1,
            };
            let met = meet(&lane, trouble).await.with_context(|| format!("{trouble:?}"));
            met.unwrap_or_else(|err| panic!("{err:#}"));
        }
    }
    lane.is_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
    builder.stop().await.expect("a clean end");
}
