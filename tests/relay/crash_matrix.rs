//! The relay dies, fails or dawdles at each step of its protocol, at the first, second and tenth time that it comes by; after each, every row is
//! in the topic exactly once, in order.

use std::sync::Arc;

use rig::{Rig, servers};

use super::faulty::Reach::{self, Publishing, Repeating, Starting};
use super::faulty::{FaultyRelay, Trouble};

/// The delay is longer than the transaction timeout that these relays have, and than the broker's interval to look for it.
const ACTIONS: [&str; 4] = ["exit", "kill", "delay:3000", "error"];

/// All of them on the newest PostgreSQL. The relay's steps are the same on the others, so that each of those takes one of the three.
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
