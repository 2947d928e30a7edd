//! An outbox was moved to another cluster, and an operator's command has made another relay its successor. A relay that still runs on the former
//! cluster must not publish anything after that.

use rig::{Isolation, Rig, relay_exit, servers};
use stack::{Postgres, Program, eventually};

use super::super::tampering::{DEADLINE, assert_ends, kill_and_drop_slot};

#[tokio::test]
async fn accepting_another_cluster_fences_the_relay_of_the_former_one() {
    let (rig, new_cluster, successor) = move_outbox_beside_a_running_relay("former_cluster").await;
    // The command is slow, so that the former relay, which it has fenced, starts again from the old checkpoint before the new one is written.
    let accept = successor
        .with_binary("outbox-relay-faults")
        .with_env("OUTBOX_RELAY_FAILPOINT", "accept.fenced=delay:6000@1")
        .with_env(
            "OUTBOX_RELAY_FAILPOINT_HITS",
            &rig.logs().join("hits").to_string_lossy(),
        )
        .command_of("accept", &["init", "--accept-cluster"]);
    accept.start().expect("a start");
    eventually(DEADLINE, "the former relay is fenced", || async {
        let text = std::fs::read_to_string(rig.logs().join("hits")).unwrap_or_default();
        (!text.is_empty()).then_some(())
    })
    .await;
    rig.insert_each(1).await;
    rig.assert_exactly_once().await;
    let status = accept.exited(DEADLINE).await.expect("an end");
    assert!(status.success(), "{}", accept.log_tail(10));
    rig.insert_each(1).await;
    let status = rig.relay.exited(DEADLINE).await.expect("an end");
    // The former relay may start once more between the last fence and the new checkpoint. Then it finds a checkpoint that is not its own.
    assert!(
        matches!(
            status.code(),
            Some(relay_exit::OTHER_CLUSTER | relay_exit::CHECKPOINT_WENT_BACK)
        ),
        "{}",
        rig.relay.log_tail(10)
    );
    rig.assert_stops(relay_exit::OTHER_CLUSTER, &["from database cluster"])
        .await;
    successor.start().expect("a start");
    successor.wait_ready(DEADLINE).await.expect("it is ready");
    let insert = rig.insert_statement(1, 7);
    new_cluster.query(rig.name(), &insert).await.expect("a row");
    let records = eventually(DEADLINE, "the successor publishes", || async {
        let records = rig.records(Isolation::Committed).await.ok()?;
        (records.len() > 6).then_some(records)
    })
    .await;
    assert_eq!(
        records.len(),
        7,
        "the former relay has published nothing behind the checkpoint"
    );
    successor.stop().await.expect("a clean end");
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_command_that_leaves_the_former_clusters_relay_unfenced_is_caught() {
    let (rig, _new_cluster, successor) = move_outbox_beside_a_running_relay("former_cluster_planted").await;
    let with_bug = successor
        .with_binary("outbox-relay-faults")
        .with_env("OUTBOX_RELAY_BUG", "LeaveFormerClusterUnfenced");
    for (command, rows) in [(["init", "--accept-cluster"], 6), (["recover", "--yes"], 7)] {
        with_bug.run(&command).await.unwrap_or_else(|err| panic!("{err:#}"));
        rig.insert_each(1).await;
        let ledger = rig.wait_until_published(DEADLINE).await;
        let ledger = ledger.unwrap_or_else(|err| panic!("the former relay publishes behind the checkpoint: {err:#}"));
        assert_eq!(ledger.rows, rows, "{command:?}");
    }
    let without_bug = successor.run(&["recover", "--yes"]).await;
    without_bug.unwrap_or_else(|err| panic!("{err:#}"));
    rig.insert_each(1).await;
    assert_ends(&rig, relay_exit::OTHER_CLUSTER, &["from database cluster"]).await;
    assert_eq!(rig.records(Isolation::Committed).await.expect("records").len(), 7);
    kill_and_drop_slot(&rig).await;
}

/// Returns a rig whose relay runs and has published five rows, a new cluster with an empty outbox of the same name, and the relay of that outbox,
/// which does not run yet.
async fn move_outbox_beside_a_running_relay(name: &str) -> (Rig, Postgres, Program) {
    let rig = Rig::initialised(name).await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    let new_cluster = Postgres::start(servers::postgres_options())
        .await
        .expect("another cluster");
    new_cluster
        .query("postgres", &format!("create database {name}"))
        .await
        .expect("a database");
    let outbox = format!(
        "{}; create sequence numbers;
         create publication outbox for table outbox with (publish = 'insert', publish_via_partition_root = true)",
        rig::rig::OUTBOX
    );
    new_cluster.query(name, &outbox).await.expect("an outbox");
    let slot = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
    new_cluster.query(name, &slot).await.expect("a slot");
    let successor = rig
        .another_relay("successor")
        .with_env("DATABASE_URL", &new_cluster.url("postgres", name));
    (rig, new_cluster, successor)
}
