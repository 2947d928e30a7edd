//! A panic in any thread or task ends the relay at once, and the next relay goes on. Nothing is lost, and nothing comes twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::rig::READY_DEADLINE;
use rig::{Rig, relay_exit};
use stack::eventually;
use stack::program::Readiness;

use crate::relay::faulty::Reach::Publishing;
use crate::relay::faulty::{FaultyRelay, Trouble};

/// The time from the failpoint's line in the log to the end of the process.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// With the bug, the relay says for so long that it is ready. A living guard would have looked several times.
const STAYS_READY: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_panic_in_any_thread_or_task_ends_the_relay_and_its_successor_goes_on() {
    let points = [
        // The loop that streams, a commit thread, a thread of the runtime that starts on Kafka, the guard's task, and two threads of their own.
        ("produce", 20),
        ("commit.before", 2),
        ("start.fenced", 1),
        ("guard.look", 2),
        ("maintenance.round", 2),
        ("admin", 1),
    ];
    for (point, hit) in points {
        let name = format!("panic_{}", point.replace(['.', '-'], "_"));
        let rig = Arc::new(Rig::initialised(&name).await);
        let trouble = Trouble {
            point,
            reach: Publishing,
            action: "panic",
            hit,
        };
        let relay = FaultyRelay::new(&rig, trouble, "").env("OUTBOX_MAINTENANCE_INTERVAL", "1");
        relay.survives().await.unwrap_or_else(|err| panic!("{err:#}"));
        assert_eq!(relay.panics(), 1, "{point}: it ends once");
        rig.finish().await.expect("a clean end");
    }
}

#[tokio::test]
async fn a_relay_that_survives_a_panic_of_its_guard_is_caught() {
    for (bug, ends) in [("", true), ("SurvivePanics", false)] {
        let rig = Rig::initialised(&format!("panic_guard_{ends}")).await;
        let hits = rig.logs().join("hits");
        let relay = rig
            .relay
            .with_binary("outbox-relay-faults")
            .env("OUTBOX_RELAY_FAILPOINT", "guard.look=panic@3")
            .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy())
            .env("OUTBOX_RELAY_BUG", bug);
        relay.start().expect("a relay");
        eventually(READY_DEADLINE, "the guard panics", || async {
            relay.log_text().contains("the failpoint acts").then_some(())
        })
        .await;
        if ends {
            let status = relay.exited(END_DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
            let log = relay.log_text();
            assert_eq!(status.code(), Some(relay_exit::PANIC), "{log}");
            assert!(log.contains("failpoint guard.look") && log.contains("a bug"), "{log}");
        } else {
            let (started, client) = (Instant::now(), reqwest::Client::new());
            while started.elapsed() < STAYS_READY {
                let readiness = relay.readiness(&client).await;
                assert!(matches!(readiness, Ok(Readiness::Ready)), "{readiness:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            relay.kill_hard().await;
        }
        rig.finish().await.expect("a clean end");
    }
}
