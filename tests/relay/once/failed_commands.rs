//! `init` and `recover` meet a row that cannot be published. They name it at once, leave nothing behind that others would have to wait for, and go on
//! once the row is mended.

use std::time::{Duration, Instant};

use rig::{Rig, relay_exit};
use stack::Program;

use super::topic_settings::{assert_each_once, insert_keyless};

/// This is far less than the fifteen minutes for which a transaction of `init` may stay open.
const AT_ONCE: Duration = Duration::from_secs(30);

/// Runs a command, and asserts that it names the row.
async fn assert_command_names_row(relay: &Program, arguments: &[&str], id: &str) {
    let (logged, started) = (relay.log_text().len(), Instant::now());
    let status = relay.run_for_status(arguments).await.expect("it runs");
    let log = relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(relay_exit::ROW_REFUSED), "{arguments:?}: {log}");
    assert!(log.contains(id) && log.contains("delete or mend the row"), "{log}");
    assert!(started.elapsed() < AT_ONCE, "it took {:?}: {log}", started.elapsed());
}

/// A relay of another database that keeps its checkpoints in the same topic.
async fn neighbour_of(rig: &Rig, name: &str) -> Rig {
    let mut neighbour = Rig::new(name).await;
    neighbour.relay = neighbour.relay.env("CHECKPOINT_TOPIC", &rig.checkpoint_topic());
    neighbour
}

async fn delete_row(rig: &Rig, id: &str) {
    rig.sql(&format!("delete from outbox where id = '{id}'")).await;
}

#[tokio::test]
async fn an_init_that_meets_a_row_without_a_key_names_it_and_nobody_waits_for_it() {
    // With the bug, the relay does not know the topic's settings, so the broker itself refuses the row.
    for (name, bug) in [("init_keyless", ""), ("init_keyless_untold", "AskNoSettings")] {
        let rig = Rig::new(name).await;
        let relay = rig
            .relay
            .with_binary("outbox-relay-faults")
            .env("OUTBOX_RELAY_BUG", bug);
        let neighbour = neighbour_of(&rig, &format!("{name}_neighbour")).await;
        neighbour.init(&[]).await;
        rig.insert_together(20).await;
        let id = insert_keyless(&rig).await;
        rig.insert_together(20).await;
        assert_command_names_row(&relay, &["init"], &id).await;

        let started = Instant::now();
        neighbour.start().await;
        neighbour.insert_each(3).await;
        neighbour.assert_exactly_once().await;
        assert!(
            started.elapsed() < AT_ONCE,
            "the neighbour took {:?}",
            started.elapsed()
        );
        neighbour.finish().await.expect("a clean end");

        assert_command_names_row(&relay, &["init"], &id).await;
        delete_row(&rig, &id).await;
        rig.init(&[]).await;
        rig.start().await;
        rig.insert_together(5).await;
        assert_each_once(&rig, &rig.relay).await;
        rig.finish().await.expect("a clean end");
    }
}

#[tokio::test]
async fn a_recover_that_meets_a_row_without_a_key_names_it_and_goes_on_once_it_is_mended() {
    let rig = Rig::initialised("recover_keyless").await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    rig.relay.stop().await.expect("a clean end");
    rig.insert_together(10).await;
    let id = insert_keyless(&rig).await;
    rig.drop_slot().await;
    assert_command_names_row(&rig.relay, &["recover", "--yes"], &id).await;
    assert_command_names_row(&rig.relay, &["recover", "--yes"], &id).await;
    rig.sql(&format!("update outbox set aggregateid = 'k1' where id = '{id}'"))
        .await;
    rig.relay
        .run(&["recover", "--yes"])
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    rig.start().await;
    assert_each_once(&rig, &rig.relay).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn an_init_that_leaves_its_transaction_open_is_caught() {
    let rig = Rig::new("init_left_open").await;
    let neighbour = neighbour_of(&rig, "init_left_open_neighbour").await;
    neighbour.init(&[]).await;
    rig.insert_together(20).await;
    let id = insert_keyless(&rig).await;
    let relay_with_bug = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "AskNoSettings,LeaveFailedTransactionOpen");
    assert_command_names_row(&relay_with_bug, &["init"], &id).await;
    neighbour.relay.start().expect("a start");
    stack::eventually(AT_ONCE, "the neighbour waits for the transaction", || async {
        let log = neighbour.relay.log_text();
        log.contains("open transaction").then_some(())
    })
    .await;
    neighbour.relay.kill_hard().await;
    neighbour.finish().await.expect("an end");
    rig.finish().await.expect("an end");
}
