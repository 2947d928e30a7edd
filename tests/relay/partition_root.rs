//! A partitioned outbox whose publication does not publish via the root. Every row comes under the name of another table, so none would count as an
//! event.

use rig::{Rig, relay_exit};

#[tokio::test]
async fn a_publication_that_shows_partitions_instead_of_their_root_is_refused() {
    let rig = Rig::new("partition_root").await;
    rig.sql(
        "drop table outbox;
         create table outbox (
             id uuid not null default gen_random_uuid(), aggregatetype text not null, aggregateid text not null,
             type text not null, payload jsonb, created_at timestamptz not null default clock_timestamp())
             partition by range (created_at);
         create table outbox_default partition of outbox default;
         create publication outbox for table outbox with (publish = 'insert')",
    )
    .await;
    let status = rig.relay.run_for_status(&["init"]).await.expect("an end");
    assert_eq!(
        status.code(),
        Some(relay_exit::PUBLICATION_WRONG),
        "{}",
        rig.relay.log_tail(5)
    );
    assert!(
        rig.relay.log_text().contains("publish_via_partition_root = true"),
        "{}",
        rig.relay.log_tail(5)
    );
    rig.sql("alter publication outbox set (publish_via_partition_root = true)")
        .await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(20).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}
