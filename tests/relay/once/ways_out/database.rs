//! After the database was moved to another cluster, or an older backup of it was restored.

use rig::{Isolation, Ledger, Rig, relay_exit, servers};
use stack::{Postgres, Program};

use crate::relay::lineage::older_database;
use crate::relay::ways_out::run_recover;

/// The positions of the new cluster are lower. A reader may drop a record whose position is not above the last one, and such a reader must not
/// drop a new event. So the ledger counts each record whose position is not above the one before as `reordered`.
#[tokio::test]
async fn after_a_move_to_another_cluster_recover_goes_on_above_the_published_positions_and_the_former_relay_stops() {
    let rig = publish_up_to_a_high_position("way_out_16").await;
    let new_cluster = copy_outbox_to_another_cluster(&rig).await;
    let insert = rig.insert_statement(2, 7);
    new_cluster.query(rig.name(), &insert).await.expect("rows");
    let moved = rig
        .another_relay("moved")
        .env("DATABASE_URL", &new_cluster.url("postgres", rig.name()));
    the_moved_relay_stops_and_names_recover(&moved).await;
    recover_stops_the_former_relay(&rig, &moved).await;

    moved.start().expect("a start");
    new_cluster.query(rig.name(), &insert).await.expect("rows");
    every_row_of_the_new_cluster_is_published_once(&rig, &new_cluster, &moved).await;
    moved.stop().await.expect("a clean end");
    rig.drop_slot().await;
}

/// A rig whose relay has published eight rows. Its WAL is three segments further than that of a new cluster.
async fn publish_up_to_a_high_position(name: &str) -> Rig {
    let rig = Rig::initialised(name).await;
    for _ in 0..3 {
        rig.insert_each(1).await;
        rig.sql("select pg_switch_wal()").await;
    }
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    rig
}

/// Starts a new cluster whose database has the rig's name and the rig's outbox rows.
async fn copy_outbox_to_another_cluster(rig: &Rig) -> Postgres {
    let rows = rig.value("select json_agg(o)::text from outbox o").await;
    let new_cluster = Postgres::start(servers::postgres_options())
        .await
        .expect("another cluster");
    let create = format!("create database {}", rig.name());
    new_cluster.query("postgres", &create).await.expect("a database");
    let restore = format!(
        "{}; create sequence numbers start 100;
         create publication outbox for table outbox with (publish = 'insert', publish_via_partition_root = true);
         insert into outbox select * from json_populate_recordset(null::outbox, $rows${rows}$rows$)",
        rig::rig::OUTBOX
    );
    new_cluster.query(rig.name(), &restore).await.expect("the outbox");
    new_cluster
}

async fn the_moved_relay_stops_and_names_recover(moved: &Program) {
    let run = moved.run_for_status(&["run"]).await.expect("a run");
    assert_eq!(run.code(), Some(relay_exit::OTHER_CLUSTER), "{}", moved.log_tail(3));
    assert!(
        moved.log_tail(3).contains("`outbox-relay recover`"),
        "{}",
        moved.log_tail(3)
    );
}

/// Runs `recover` on the new cluster while the former relay still runs, which the documentation advises against.
async fn recover_stops_the_former_relay(rig: &Rig, moved: &Program) {
    moved
        .run(&["recover", "--yes"])
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    rig.insert_each(1).await;
    let ended = rig
        .relay
        .exited(rig::rig::READY_DEADLINE)
        .await
        .expect("the former relay ends");
    // `recover` has fenced it, so it looks at the checkpoint. That is an unfinished one while `recover` works, and later another cluster's.
    assert!(
        matches!(
            ended.code(),
            Some(relay_exit::OTHER_CLUSTER | relay_exit::RECOVERY_UNFINISHED)
        ),
        "{}",
        rig.relay.log_tail(5)
    );
    rig.assert_stops(relay_exit::OTHER_CLUSTER, &["the checkpoint in topic"])
        .await;
}

async fn every_row_of_the_new_cluster_is_published_once(rig: &Rig, new_cluster: &Postgres, moved: &Program) {
    let rows = rig.rows_on(new_cluster).await;
    let ledger = stack::eventually_ok(rig::rig::ARRIVAL_DEADLINE, "everything is published", || async {
        let ledger = Ledger::compare(&rows, &rig.records(Isolation::Committed).await?);
        anyhow::ensure!(ledger.lost.is_empty(), "{ledger}");
        Ok(ledger)
    });
    let ledger = ledger
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", moved.log_tail(20)));
    // The rows of the old cluster, and those that the test has written in the new one.
    assert!(ledger.is_exact() && ledger.rows == 8 + 2 * 2, "{ledger}");
}

#[tokio::test]
async fn after_a_restore_of_an_older_backup_recover_goes_on_above_the_published_positions() {
    let rig = older_database("way_out_18").await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::SERVER_BEHIND, &["`outbox-relay recover`"])
        .await;
    // The restored server's WAL grows beyond the checkpoint. What it has written must not count as published.
    rig.sql("create table regrown as select repeat('x', 1000) from generate_series(1, 12000)")
        .await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::SERVER_BEHIND, &["`outbox-relay recover`"])
        .await;
    run_recover(&rig, &[]).await;
    rig.start().await;
    rig.insert_each(3).await;
    assert_only_the_lost_rows_are_invented(&rig, 5).await;
    rig.finish().await.expect("a clean end");
}

/// Asserts that the ledger is exact, apart from the records of rows that the restored database has lost.
async fn assert_only_the_lost_rows_are_invented(rig: &Rig, lost_rows: usize) {
    let ledger = rig.wait_until_published(rig::rig::ARRIVAL_DEADLINE).await;
    let mut ledger = ledger.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(ledger.invented.len(), lost_rows, "{ledger}");
    ledger.invented.clear();
    assert!(ledger.is_exact(), "{ledger}\n{}", rig.relay.log_tail(20));
}
