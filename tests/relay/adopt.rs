//! `init --adopt-slot` takes over a slot that somebody else has made.

use rig::Rig;

use super::tampering::{assert_refused, ids, times_published};

const PUBLICATION: &str =
    "create publication outbox for table outbox with (publish = 'insert', publish_via_partition_root = true)";

#[tokio::test]
async fn an_adopted_slot_is_continued_from_its_confirmed_position() {
    let rig = Rig::new("adopted").await;
    rig.sql(PUBLICATION).await;
    rig.insert_each(3).await;
    make_slot(&rig, "pgoutput").await;
    rig.insert_each(2).await;
    // Its first owner has read these two, and no more.
    let name = rig.name();
    rig.sql(&format!(
        "select pg_logical_slot_get_binary_changes('{name}', null, null, 'proto_version', '1', 'publication_names', 'outbox')"
    ))
    .await;
    rig.insert_each(4).await;
    assert_refused(&rig, &[], 14, "--adopt-slot").await;
    rig.init(&["--adopt-slot"]).await;
    rig.start().await;
    rig.insert_each(3).await;
    let ids = ids(&rig).await;
    let times = times_published(&rig, &ids, &ids[5..]).await;
    assert_eq!(
        times,
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
        "nothing before, everything after, once"
    );
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_slot_of_another_plugin_is_refused_by_name() {
    let rig = Rig::new("adopt_plugin").await;
    rig.sql(PUBLICATION).await;
    let name = rig.name();
    rig.sql(&format!("select pg_create_physical_replication_slot('{name}')"))
        .await;
    assert_refused(&rig, &["--adopt-slot"], 12, "plugin physical").await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_slot_of_another_database_is_refused_by_name() {
    let rig = Rig::new("adopt_database").await;
    rig.sql(PUBLICATION).await;
    let name = rig.name();
    let made = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
    rig.servers.postgres.query("postgres", &made).await.expect("a slot");
    assert_refused(&rig, &["--adopt-slot"], 12, "database postgres").await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_slot_that_is_being_read_is_refused_by_name() {
    let rig = Rig::initialised("adopt_active").await;
    rig.start().await;
    super::tampering::write_checkpoint(&rig, None).await;
    assert_refused(&rig, &["--adopt-slot"], 1, "stop what reads it first").await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("an end");
}

async fn make_slot(rig: &Rig, plugin: &str) {
    let name = rig.name();
    rig.sql(&format!(
        "select pg_create_logical_replication_slot('{name}', '{plugin}')"
    ))
    .await;
}
