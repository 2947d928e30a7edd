//! How the outbox table is defined: a generated column, no replica identity. And what a truncation means.

use rig::{Isolation, Rig};

use super::{assert_command_says, assert_published};

#[tokio::test]
async fn a_generated_column_that_the_router_needs_is_named_before_anything_is_made() {
    let mut rig = Rig::new("table_generated").await;
    rig.relay = rig.relay.env(
        "ROUTER_OPTIONS",
        "route.topic.replacement=${routedByValue}\ntable.fields.additional.placement=shown:header",
    );
    rig.sql("alter table outbox add shown text generated always as (upper(type)) stored")
        .await;
    let words = ["column `shown` of table public.outbox is generated", "drop expression"];
    assert_command_says(&rig, "init", 2, &words).await;
    assert_command_says(&rig, "check", 1, &words).await;
    // Both ways out work: the publication has generated columns, or the column is no longer generated. The second way alters the publication back,
    // which has to be accepted.
    rig.sql("alter publication outbox set (publish_generated_columns = stored)")
        .await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(1).await;
    assert_published(&rig, 1).await;
    rig.relay.stop().await.expect("a clean end");
    rig.sql("alter publication outbox set (publish_generated_columns = none)")
        .await;
    rig.sql("alter table outbox alter shown drop expression").await;
    rig.sql("alter table outbox alter shown set default 'CHANGED'").await;
    rig.init(&["--accept-publication"]).await;
    rig.start().await;
    rig.insert_each(1).await;
    assert_published(&rig, 2).await;
    for record in rig.records(Isolation::Committed).await.expect("records") {
        assert_eq!(record.header("shown"), Some("CHANGED"));
    }
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn an_outbox_whose_rows_the_application_cannot_change_is_warned_of() {
    let rig = Rig::new("table_identity").await;
    let words = "has no replica identity";
    rig.sql("alter table outbox drop constraint outbox_pkey; create publication outbox for table outbox")
        .await;
    rig.init(&[]).await;
    assert_command_says(
        &rig,
        "check",
        0,
        &["warning  the publication has updates or deletes", words],
    )
    .await;
    rig.insert_each(1).await;
    let postgres = &rig.servers.postgres;
    let refused = postgres.query(rig.name(), "delete from outbox").await;
    assert!(refused.is_err(), "the warning is right");
    rig.sql("alter table outbox replica identity full").await;
    rig.sql("delete from outbox").await;
    let logged = rig.relay.log_text().len();
    rig.relay.run(&["check"]).await.expect("check");
    assert!(!rig.relay.log_text()[logged..].contains(words), "the way out helps");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn what_a_truncation_means_is_said_once() {
    let rig = Rig::new("table_truncated").await;
    rig.sql("create publication outbox for table outbox").await;
    rig.init(&[]).await;
    rig.insert_each(3).await;
    rig.sql("truncate outbox").await;
    rig.insert_each(2).await;
    rig.sql("truncate outbox").await;
    rig.start().await;
    assert_published(&rig, 5).await;
    rig.insert_each(1).await;
    assert_published(&rig, 6).await;
    let lines = rig.relay.log_text().matches("the outbox was truncated").count();
    assert_eq!(lines, 1, "{}", rig.relay.log_tail(10));
    rig.finish().await.expect("a clean end");
}
