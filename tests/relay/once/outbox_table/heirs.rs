//! A table that inherits the outbox, its heir. `select` from the outbox shows the heir's rows, and the stream does not have them.

use rig::Rig;

use super::{assert_command_says, assert_published, wait_until_log_says};

#[tokio::test]
async fn a_table_that_inherits_the_outbox_is_named_and_its_rows_do_not_count_as_the_outbox_rows() {
    let rig = Rig::new("table_heir").await;
    rig.sql("create table archive () inherits (outbox)").await;
    assert_command_says(
        &rig,
        "init",
        20,
        &["public.archive inherits public.outbox", "no inherit"],
    )
    .await;
    assert_command_says(
        &rig,
        "check",
        1,
        &["PROBLEM  table public.archive inherits public.outbox"],
    )
    .await;
    rig.sql("alter table archive no inherit outbox").await;
    rig.insert_each(3).await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    rig.relay.stop().await.expect("a clean end");
    // Rows that are moved to the heir were published before, so nothing is lost.
    rig.sql("alter table archive inherit outbox").await;
    rig.sql("with moved as (delete from only outbox returning *) insert into archive select * from moved")
        .await;
    rig.start().await;
    wait_until_log_says(&rig, "public.archive inherits public.outbox").await;
    rig.insert_each(3).await;
    assert_published(&rig, 9).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn without_the_look_at_heirs_a_row_is_in_select_and_never_published() {
    let mut rig = Rig::new("table_heir_planted").await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "OverlookHeirs");
    rig.sql("create table archive () inherits (outbox)").await;
    rig.init(&[]).await;
    rig.start().await;
    rig.sql(&rig.insert_statement(1, 7).replace("into outbox", "into archive"))
        .await;
    rig.insert_each(2).await;
    assert_published(&rig, 2).await;
    assert_eq!(rig.rows().await.len(), 3);
    rig.finish().await.expect("a clean end");
}
