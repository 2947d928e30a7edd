//! After the publication was altered, or the outbox table was set unlogged: the stream lacks rows that the table has.

use rig::{Rig, relay_exit};

use crate::relay::tampering::{publish_and_stop, published_and_stopped};
use crate::relay::ways_out::{assert_goes_on, assert_recovers_after, run_recover, text_in_log_between};

#[tokio::test]
async fn after_an_alteration_of_the_publication_recover_publishes_what_it_hid() {
    let rig = published_and_stopped("way_out_20").await;
    rig.insert_each(1).await;
    rig.sql("alter publication outbox set (publish = 'update')").await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::PUBLICATION_WRONG, &["`outbox-relay recover`"])
        .await;
    let statement = text_in_log_between(&rig, "so events are in no stream; ", "; once that is done");
    rig.sql(&statement).await;
    rig.insert_each(1).await;
    assert_recovers_after(&rig, 20).await;
}

#[tokio::test]
async fn after_the_table_was_unlogged_recover_publishes_what_it_hid_although_no_trace_of_it_is_left() {
    let rig = Rig::new("way_out_20_unlogged").await;
    rig.sql("create publication outbox for all tables with (publish = 'insert', publish_via_partition_root = true)")
        .await;
    rig.init(&[]).await;
    publish_and_stop(&rig).await;
    rig.sql("alter table outbox set unlogged").await;
    rig.insert_each(2).await;
    rig.assert_stops(
        relay_exit::PUBLICATION_WRONG,
        &["`outbox-relay recover --compare-anyway`"],
    )
    .await;
    let statement = text_in_log_between(&rig, "so its rows are in no stream; ", " (of a partitioned");
    rig.sql(&statement).await;
    run_recover(&rig, &["--compare-anyway"]).await;
    assert_goes_on(&rig).await;
}
