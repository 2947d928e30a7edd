//! A partition that is attached with rows in it. The stream does not have these rows, so the relay warns of them.

use rig::Rig;
use stack::eventually;
use tokio_postgres::Client;

use super::{
    DEADLINE, OUTBOX_IS_BUSY, PARTITIONED_BY_DAY, ROWS_IN_NO_STREAM, assert_log_does_not_say, assert_log_names,
    assert_published, create_table_with_rows, insert_statement_of_day, wait_for_a_round_of_maintenance,
    wait_until_log_says, wait_until_log_says_often,
};

#[tokio::test]
async fn a_partition_that_is_attached_with_rows_is_warned_of_and_its_rows_can_be_published() {
    let mut rig = Rig::new("table_attached").await;
    rig.sql(PARTITIONED_BY_DAY).await;
    rig.relay = rig.relay.env("OUTBOX_MAINTENANCE_INTERVAL", "1");
    rig.init(&[]).await;
    rig.start().await;
    wait_for_a_round_of_maintenance(&rig).await;
    // There is no warning of a partition whose rows are written after it belongs to the outbox.
    rig.sql(
        "create table later partition of outbox for values from ('2031-01-01 00:00+00') to ('2031-01-02 00:00+00')",
    )
    .await;
    rig.sql(&insert_statement_of_day(&rig, "outbox", "2031-01-01")).await;
    rig.sql("create table filled (like outbox including all)").await;
    rig.sql(&insert_statement_of_day(&rig, "filled", "2032-01-01")).await;
    rig.sql(
        "alter table outbox attach partition filled for values from ('2032-01-01 00:00+00') to ('2032-01-02 00:00+00')",
    )
    .await;
    wait_until_log_says(&rig, "attached with rows in it").await;
    assert_log_does_not_say(&rig, "public.later");
    assert_published(&rig, 2).await;
    rig.sql("alter table outbox detach partition filled; insert into outbox select * from filled; drop table filled")
        .await;
    assert_published(&rig, 4).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

/// Attaches the partition `meanwhile` with two rows after `init`, and then starts the relay.
async fn start_after_an_attachment(rig: &mut Rig) {
    rig.sql(PARTITIONED_BY_DAY).await;
    rig.relay = rig
        .relay
        .with_env("OUTBOX_MAINTENANCE_INTERVAL", "1")
        .with_env("LOG", "outbox_relay=debug");
    rig.init(&[]).await;
    let attach = create_table_with_rows(rig, "meanwhile", "2032-01-01", "2032-01-02").await;
    rig.sql(&attach).await;
    rig.start().await;
}

#[tokio::test]
async fn a_partition_that_was_attached_while_no_relay_ran_is_warned_of_at_the_start_and_a_locked_one_later() {
    let mut rig = Rig::new("table_meanwhile").await;
    start_after_an_attachment(&mut rig).await;
    wait_until_log_says(&rig, ROWS_IN_NO_STREAM).await;
    assert_log_names(&rig, "public.meanwhile");

    let holding = attach_a_locked_partition(&rig).await;
    wait_until_log_says(&rig, OUTBOX_IS_BUSY).await;
    assert_log_does_not_say(&rig, "public.locked");
    holding.batch_execute("rollback").await.expect("an end");
    eventually(DEADLINE, "the second partition is warned of", || {
        let warnings = rig.relay.log_text().matches(ROWS_IN_NO_STREAM).count();
        std::future::ready((warnings == 2).then_some(()))
    })
    .await;
    rig.insert_each(3).await;
    assert_published(&rig, 3).await;
    rig.finish().await.expect("a clean end");
}

/// Attaches the partition `locked` with two rows. Returns a session that has locked it before anybody could look at it.
async fn attach_a_locked_partition(rig: &Rig) -> Client {
    let attach = create_table_with_rows(rig, "locked", "2033-01-01", "2033-01-02").await;
    let (attaching, holding) = (rig.connect().await, rig.connect().await);
    attaching
        .batch_execute(&format!("begin; {attach}"))
        .await
        .expect("attached");
    // This session waits for the lock. So it gets the lock as soon as the partition is there.
    let waiting = tokio::spawn(async move {
        holding
            .batch_execute("begin; lock table locked")
            .await
            .map(|()| holding)
    });
    eventually(DEADLINE, "a session waits for the partition", || async {
        let waits = "select count(*) from pg_locks where relation = 'locked'::regclass and not granted";
        (rig.value(waits).await != "0").then_some(())
    })
    .await;
    attaching.batch_execute("commit").await.expect("a commit");
    waiting.await.expect("no panic").expect("the lock")
}

#[tokio::test]
async fn without_the_look_at_the_start_rows_that_no_stream_has_are_not_warned_of() {
    let mut rig = Rig::new("table_meanwhile_planted").await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "OverlookPartitionsAtStart");
    start_after_an_attachment(&mut rig).await;
    rig.insert_each(3).await;
    assert_published(&rig, 3).await;
    wait_for_a_round_of_maintenance(&rig).await;
    assert_eq!(rig.rows().await.len(), 5);
    assert_log_does_not_say(&rig, "no stream has them");
    rig.finish().await.expect("a clean end");
}

