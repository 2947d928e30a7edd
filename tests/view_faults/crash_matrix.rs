//! The builder dies or fails at each step of its protocol, at the first and third time that it comes by; after each, no event was applied
//! twice, and in the end every view is what its sources give. Each lane goes on with the database that the trouble before has left.

use std::sync::Arc;
use std::time::Instant;

use super::lane::Lane;
use super::oracle::Complete::{self, EachEvent, LatestOfEachKey};
use super::site::Site;
use super::trouble::Reach::{self, BadEvents, CutOff, Letters, Starting, Stopping, Working};
use super::trouble::Trouble;

const HITS: [usize; 2] = [1, 3];

type Point = (&'static str, Reach, &'static [&'static str]);

const STARTING: [Point; 8] = [
    ("begin.before", Starting, &["kill"]),
    ("install.begun", Starting, &["kill", "error"]),
    ("install.made", Starting, &["kill", "error"]),
    ("install.committed", Starting, &["kill", "error"]),
    ("claim.before", Starting, &["kill", "error"]),
    ("claim.made", Starting, &["kill", "error"]),
    ("takeover.asked", Starting, &["kill"]),
    ("look.before", Working, &["kill"]),
];

/// With `kill:20` what was sent is done before the death, with `kill` it may not even have been sent.
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

const GROUP_COMMITS: [Point; 4] = [
    ("group-commit.before", Working, &["kill", "error"]),
    ("group-commit.after", Working, &["kill", "error"]),
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
    let started = Instant::now();
    let builder = lane.builder("builder", true);
    let mut troubles = 0;
    for &(point, reach, actions) in points {
        for &action in actions {
            for hit in HITS {
                let trouble = Trouble {
                    point,
                    reach,
                    action,
                    hit,
                };
                let met = trouble.meet(&lane, &builder).await;
                let met = met.unwrap_or_else(|err| panic!("{name}: {err:#}"));
                if lane.query("select from applied_events limit 1").await.is_ok() {
                    let order = lane.is_in_order().await;
                    order.unwrap_or_else(|err| panic!("{trouble:?}: {err:#}"));
                }
                met.kill_hard().await;
                troubles += 1;
            }
        }
    }
    builder.start().expect("a start");
    lane.is_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
    builder.stop().await.expect("a clean end");
    let seconds = started.elapsed().as_secs();
    println!("{name}: {troubles} troubles in {seconds} s");
    drop(Arc::clone(&site));
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
async fn trouble_while_stopping() {
    survives("stopping", LatestOfEachKey, &STOPPING).await;
}
