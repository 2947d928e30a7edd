//! A rebuild dies or fails at each of its steps, under load and beside the sampler. The old generation stays, and the next command goes on.

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
/// Other tests make letters of keys that never had a row. Such keys look like keys whose events were compacted away.
const REBUILD: [&str; 3] = ["rebuild", VIEW, "--accept-compacted"];
/// The failpoints of a rebuild, in the order in which it comes to them.
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
/// If a rebuild fails at one of these, it does not try again.
const UNBEGUN: [&str; 2] = ["rebuild.made", "rebuild.begun"];
/// From this point on the new generation is the live one.
const SWAPPED: &str = "swap.committed";

/// Something that differs between two generations of the view.
async fn generation(lane: &Lane) -> anyhow::Result<String> {
    lane.value(&format!("select '{VIEW}'::regclass::oid")).await
}

/// Rebuilds the view with this trouble. If the rebuild died of it, rebuilds once more.
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
    // A rebuild that has begun waits for a database that is away. A rebuild that has not begun says that the database is away, and ends.
    if is_killed || UNBEGUN.contains(&trouble.point) {
        ensure!(!status.success(), "{status}\n{}", armed.log_tail(20));
        let is_swapped = generation(lane).await? != before;
        ensure!(is_swapped == (trouble.point == SWAPPED), "swapped: {is_swapped}");
        lane.check_order().await?;
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
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
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
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
    builder.stop().await.expect("a clean end");
}
