//! `recover`: the slot is lost, and the outbox is there.

use std::sync::Arc;
use std::time::Duration;

use rig::rig::READY_DEADLINE;
use rig::servers::postgres_options;
use rig::{Isolation, Rig, Servers, relay_exit};
use stack::{KafkaOptions, eventually_ok};

use super::ways_out::kill_recover_before_its_end;

/// Publishes so many rows, kills the relay, writes so many more, and drops the slot.
async fn lose_the_slot(rig: &Rig, published: u32, pending: u32) {
    rig.start().await;
    rig.insert_each(published).await;
    rig.wait_until_published(READY_DEADLINE)
        .await
        .expect("the first rows are published");
    rig.relay.kill_hard().await;
    rig.insert_together(pending).await;
    rig.drop_slot().await;
}

/// Runs `outbox-relay recover` with these arguments. Returns its exit code.
pub(super) async fn recover_code(rig: &Rig, arguments: &[&str]) -> i32 {
    let all: Vec<&str> = ["recover"].iter().chain(arguments).copied().collect();
    let status = rig.relay.run_for_status(&all).await.expect("recover runs");
    status.code().expect("recover ends by itself")
}

/// The slots with the rig's name.
async fn slots(rig: &Rig) -> Vec<Vec<Option<String>>> {
    let sql = format!(
        "select slot_name from pg_replication_slots where slot_name = '{}'",
        rig.name()
    );
    rig.sql(&sql).await
}

#[tokio::test]
async fn a_dropped_slot_with_a_backlog_and_writers_loses_nothing_and_repeats_nothing() {
    let rig = Arc::new(Rig::initialised("recover_dropped").await);
    lose_the_slot(&rig, 100, 7_000).await;
    rig.assert_stops(relay_exit::SLOT_GONE, &["outbox-relay recover"]).await;
    let writer = Arc::clone(&rig);
    let writing = tokio::spawn(async move { writer.insert_each(3_000).await });
    assert_eq!(recover_code(&rig, &["--yes"]).await, 0, "{}", rig.relay.log_tail(20));
    let said = rig.relay.log_text();
    assert!(
        said.contains("rows to compare") && said.contains("to be published"),
        "{said}"
    );
    rig.start().await;
    writing.await.expect("the writer ends");
    rig.insert_together(100).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, 100 + 7_000 + 3_000 + 100);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn without_an_answer_or_a_loss_nothing_is_changed() {
    let rig = Rig::initialised("recover_asks").await;
    assert_eq!(recover_code(&rig, &["--yes"]).await, relay_exit::NOTHING_TO_RECOVER);
    lose_the_slot(&rig, 20, 30).await;
    let before = rig.records(Isolation::Uncommitted).await.expect("records");
    assert_eq!(recover_code(&rig, &[]).await, relay_exit::NOT_CONFIRMED);
    let said = rig.relay.log_text();
    assert!(
        said.contains("30 rows that are in no topic") && said.contains("--yes"),
        "{said}"
    );
    assert!(slots(&rig).await.is_empty(), "no slot was made");
    assert_eq!(rig.records(Isolation::Uncommitted).await.expect("records"), before);
    rig.assert_stops(relay_exit::SLOT_GONE, &["recover"]).await;
    assert_eq!(recover_code(&rig, &["--yes"]).await, 0, "{}", rig.relay.log_tail(20));
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn on_a_terminal_it_asks_and_anything_but_yes_changes_nothing() {
    let rig = Rig::initialised("recover_terminal").await;
    lose_the_slot(&rig, 20, 30).await;
    let recover = async |typed: &str| {
        let ran = rig.relay.run_on_a_terminal(&["recover"], typed).await;
        let (status, screen) = ran.expect("recover runs");
        (status.code().expect("recover ends by itself"), screen)
    };
    for typed in ["no\n", "y\n", "\n"] {
        let (code, screen) = recover(typed).await;
        assert_eq!(code, relay_exit::NOT_CONFIRMED, "{screen}");
        let asked = screen.find("carry this out?");
        let told = screen.find("30 rows that are in no topic");
        assert!(
            told.is_some() && told < asked,
            "it says first what it will do: {screen}"
        );
        assert!(slots(&rig).await.is_empty(), "no slot was made");
    }
    let (code, screen) = recover("yes\n").await;
    assert_eq!(code, 0, "{screen}");
    rig.start().await;
    rig.insert_each(10).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, 20 + 30 + 10);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_recover_that_is_killed_at_any_moment_can_be_run_again() {
    let rig = Rig::initialised("recover_killed").await;
    lose_the_slot(&rig, 50, 25_000).await;
    let (mut killed, mut unfinished) = (0, 0);
    for kill_after_ms in [150, 400, 700, 1_000, 1_300, 1_600, 2_000, 2_500] {
        let recover = rig.relay.command_of("recover", &["recover", "--yes"]);
        recover.start().expect("a start");
        let ended = recover.exited(Duration::from_millis(kill_after_ms)).await;
        recover.kill_hard().await;
        if ended.is_ok() || recover.log_text().contains("recovered") {
            break;
        }
        killed += 1;
        // The sessions of the killed command end, and a slot that was not finished goes with them.
        rig.wait_until_slot_is_free().await;
        // No relay goes on from an unfinished slot.
        if !slots(&rig).await.is_empty() {
            rig.assert_stops(relay_exit::RECOVERY_UNFINISHED, &["outbox-relay recover"])
                .await;
            unfinished += 1;
        }
    }
    assert!(killed > 0, "at least one was killed");
    kill_recover_before_its_end(&rig, "dies", &["--compare-anyway"]).await;
    rig.assert_stops(relay_exit::RECOVERY_UNFINISHED, &["outbox-relay recover"])
        .await;
    let code = recover_code(&rig, &["--yes"]).await;
    assert_eq!(code, 0, "{}", rig.relay.log_tail(20));
    rig.start().await;
    rig.insert_each(50).await;
    rig.assert_exactly_once().await;
    println!("{killed} killed, {unfinished} of them with a slot made");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_slot_that_postgres_invalidated_loses_nothing_while_the_rows_are_there() {
    let postgres = postgres_options()
        .setting("max_slot_wal_keep_size", "1MB")
        .setting("min_wal_size", "32MB")
        .setting("max_wal_size", "32MB");
    let servers = Servers::start(postgres, KafkaOptions::default())
        .await
        .expect("servers");
    let rig = Rig::on(Arc::new(servers), "recover_invalidated").await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(50).await;
    rig.wait_until_published(READY_DEADLINE)
        .await
        .expect("the first rows are published");
    rig.relay.kill_hard().await;
    rig.insert_each(500).await;
    rig.sql("create table noise (filler text)").await;
    eventually_ok(Duration::from_secs(60), "the slot is lost", || async {
        rig.sql("insert into noise select repeat('x', 1000) from generate_series(1, 20000)")
            .await;
        rig.sql("select pg_switch_wal()").await;
        rig.sql("checkpoint").await;
        let status = rig.sql("select wal_status from pg_replication_slots").await;
        anyhow::ensure!(status[0][0].as_deref() == Some("lost"), "{status:?}");
        Ok(())
    })
    .await
    .expect("postgres gives the slot up");
    rig.assert_stops(relay_exit::SLOT_INVALIDATED, &["outbox-relay recover"])
        .await;
    assert_eq!(recover_code(&rig, &["--yes"]).await, 0, "{}", rig.relay.log_tail(20));
    rig.start().await;
    rig.insert_each(50).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, 50 + 500 + 50);
    rig.finish().await.expect("a clean end");
}
