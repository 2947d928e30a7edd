//! Days of the outbox that are no ordinary tables, or are not like the outbox any more.

use rig::Isolation;

use super::retention::{exists, insert_old, rig_with_partitions_by_day, wait_until_table_is_gone};

/// A day that is itself partitioned is dropped as any other day.
#[tokio::test]
async fn a_day_that_is_partitioned_itself_goes_as_a_whole() {
    let rig = rig_with_partitions_by_day("retention_sub", &[]).await;
    rig.sql(
        "do $$ declare day timestamptz := (date_trunc('day', now() at time zone 'utc') - interval '9 days') at time zone 'utc'; begin
           execute format('create table day9 partition of outbox for values from (%L) to (%L) partition by hash (id)', day, day + interval '1 day');
           create table day9_half partition of day9 for values with (modulus 2, remainder 0);
           create table day9_other partition of day9 for values with (modulus 2, remainder 1); end $$",
    )
    .await;
    rig.sql(&insert_old(&rig, 10, 9)).await;
    rig.start().await;
    rig.insert_each(5).await;
    wait_until_table_is_gone(&rig, "day9").await;
    assert!(!exists(&rig, "day9_half").await && !exists(&rig, "day9_other").await);
    let published = rig.records(Isolation::Committed).await.expect("records");
    assert_eq!(published.len(), 15, "what was in it is published");
    rig.finish().await.expect("a clean end");
}

/// `recover` reads the rows of a detached day, too, and the outbox may have been altered since.
#[tokio::test]
async fn recover_reads_a_detached_day_that_lacks_columns_of_the_outbox_and_one_that_is_partitioned() {
    let rig = rig_with_partitions_by_day("retention_altered", &[]).await;
    for (detached, partitions) in [
        ("lacks", ""),
        (
            "divided",
            " partition by hash (id); create table divided_all partition of divided for values with (modulus 1, remainder 0)",
        ),
    ] {
        rig.sql(&format!(
            "create table {detached} (like outbox including defaults){partitions};
             comment on table {detached} is 'detached from \"public\".\"outbox\" by outbox-relay; to be dropped once the slot has confirmed FFFF/0'"
        ))
        .await;
        let insert = insert_old(&rig, 10, 9).replace("into outbox", &format!("into {detached}"));
        rig.sql(&insert).await;
    }
    rig.sql("alter table outbox add column tenant int, alter column type type varchar(80)")
        .await;
    rig.insert_each(5).await;
    rig.drop_slot().await;
    let status = rig.relay.run_for_status(&["recover", "--yes"]).await.expect("an end");
    assert!(status.success(), "{}", rig.relay.log_tail(10));
    let published = rig.records(Isolation::Committed).await.expect("records");
    assert_eq!(published.len(), 25, "{}", rig.relay.log_tail(10));
    rig.start().await;
    rig.finish().await.expect("a clean end");
}
