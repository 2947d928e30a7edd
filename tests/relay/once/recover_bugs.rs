//! Tests of the tests: a `recover` with a planted bug does not survive what the right one survives.

use std::time::Duration;

use rig::rig::ARRIVAL_DEADLINE;
use rig::{Isolation, Rig};
use stack::{Program, eventually};

use crate::relay::lineage::older_database;
use crate::relay::tampering::published_and_stopped;

fn with_bug(rig: &Rig, bug: &str) -> Program {
    rig.relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", bug)
}

#[tokio::test]
async fn positions_that_go_back_are_caught() {
    let rig = older_database("recover_bug_positions").await;
    rig.insert_each(2).await;
    let recover = with_bug(&rig, "PositionsGoBack");
    recover.run(&["recover", "--yes"]).await.expect("recover runs");
    rig.start().await;
    let ledger = rig.wait_until_published(ARRIVAL_DEADLINE).await.expect("all rows");
    assert!(!ledger.reordered.is_empty(), "it goes unnoticed: {ledger}");
    rig.finish().await.expect("a clean end");
}

/// Rows are written after the comparison that the operator sees, and before the slot is made.
#[tokio::test]
async fn publishing_what_was_missing_before_the_slot_was_made_is_caught() {
    for (bug, is_right) in [("", true), ("CompareBeforeFence", false)] {
        let rig = published_and_stopped(&format!("recover_bug_compare_{is_right}")).await;
        rig.drop_slot().await;
        let hits = rig.logs().join("hits");
        let recover = with_bug(&rig, bug)
            .env("OUTBOX_RELAY_FAILPOINT", "recover.planned=delay:3000@1")
            .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy())
            .command_of("recover", &["recover", "--yes"]);
        recover.start().expect("a start");
        eventually(ARRIVAL_DEADLINE, "recover has compared", || async {
            std::fs::read_to_string(&hits)
                .is_ok_and(|text| !text.is_empty())
                .then_some(())
        })
        .await;
        rig.insert_each(2).await;
        let status = recover.exited(Duration::from_secs(60)).await.expect("an end");
        assert!(status.success(), "{}", recover.log_tail(10));
        rig.start().await;
        rig.insert_each(1).await;
        if is_right {
            rig.assert_exactly_once().await;
        } else {
            let newest = rig
                .value("select id from outbox order by created_at desc limit 1")
                .await;
            let ledger = eventually(ARRIVAL_DEADLINE, "the relay goes on", || async {
                let ledger = rig.ledger(Isolation::Committed).await.ok()?;
                (!ledger.lost.contains(&newest)).then_some(ledger)
            })
            .await;
            assert_eq!(ledger.lost.len(), 2, "it goes unnoticed: {ledger}");
        }
        rig.finish().await.expect("a clean end");
    }
}
