//! Two relays whose starts overlap, because a connection to PostgreSQL is half open. The server has given the slot to the second relay. The first
//! relay still starts, and publishes what its socket holds. The broker decides which relay fences first at which transactional id. Every event is
//! published once only if both rules of the relay's `turn.rs` hold.

use std::path::PathBuf;
use std::time::Duration;

use rig::half_open_proxy::HalfOpenProxy;
use rig::{Isolation, Rig};
use stack::{Program, eventually};

use super::super::tampering::checkpoints;

const DEADLINE: Duration = Duration::from_secs(60);

/// The file that a waiting failpoint looks for.
fn signal(rig: &Rig, relay: &str) -> PathBuf {
    rig.logs().join(format!("{relay}-may-go-on"))
}

fn go_on(rig: &Rig, relay: &str) {
    std::fs::write(signal(rig, relay), "").expect("a writable directory");
}

/// A relay that stands still when it comes to this point for the `hit`-th time, until the test lets it go on.
fn halting(rig: &Rig, relay: Program, name: &str, point: &str, hit: u32) -> Program {
    let hits = rig.logs().join(format!("{name}-hits"));
    relay
        .with_binary("outbox-relay-faults")
        .env(
            "OUTBOX_RELAY_FAILPOINT",
            &format!("{point}=until:{}@{hit}", signal(rig, name).display()),
        )
        .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy())
        .env("TRANSACTION_BYTES", "65536")
}

async fn halts(rig: &Rig, name: &str, hit: usize) {
    let hits = rig.logs().join(format!("{name}-hits"));
    eventually(DEADLINE, "the relay stands still", || {
        let text = std::fs::read_to_string(&hits).unwrap_or_default();
        std::future::ready((text.lines().count() >= hit).then_some(()))
    })
    .await;
}

/// The relay, changed to reach PostgreSQL through a proxy.
async fn through_a_proxy(rig: &Rig, relay: Program) -> (Program, HalfOpenProxy) {
    let port = rig.servers.postgres.port();
    let proxy = HalfOpenProxy::start(port).await.expect("a proxy");
    let url = rig.servers.postgres.url("postgres", rig.name());
    let url = url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    (relay.with_env("DATABASE_URL", &url), proxy)
}

/// Waits until the server has sent so many bytes. Then makes the server forget the relay.
async fn forget(rig: &Rig, proxy: &HalfOpenProxy, bytes: u64) {
    eventually(DEADLINE, "the server has sent rows", || {
        std::future::ready((proxy.bytes_from_server() > bytes).then_some(()))
    })
    .await;
    proxy.leave_half_open();
    rig.wait_until_slot_is_free().await;
}

async fn committed(rig: &Rig) -> usize {
    rig.records(Isolation::Committed).await.expect("records").len()
}

/// If `is_right` is false, asserts that the relay has published something twice. Otherwise asserts that both relays go on, and that every row is
/// there exactly once.
async fn assert_outcome(rig: &Rig, is_right: bool) {
    if is_right {
        rig.insert_each(3).await;
        rig.assert_exactly_once().await;
    } else {
        eventually(DEADLINE, "events are published twice", || async {
            let ledger = rig.ledger(Isolation::Committed).await.ok()?;
            (!ledger.duplicates.is_empty()).then_some(())
        })
        .await;
    }
}

/// The first relay fences the first id. Then the second relay fences all ids. Then the first relay fences the other ids. So each relay has an id of
/// its own.
#[tokio::test]
async fn beginning_at_any_lane_is_caught() {
    for (bug, is_right) in [("TrustAnyReader", true), ("TrustAnyReader,BeginsAtAnyLane", false)] {
        let rig = Rig::initialised(&format!("lanes_begin_{is_right}")).await;
        rig.insert_each(200).await;
        let first = halting(&rig, rig.another_relay("first"), "first", "fence.first.after", 1);
        let (first, proxy) = through_a_proxy(&rig, first.env("OUTBOX_RELAY_BUG", bug)).await;
        first.start().expect("a relay");
        halts(&rig, "first", 1).await;
        forget(&rig, &proxy, 20_000).await;
        let second = halting(&rig, rig.another_relay("second"), "second", "start.checkpoint-read", 1);
        second.start().expect("a second relay");
        halts(&rig, "second", 1).await;
        go_on(&rig, "first");
        eventually(DEADLINE, "the first relay has published, or was refused", || async {
            let was_refused = first.log_text().contains("starting again from the checkpoint");
            (was_refused || committed(&rig).await > 0).then_some(())
        })
        .await;
        assert_eq!(committed(&rig).await > 0, !is_right, "{}", first.log_tail(20));
        go_on(&rig, "second");
        second.wait_ready(DEADLINE).await.expect("it publishes");
        first.kill_hard().await;
        assert_outcome(&rig, is_right).await;
        second.kill_hard().await;
        rig.finish().await.expect("a clean end");
    }
}

/// The first relay fences the other ids. The second relay fences all ids, and commits its first transaction. Then the first relay fences the first
/// id. It does not see the next transaction of the second relay, which uses another id. (It would see that transaction if it waited for open
/// transactions, as it does for another reason.)
#[tokio::test]
async fn fencing_in_any_order_is_caught() {
    for (bug, is_right) in [
        ("TrustAnyReader,GoOnBehindOpenTransactions", true),
        ("TrustAnyReader,GoOnBehindOpenTransactions,FencesInAnyOrder", false),
    ] {
        let rig = Rig::initialised(&format!("lanes_fence_{is_right}")).await;
        rig.insert_together(1_500).await;
        let first = halting(&rig, rig.another_relay("first"), "first", "fence.first.before", 1);
        let first = first.env("OUTBOX_RELAY_BUG", bug).env("LOG", "debug");
        let (first, proxy) = through_a_proxy(&rig, first).await;
        first.start().expect("a relay");
        halts(&rig, "first", 1).await;
        if !is_right {
            eventually(DEADLINE, "the first relay has fenced the other lanes", || {
                let fenced = first.log_text().matches("fenced earlier producers").count();
                std::future::ready((fenced >= 2).then_some(()))
            })
            .await;
        }
        forget(&rig, &proxy, 200_000).await;
        // About 300 rows go into one transaction, so the relay is in the middle of its second transaction.
        let second = halting(&rig, rig.another_relay("second"), "second", "produce", 500);
        second.start().expect("a second relay");
        halts(&rig, "second", 500).await;
        eventually(
            DEADLINE,
            "the second relay's first transaction has committed",
            || async { (committed(&rig).await > 0).then_some(()) },
        )
        .await;
        let before = committed(&rig).await;
        assert!(before < 500, "{before} rows are in the first transaction");
        // The records of the first relay are hidden behind the second relay's open transaction. So only its checkpoint can be seen.
        let checkpoints_before = checkpoints(&rig).await.len();
        go_on(&rig, "first");
        eventually(DEADLINE, "the first relay commits some of what it holds", || async {
            (checkpoints(&rig).await.len() > checkpoints_before).then_some(())
        })
        .await;
        go_on(&rig, "second");
        eventually(DEADLINE, "the second relay is refused at last", || {
            let log = second.log_text();
            std::future::ready(
                (log.contains("starting again from the checkpoint") || second.process().is_none()).then_some(()),
            )
        })
        .await;
        first.kill_hard().await;
        assert_outcome(&rig, is_right).await;
        second.kill_hard().await;
        rig.finish().await.expect("a clean end");
    }
}
