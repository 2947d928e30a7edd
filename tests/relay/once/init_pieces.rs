//! `init` of an outbox with many rows publishes them in pieces. If it is killed, the next `init` goes on.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rig::rig::READY_DEADLINE;
use rig::{Isolation, Rig, memory, relay_exit};
use stack::{Program, eventually_ok};

use super::super::init_positions::position_mistakes;
use super::parking::assert_command;

pub(super) const ROWS: u32 = 30_000;
/// An outbox with so many rows goes into one Kafka transaction.
const FEW_ROWS: u32 = 5_000;
const DEADLINE: Duration = Duration::from_secs(120);
const SIGKILL: i32 = 9;
/// The memory of a container for the relay.
const MEMORY_MB: f64 = 96.0;

/// An `init` is killed at each of these, one after the other: at this failpoint, when it comes there for this time. Each attempt goes on after the
/// one before.
const KILLS: [(&str, u32); 8] = [
    ("init.begun", 1),
    ("init.slot-made", 1),
    ("init.piece-written", 1),
    ("init.piece-committed", 1),
    // The first commit of an attempt writes the checkpoint that says `initialising`.
    ("commit.before", 3),
    ("commit.after", 2),
    ("init.late-rows-compared", 1),
    ("init.before-end", 1),
];

/// A rig with so many rows in its outbox. The SQL `alter` has changed the outbox before, and `init` was not run.
pub(super) async fn rig_with_rows(name: &str, alter: &str, rows: u32) -> Rig {
    let mut rig = Rig::new(name).await;
    rig.relay = rig.relay.with_binary("outbox-relay-faults");
    if !alter.is_empty() {
        rig.sql(alter).await;
    }
    rig.sql(&rig.insert_statement(rows, 50)).await;
    rig
}

/// An `init` that meets this trouble.
pub(super) fn init_with_trouble(rig: &Rig, point: &str, action: &str, hit: u32, bug: &str) -> Program {
    let hits = rig.logs().join(format!("{point}-{action}-{hit}"));
    rig.relay
        .command_of("init", &["init"])
        .env("OUTBOX_RELAY_FAILPOINT", &format!("{point}={action}@{hit}"))
        .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy())
        .env("OUTBOX_RELAY_BUG", bug)
}

pub(super) async fn kill_init_at(rig: &Rig, point: &str, hit: u32) {
    let init = init_with_trouble(rig, point, "kill", hit, "");
    init.start().expect("a start");
    let status = init.exited(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(
        status.signal(),
        Some(SIGKILL),
        "{point}@{hit}: {status}\n{}",
        init.log_tail(10)
    );
}

/// Inserts a row that is committed now, with a `created_at` of long ago.
async fn insert_late_row(rig: &Rig, key: usize) {
    let topic = rig.topic();
    rig.sql(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload, created_at)
         values ('{topic}', 'late-{key}', 'Changed', jsonb_build_object('n', nextval('numbers')), '2000-01-01')"
    ))
    .await;
}

