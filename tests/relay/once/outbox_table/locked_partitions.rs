//! A partition that another session holds locked.

use rig::Rig;
use tokio_postgres::Client;

use super::{
    OUTBOX_IS_BUSY, PARTITIONED_BY_DAY, ROWS_IN_NO_STREAM, assert_log_does_not_say, assert_log_names, assert_published,
    create_table_with_rows, wait_for_a_round_of_maintenance, wait_until_log_says, wait_until_log_says_often,
};
use crate::relay::tampering::wait_until_confirmed;

/// Starts a relay whose outbox had partitions with rows before `init`, and got the partition `fresh` with rows after `init`. Returns the session that
/// holds `fresh` locked, once the relay has found it locked in two rounds. `fresh` has the lowest oid, so the relay looks at it first.
async fn start_beside_a_locked_partition(rig: &mut Rig, bug: &str) -> Client {
    rig.sql(PARTITIONED_BY_DAY).await;
    let (go_on, hits) = (rig.logs().join("go_on"), rig.logs().join("hits"));
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .with_env("OUTBOX_RELAY_BUG", bug)
        .with_env(
            "OUTBOX_RELAY_FAILPOINT",
            &format!("maintenance.round=until:{}@1", go_on.display()),
        )
        .with_env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy())
        .with_env("OUTBOX_MAINTENANCE_INTERVAL", "1")
        .with_env("LOG", "outbox_relay=debug");
    let attach = create_table_with_rows(rig, "fresh", "2032-01-01", "2032-01-02").await;
    for (table, day, next_day) in [
        ("old_one", "2033-01-01", "2033-01-02"),
        ("old_two", "2034-01-01", "2034-01-02"),
    ] {
        let attach = create_table_with_rows(rig, table, day, next_day).await;
        rig.sql(&attach).await;
    }
    rig.init(&[]).await;
    rig.sql(&attach).await;
    rig.start().await;
    // The lock comes after the start, because a start waits for such a lock.
    let holding = rig.connect().await;
    holding
        .batch_execute("begin; lock table fresh")
        .await
        .expect("the lock");
    std::fs::write(&go_on, "").expect("a file");
    wait_until_log_says_often(rig, OUTBOX_IS_BUSY, 2).await;
    holding
}

#[tokio::test]
async fn a_partition_that_is_locked_at_the_start_is_warned_of_later_and_no_older_partition_is() {
    let mut rig = Rig::new("table_locked").await;
    let holding = start_beside_a_locked_partition(&mut rig, "").await;
    assert_log_does_not_say(&rig, ROWS_IN_NO_STREAM);
    holding.batch_execute("rollback").await.expect("an end");
    wait_until_log_says(&rig, ROWS_IN_NO_STREAM).await;
    assert_log_names(&rig, "public.fresh");
    wait_for_a_round_of_maintenance(&rig).await;
    assert_eq!(
        rig.relay.log_text().matches(ROWS_IN_NO_STREAM).count(),
        1,
        "{}",
        rig.relay.log_tail(10)
    );
    rig.insert_each(3).await;
    assert_published(&rig, 7).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn without_a_first_pass_older_partitions_are_warned_of_by_mistake() {
    let mut rig = Rig::new("table_locked_planted").await;
    let holding = start_beside_a_locked_partition(&mut rig, "ForgetPartitionsBehindANewOne").await;
    wait_until_log_says(&rig, ROWS_IN_NO_STREAM).await;
    assert_log_names(&rig, "public.old_one");
    holding.batch_execute("rollback").await.expect("an end");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_locked_partition_delays_no_start_no_confirmation_and_no_attachment() {
    let mut rig = Rig::new("table_partition_locked").await;
    rig.sql(PARTITIONED_BY_DAY).await;
    rig.sql(
        "create table locked partition of outbox for values from ('2032-01-01 00:00+00') to ('2032-01-02 00:00+00')",
    )
    .await;
    // Maintenance would wait for the lock, a moment at a time, so it does not run here.
    rig.relay = rig.relay.with_env("OUTBOX_MAINTENANCE_INTERVAL", "86400");
    rig.init(&[]).await;
    let holding = rig.connect().await;
    // VACUUM FULL takes the same lock.
    holding
        .batch_execute("begin; lock table locked")
        .await
        .expect("the lock");
    rig.start().await;
    rig.insert_each(5).await;
    assert_published(&rig, 5).await;
    wait_until_confirmed(&rig).await;
    let attach = create_table_with_rows(&rig, "another", "2033-01-01", "2033-01-02").await;
    rig.sql(&format!("set lock_timeout = '5s'; {attach}")).await;
    holding.batch_execute("rollback").await.expect("an end");
    rig.finish().await.expect("a clean end");
}
