//! Tests of the tests: a relay with a planted bug does not survive what the right relay survives. Each bug meets the trouble for which it is a
//! mistake. It is caught if rows are lost, doubled or out of order, or if the relay itself finds that it cannot go on.

use std::sync::Arc;
use std::time::Duration;

use rig::{Isolation, Rig, relay_exit};
use stack::eventually;

use crate::relay::faulty::Reach::Publishing;
use crate::relay::faulty::{FaultyRelay, Trouble};

const DEADLINE: Duration = Duration::from_secs(60);

/// Makes the trouble without the bug, which the relay must survive, and with the bug, which it must not survive.
async fn assert_caught(bug: &str, (point, action, hit): (&'static str, &'static str, u32), settings: &[(&str, &str)]) {
    let trouble = Trouble {
        point,
        reach: Publishing,
        action,
        hit,
    };
    for (suffix, planted) in [("right", ""), ("wrong", bug)] {
        let rig = Arc::new(Rig::initialised(&format!("planted_{}_{suffix}", bug.to_lowercase())).await);
        let relay = settings
            .iter()
            .fold(FaultyRelay::new(&rig, trouble, planted), |relay, (name, value)| {
                relay.env(name, value)
            });
        let outcome = relay.survives().await;
        relay.kill().await;
        match (planted.is_empty(), outcome) {
            (true, Err(err)) => panic!("the right relay does not survive: {err:#}"),
            (false, Ok(ledger)) => panic!("{bug} goes unnoticed: {ledger}"),
            (true, Ok(_)) | (false, Err(_)) => {}
        }
        rig.finish().await.expect("a clean end");
    }
}

#[tokio::test]
async fn confirming_before_the_commit_is_caught() {
    assert_caught("ConfirmBeforeCommit", ("commit.before", "kill:400", 3), &[]).await;
}

#[tokio::test]
async fn confirming_in_the_middle_of_a_transaction_is_caught() {
    assert_caught("ConfirmMidTransaction", ("commit.before", "kill:400", 3), &[]).await;
}

/// The first relay is delayed in the middle of a transaction, and loses the slot. The second relay has read the checkpoint when the first one
/// commits.
#[tokio::test]
async fn reading_the_checkpoint_before_fencing_is_caught() {
    for (bug, is_right) in [("", true), ("CheckpointBeforeFence", false)] {
        let rig = Rig::initialised(&format!("planted_fence_{is_right}")).await;
        let (hits, go_on) = (rig.logs().join("hits"), rig.logs().join("go_on"));
        let first = rig
            .relay
            .with_binary("outbox-relay-faults")
            .env("TRANSACTION_BYTES", "65536")
            .env(
                "OUTBOX_RELAY_FAILPOINT",
                &format!("produce=until:{}@200", go_on.display()),
            )
            .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy());
        first.start().expect("a relay");
        rig.insert_together(900).await;
        eventually(DEADLINE, "the first relay dawdles", || async {
            let text = std::fs::read_to_string(&hits).unwrap_or_default();
            (text.lines().count() >= 200).then_some(())
        })
        .await;
        let name = rig.name();
        rig.sql(&format!(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '{name}'"
        ))
        .await;
        let second = rig
            .another_relay("second")
            .with_binary("outbox-relay-faults")
            .env("OUTBOX_RELAY_BUG", bug);
        second.start().expect("a second relay");
        eventually(DEADLINE, "the second relay has the slot", || {
            std::future::ready(second.log_text().contains("owns the slot").then_some(()))
        })
        .await;
        // A relay with the bug has read the checkpoint by then, and waits for two seconds more.
        tokio::time::sleep(Duration::from_secs(2)).await;
        std::fs::write(&go_on, "").expect("a file");
        let ledger = rig.wait_until_published(DEADLINE).await;
        let ledger = ledger.unwrap_or_else(|err| panic!("{err:#}\n{}", second.log_tail(20)));
        assert_eq!(
            ledger.is_exact(),
            is_right,
            "bug `{bug}`: {ledger}\n{}",
            second.log_tail(20)
        );
        first.kill_hard().await;
        second.kill_hard().await;
        rig.finish().await.expect("a clean end");
    }
}

#[tokio::test]
async fn committing_the_checkpoint_before_the_records_is_caught() {
    assert_caught("CheckpointBeforeData", ("commit.before", "kill", 3), &[]).await;
}

#[tokio::test]
async fn taking_an_lsn_for_a_rows_identity_is_caught() {
    assert_caught("RowLsnDedupe", ("commit.after", "kill", 2), &[]).await;
}

#[tokio::test]
async fn trusting_the_slot_is_caught() {
    assert_caught("TrustTheSlot", ("commit.after", "kill", 2), &[]).await;
}

#[tokio::test]
async fn ignoring_a_delivery_error_is_caught() {
    for (bug, is_right) in [("", true), ("IgnoreDeliveryError", false)] {
        let rig = Rig::initialised(&format!("planted_delivery_{is_right}")).await;
        let relay = rig
            .relay
            .with_binary("outbox-relay-faults")
            .env("OUTBOX_RELAY_BUG", bug);
        rig.insert_each(5).await;
        // The payload is larger than a record may be.
        let topic = rig.topic();
        rig.sql(&format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             values ('{topic}', 'large', 'Changed', jsonb_build_object('n', 1, 'fill', repeat('x', 1200000)))"
        ))
        .await;
        rig.insert_each(5).await;
        relay.start().expect("a relay");
        if is_right {
            let status = relay.exited(DEADLINE).await.expect("an end");
            assert_eq!(
                status.code(),
                Some(relay_exit::RECORD_TOO_LARGE),
                "{}",
                relay.log_tail(10)
            );
        } else {
            let rows = rig.rows().await.len();
            eventually(DEADLINE, "the wrong relay goes on behind the record", || async {
                let records = rig.records(Isolation::Committed).await.ok()?;
                (records.len() == rows - 1).then_some(())
            })
            .await;
            relay.stop().await.expect("a clean end");
        }
        rig.finish().await.expect("a clean end");
    }
}

#[tokio::test]
async fn dropping_when_the_queue_is_full_is_caught() {
    const TINY: &str =
        "transaction.timeout.ms=2000\nmessage.timeout.ms=1500\nsocket.timeout.ms=2000\nqueue.buffering.max.messages=20";
    assert_caught(
        "DropWhenQueueFull",
        ("commit.after", "error", 1),
        &[("KAFKA_PROPERTIES", TINY)],
    )
    .await;
}

#[tokio::test]
async fn starting_from_now_is_caught() {
    assert_caught("StartFromNow", ("commit.before", "kill", 2), &[]).await;
}

#[tokio::test]
async fn letting_the_second_commit_first_is_caught() {
    assert_caught("SecondCommitsFirst", ("commit.before", "kill:800", 2), &[]).await;
}