/// Detaches the partition `meanwhile`, gives it other rows and attaches it again, all in one transaction, so that nobody can see it in between.
async fn attach_again(rig: &Rig) {
    let rows = insert_statement_of_day(rig, "meanwhile", "2032-01-01");
    rig.sql(&format!(
        "begin; alter table outbox detach partition meanwhile; truncate meanwhile; {rows};
         alter table outbox attach partition meanwhile for values from ('2032-01-01 00:00+00') to ('2032-01-02 00:00+00');
         commit"
    ))
    .await;
}

#[tokio::test]
async fn a_partition_that_is_attached_again_is_warned_of_again_also_while_maintenance_fails() {
    let mut rig = Rig::new("table_again").await;
    start_after_an_attachment(&mut rig).await;
    wait_until_log_says(&rig, ROWS_IN_NO_STREAM).await;
    // The relay also sees a partition of a partition, which came with it.
    rig.sql(
        "create table branch (like outbox including all) partition by range (created_at);
         create table leaf partition of branch for values from ('2036-01-01 00:00+00') to ('2036-01-02 00:00+00')",
    )
    .await;
    rig.sql(&insert_statement_of_day(&rig, "branch", "2036-01-01")).await;
    rig.sql(
        "alter table outbox attach partition branch for values from ('2036-01-01 00:00+00') to ('2037-01-01 00:00+00')",
    )
    .await;
    wait_until_log_says_often(&rig, ROWS_IN_NO_STREAM, 2).await;
    assert_log_names(&rig, "public.leaf");

    make_maintenance_fail(&rig).await;
    wait_until_log_says(&rig, "the outbox table could not be looked after; publishing goes on").await;
    attach_again(&rig).await;
    wait_until_log_says_often(&rig, ROWS_IN_NO_STREAM, 3).await;
    rig.insert_each(3).await;
    assert_published(&rig, 3).await;
    rig.finish().await.expect("a clean end");
}

/// Lets the server refuse new tables, and drops the partitions of the days to come, so that the relay has to make them.
async fn make_maintenance_fail(rig: &Rig) {
    rig.sql(
        "create function refuse() returns event_trigger language plpgsql as $$ begin raise exception 'no tables'; end $$;
         create event trigger refuse on ddl_command_start when tag in ('CREATE TABLE') execute function refuse();
         do $$ declare day text; begin
             for day in select inhrelid::regclass from pg_inherits where inhparent = 'outbox'::regclass
                 and inhrelid::regclass::text not in ('outbox_default', 'meanwhile', 'branch')
             loop execute 'drop table ' || day; end loop;
         end $$",
    )
    .await;
}

#[tokio::test]
async fn without_the_attachments_transaction_a_partition_that_is_attached_again_is_not_warned_of() {
    let mut rig = Rig::new("table_again_planted").await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "KnowPartitionsByOid");
    start_after_an_attachment(&mut rig).await;
    wait_until_log_says(&rig, ROWS_IN_NO_STREAM).await;
    attach_again(&rig).await;
    // The warning of another partition shows that the relay has looked since.
    let attach = create_table_with_rows(&rig, "beside", "2035-01-01", "2035-01-02").await;
    rig.sql(&attach).await;
    wait_until_log_says_often(&rig, ROWS_IN_NO_STREAM, 2).await;
    assert_eq!(
        rig.relay.log_text().matches("public.meanwhile").count(),
        1,
        "{}",
        rig.relay.log_tail(10)
    );
    rig.finish().await.expect("a clean end");
}
