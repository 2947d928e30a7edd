//! The relay dies, fails or is delayed at each step of its protocol: when it comes there for the first, the second and the tenth time. Afterwards
//! every row is in the topic exactly once, in order.

use std::sync::Arc;

use rig::{Rig, servers};

use super::faulty::Reach::{self, Publishing, Repeating, Starting};
use super::faulty::{FaultyRelay, Trouble};

/// The delay is longer than the transaction timeout of these relays, and longer than the interval in which the broker looks for timeouts.
const ACTIONS: [&str; 4] = ["exit", "kill", "delay:3000", "error"];

/// The newest PostgreSQL gets all three. The relay's steps are the same on the older ones, so each of them gets one of the three.
fn hits() -> &'static [u32] {
    match servers::postgres_version() {
        15 => &[1],
        16 => &[2],
        17 => &[10],
        _ => &[1, 2, 10],
    }
}

async fn survives_at(point: &'static str, reach: Reach) {
    let name = format!("matrix_{}", point.replace(['.', '-'], "_"));
    let rig = Arc::new(Rig::initialised(&name).await);
    for action in ACTIONS {
        for hit in hits().iter().copied() {
            let trouble = Trouble {
                point,
                reach,
                action,
                hit,
            };
            let relay = FaultyRelay::new(&rig, trouble, "");
            relay.survives().await.unwrap_or_else(|err| panic!("{err:#}"));
        }
    }
    rig.finish().await.expect("a clean end");
}

macro_rules! matrix {
    ($($test:ident: $point:literal, $reach:expr;)*) => {
        $(#[tokio::test]
        async fn $test() {
            survives_at($point, $reach).await;
        })*
    };
}

matrix! {
    trouble_before_it_owns_the_slot: "start.connected", Starting;
    trouble_when_it_owns_the_slot: "start.owns-slot", Starting;
    trouble_after_fencing: "start.fenced", Starting;
    trouble_after_reading_the_checkpoint: "start.checkpoint-read", Starting;
    trouble_after_verifying: "start.verified", Starting;
    trouble_while_skipping_what_is_published: "skip", Repeating;
    trouble_after_receiving: "receive.after", Publishing;
    trouble_before_begin: "begin.before", Publishing;
    trouble_in_the_middle_of_producing: "produce", Publishing;
    trouble_after_the_checkpoint_record: "checkpoint.after", Publishing;
    trouble_after_flush: "flush.after", Publishing;
    trouble_before_commit: "commit.before", Publishing;
    trouble_after_commit: "commit.after", Publishing;
    trouble_before_the_confirmation: "confirm.before", Publishing;
    trouble_after_the_confirmation: "confirm.after", Publishing;
}
