//! Delivery without transactions: nothing is lost, and the order is kept. After a crash, what was published after the last checkpoint may come again.

use std::collections::HashSet;
use std::time::Duration;

use rig::{Isolation, Ledger, Rig};

const DEADLINE: Duration = Duration::from_secs(60);

async fn rig(name: &str) -> Rig {
    let mut rig = Rig::new(name).await;
    rig.relay = rig.relay.with_env("DELIVERY", "at-least-once");
    rig.init(&[]).await;
    rig
}

#[tokio::test]
async fn at_least_once_uses_no_transactions() {
    let rig = rig("without_transactions").await;
    rig.start().await;
    rig.insert_each(100).await;
    rig.insert_together(6_000).await;
    rig.assert_exactly_once().await;
    let records = rig.records(Isolation::Committed).await.expect("records");
    let mut next = [0; 8];
    for record in &records {
        let expected = &mut next[usize::try_from(record.partition).expect("a partition")];
        assert_eq!(record.offset, *expected, "a transaction's marker would take an offset");
        *expected += 1;
    }
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn at_least_once_loses_nothing_and_keeps_the_order_through_kills() {
    let rig = rig("at_least_once").await;
    rig.start().await;
    for _ in 0..5 {
        rig.insert_each(150).await;
        rig.insert_together(3_000).await;
        rig.relay.kill_hard().await;
        rig.insert_each(50).await;
        rig.start().await;
    }
    let ledger = rig
        .wait_until_published(DEADLINE)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    assert!(ledger.is_at_least_once(), "{ledger}");
    // A record that comes again must equal the one before. Without the repeats, the order must be that of the commits.
    let mut seen = HashSet::new();
    let records = rig.records(Isolation::Committed).await.expect("records");
    let first_copies: Vec<_> = records
        .into_iter()
        .filter(|record| seen.insert(record.header("id").expect("an id").to_owned()))
        .collect();
    let ledger = Ledger::compare(&rig.rows().await, &first_copies);
    assert!(ledger.is_exact(), "{ledger}");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn the_delivery_may_change_from_one_start_to_the_next() {
    let mut rig = rig("changing_delivery").await;
    for delivery in ["at-least-once", "exactly-once", "at-least-once"] {
        rig.relay = rig.relay.with_env("DELIVERY", delivery);
        rig.start().await;
        rig.insert_each(50).await;
        rig.assert_exactly_once().await;
        rig.relay.stop().await.expect("a clean end");
    }
    rig.finish().await.expect("a clean end");
}
