//! The builder dies or fails at each step of its protocol, when it comes there for the first and the third time. Afterwards no event was applied
//! twice, and in the end every view is what its sources give. Each lane goes on with the database that the trouble before has left.

use stack::Program;

use super::lane::Lane;
use super::oracle::Complete::{self, EachEvent, LatestOfEachKey};
use super::site::Site;
use super::trouble::Reach::{self, BadEvents, CutOff, Letters, Starting, Stopping, Working};
use super::trouble::Trouble;

/// The name of the failpoint, how a builder comes there, and what happens there.
type Point = (&'static str, Reach, &'static [&'static str]);

/// These are reached only while a position does not exist yet, which is once in a database's life.
const BEGINNING: [Point; 2] = [
    ("begin.before", Starting, &["kill"]),
    ("begin.after", Starting, &["kill"]),
];

const STARTING: [Point; 7] = [
    ("install.begun", Starting, &["kill", "error"]),
    ("install.made", Starting, &["kill", "error"]),
    ("install.committed", Starting, &["kill", "error"]),
    ("claim.before", Starting, &["kill", "error"]),
    ("claim.made", Starting, &["kill", "error"]),
    ("takeover.asked", Starting, &["kill"]),
    ("look.before", Working, &["kill"]),
];

/// With `kill:20`, what was sent is done before the death. With `kill`, it may not even have been sent.
const BATCHES: [Point; 6] = [
    ("batch.before", Working, &["kill", "error"]),
    ("positions.sent", Working, &["kill", "kill:20", "error"]),
    ("views.sent", Working, &["kill", "kill:20", "error"]),
    ("commit.sent", Working, &["kill", "kill:20"]),
    ("commit.answered", Working, &["kill", "error"]),
    ("batch.applied", Working, &["kill"]),
];

const LETTERS: [Point; 3] = [
    ("letters.before", BadEvents, &["kill", "kill:20", "error"]),
    ("letters.read", Letters, &["kill"]),
    ("settle.before", CutOff, &["kill", "error"]),
];

/// The builder commits once in three seconds, so the third hit of each takes some time.
const GROUP_COMMITS: [Point; 2] = [
    ("group-commit.before", Working, &["kill", "error"]),
    ("group-commit.after", Working, &["kill", "error"]),
];

const RECORDS: [Point; 2] = [
    ("record.before", Working, &["kill"]),
    ("record.after", Working, &["kill"]),
];

const STOPPING: [Point; 3] = [
    ("stop.begun", Stopping, &["kill"]),
    ("stop.batch-ended", Stopping, &["kill"]),
    ("stop.left", Stopping, &["kill"]),
];

async fn survives(name: &str, complete: Complete, points: &[Point]) {
    let site = Site::shared().await;
    let lane = Lane::new(&site, name, complete).await;
    let builder = lane.builder("builder", true);
    for (points, hits) in [(&BEGINNING[..], &[1][..]), (points, &[1, 3])] {
        for &(point, reach, actions) in points {
            for &action in actions {
                for &hit in hits {
                    let trouble = Trouble {
                        point,
                        reach,
                        action,
                        hit,
                    };
                    let met = meet(&lane, trouble, &builder).await;
                    met.unwrap_or_else(|err| panic!("{name}, {trouble:?}: {err:#}"));
                }
            }
        }
    }
    builder.start().expect("a start");
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
    builder.stop().await.expect("a clean end");
}

/// Makes the trouble. Leaves the builder dead.
async fn meet(lane: &Lane, trouble: Trouble, builder: &Program) -> anyhow::Result<()> {
    let met = trouble.meet(lane, builder).await?;
    lane.check_order().await?;
    met.kill_hard().await;
    Ok(())
}

#[tokio::test]
async fn trouble_while_starting() {
    survives("starting", LatestOfEachKey, &STARTING).await;
}

#[tokio::test]
async fn trouble_in_whole_batches() {
    survives("batches", LatestOfEachKey, &BATCHES).await;
}

#[tokio::test]
async fn trouble_with_one_event_in_a_transaction() {
    survives("single", EachEvent, &BATCHES).await;
}

#[tokio::test]
async fn trouble_with_dead_letters_and_lost_connections() {
    survives("letters", LatestOfEachKey, &LETTERS).await;
}

#[tokio::test]
async fn trouble_with_the_groups_offsets() {
    survives("group_commits", LatestOfEachKey, &GROUP_COMMITS).await;
}

#[tokio::test]
async fn trouble_with_writing_down_the_groups_offsets() {
    survives("records", LatestOfEachKey, &RECORDS).await;
}

#[tokio::test]
async fn trouble_while_stopping() {
    survives("stopping", LatestOfEachKey, &STOPPING).await;
}