/// Runs `init` to its end. Asserts that each row is published once and in order, including the rows that the relay streams.
pub(super) async fn assert_each_row_once(rig: &Rig) {
    rig.relay.run(&["init"]).await.unwrap_or_else(|err| panic!("{err:#}"));
    rig.start().await;
    rig.insert_each(20).await;
    rig.assert_exactly_once().await;
    let records = rig.records(Isolation::Committed).await.expect("records");
    assert_eq!(position_mistakes(&records), Vec::<String>::new());
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn an_init_that_is_killed_again_and_again_under_load_publishes_each_row_once() {
    let rig = Arc::new(rig_with_rows("pieces_killed", "", ROWS).await);
    let (writer, ends) = (Arc::clone(&rig), Arc::new(AtomicBool::new(false)));
    let told = Arc::clone(&ends);
    let writing = tokio::spawn(async move {
        while !told.load(Ordering::Relaxed) {
            writer.insert_each(10).await;
        }
    });
    for (number, (point, hit)) in KILLS.into_iter().enumerate() {
        kill_init_at(&rig, point, hit).await;
        insert_late_row(&rig, number).await;
        if point == "init.piece-committed" {
            rig.wait_until_slot_is_free().await;
            rig.assert_stops(relay_exit::NOT_INITIALISED, &["run it again"]).await;
        }
    }
    ends.store(true, Ordering::Relaxed);
    writing.await.expect("the writer ends");
    assert_each_row_once(&rig).await;
}

/// The age of these rows does not tell them apart. What an earlier attempt has published is found in the topic.
#[tokio::test]
async fn rows_of_the_same_age_or_of_unknown_age_are_published_once() {
    let same_age = "alter table outbox alter created_at set default now()";
    let no_age = "alter table outbox drop column created_at";
    for (name, alter) in [("pieces_same_age", same_age), ("pieces_no_age", no_age)] {
        let rig = rig_with_rows(name, alter, ROWS).await;
        for (point, hit) in [
            ("init.piece-committed", 2),
            ("init.late-rows-compared", 1),
            ("init.piece-committed", 1),
            ("commit.before", 3),
        ] {
            kill_init_at(&rig, point, hit).await;
        }
        rig.insert_together(10).await;
        assert_each_row_once(&rig).await;
    }
}

/// After an update, a row has another inserting transaction. After a rewrite of the table, all rows have. They look new although they are not.
#[tokio::test]
async fn rows_that_were_updated_between_two_attempts_are_published_once() {
    let rig = rig_with_rows("pieces_updated", "", ROWS).await;
    kill_init_at(&rig, "init.piece-committed", 3).await;
    rig.sql("alter table outbox add note uuid default gen_random_uuid()")
        .await;
    assert_each_row_once(&rig).await;
}

#[tokio::test]
async fn a_small_outbox_is_published_whole_or_not_at_all() {
    let rig = rig_with_rows("pieces_few", "", FEW_ROWS).await;
    kill_init_at(&rig, "init.before-end", 1).await;
    let before = rig.records(Isolation::Committed).await.expect("records");
    assert_eq!(before.len(), 0);
    assert_each_row_once(&rig).await;
}

#[tokio::test]
async fn an_init_of_many_rows_stays_within_its_memory() {
    let rig = rig_with_rows("pieces_memory", "", ROWS).await;
    let topic = rig.topic();
    rig.sql(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload)
         select '{topic}', 'm' || i % 100, 'Changed', jsonb_build_object('n', i, 'fill', repeat('x', 4000))
         from generate_series(1, 50000) as i"
    ))
    .await;
    let init = init_with_trouble(&rig, "init.before-end", "freeze", 1, "");
    init.start().expect("a start");
    let hits = rig.logs().join("init.before-end-freeze-1");
    eventually_ok(DEADLINE, "the init is at its end", || async {
        anyhow::ensure!(hits.exists(), "it is not there");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", init.log_tail(10)));
    let peak_mb = memory::peak_mb(&init);
    init.kill_hard().await;
    println!("{peak_mb:.0} MB");
    assert!(peak_mb < MEMORY_MB, "{peak_mb} MB");
    rig.finish().await.expect("an end");
}

/// A test of the test: an `init` that goes on after the last row that it has published loses the rows that were committed late.
#[tokio::test]
async fn forgetting_late_rows_is_caught() {
    let rig = rig_with_rows("pieces_planted", "", ROWS).await;
    kill_init_at(&rig, "init.piece-committed", 2).await;
    insert_late_row(&rig, 0).await;
    rig.relay
        .with_env("OUTBOX_RELAY_BUG", "ContinueBehindLastRow")
        .run(&["init"])
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    rig.start().await;
    rig.insert_each(5).await;
    let ledger = eventually_ok(READY_DEADLINE, "all others are published", || async {
        let ledger = rig.ledger(Isolation::Committed).await?;
        anyhow::ensure!(ledger.lost.len() <= 1, "{ledger}");
        Ok(ledger)
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(ledger.lost.len(), 1, "the late row is lost: {ledger}");
    rig.finish().await.expect("an end");
}

/// The topic no longer has what the earlier `init` published. So nothing tells which rows those were, and the operator has to decide.
#[tokio::test]
async fn rows_that_an_earlier_attempt_may_have_published_and_that_are_gone_are_the_operators_to_decide() {
    const MORE_ROWS: u32 = 20;
    for (answer, published) in [("publish", ROWS + MORE_ROWS), ("skip", MORE_ROWS)] {
        let alter = "alter table outbox drop column created_at";
        let mut rig = rig_with_rows(&format!("pieces_undecided_{answer}"), alter, ROWS).await;
        rig.relay = rig.relay.env("TOPIC_CONFIG", "cleanup.policy=delete");
        kill_init_at(&rig, "init.piece-committed", 2).await;
        let committed = rig.records(Isolation::Committed).await.expect("records");
        assert!((1..ROWS as usize).contains(&committed.len()), "{}", committed.len());
        let partitions: BTreeSet<i32> = committed.iter().map(|record| record.partition).collect();
        for partition in partitions {
            let deleted = rig.servers.kafka.delete_records(&rig.topic(), partition, -1).await;
            deleted.unwrap_or_else(|err| panic!("{err:#}"));
        }
        let says = [
            &format!("{ROWS} rows may have been published"),
            "--undecided publish",
            "--undecided skip",
        ];
        assert_command(&rig.relay, &["init"], relay_exit::NOT_CONFIRMED, &says).await;
        assert_command(&rig.relay, &["init", "--undecided", answer], 0, &[]).await;
        rig.start().await;
        rig.insert_each(MORE_ROWS).await;
        let arrived = eventually_ok(DEADLINE, "what is to be published is there", || async {
            let records = rig.records(Isolation::Committed).await?;
            let ids: BTreeSet<_> = records.iter().filter_map(|record| record.header("id")).collect();
            anyhow::ensure!(ids.len() == published as usize, "{} ids", ids.len());
            Ok(records.len())
        });
        let records = arrived.await.unwrap_or_else(|err| panic!("{err:#}"));
        assert_eq!(records, published as usize, "each once");
        rig.finish().await.expect("a clean end");
    }
}
