//! `view-builder rebuild` fills new tables beside the live ones, and swaps them. Everything that people have hung on the view stays.

use rig::rest::{Rest, user};
use rig::view_builder_exit;
use stack::{Pipeline, Program, eventually_ok};
use tokio_postgres::Client;

use super::careful_reader::CarefulReader;
use super::{
    DEADLINE, LEFT_BEHIND, ViewsFolder, assert_command, command, connect, query_number, query_text, run_sql,
    start_workload,
};
use crate::e2e::rows::assert_view_equals_users;

const REBUILD: [&str; 2] = ["rebuild", "user_view"];
/// Things that people add to a view: privileges, an index, a constraint, a setting, a trigger, and views on it.
const ADD_THINGS: &str = "
    create role analyst;
    grant select on user_view to analyst;
    grant select (department, user_count) on department_stats to analyst with grant option;
    set role view_builder;
    create index added_index on user_view (lower(name));
    alter table user_view add constraint added_constraint check (name <> 'refused');
    alter table user_view set (autovacuum_vacuum_scale_factor = 0.05);
    create function added_function() returns trigger language plpgsql as 'begin return null; end';
    create trigger added_trigger after delete on user_view for each row execute function added_function();
    create view active_users with (security_barrier) as select user_id, name from user_view where status = 'ACTIVE';
    create view active_names as select name from active_users;
    grant select on active_users to analyst";
/// One text that names every added thing. It is the same before and after a rebuild if the new tables have them all.
const ADDED_THINGS: &str = "
    select concat_ws(' ',
        has_table_privilege('analyst', 'user_view', 'select'), has_table_privilege('analyst', 'department_stats', 'select'),
        has_column_privilege('analyst', 'department_stats', 'user_count', 'select with grant option'),
        has_table_privilege('post_api', 'user_view', 'select'), has_table_privilege('analyst', 'active_users', 'select'),
        (select string_agg(indexdef, ';' order by indexname) from pg_indexes where schemaname = 'public' and tablename in ('user_view', 'department_stats')),
        (select string_agg(conname || pg_get_constraintdef(oid), ';' order by conname) from pg_constraint where conrelid = 'user_view'::regclass),
        (select string_agg(pg_get_triggerdef(oid), ';' order by tgname) from pg_trigger where tgrelid = 'user_view'::regclass),
        (select reloptions::text from pg_class where oid = 'user_view'::regclass),
        (select reloptions::text from pg_class where oid = 'active_users'::regclass),
        (select pg_get_functiondef('keep_department_stats'::regproc)))";
/// The oid of the live table.
const LIVE_TABLE: &str = "select 'user_view'::regclass::oid::text";
/// How many more active users the added view shows than the table has.
const ACTIVE_NAMES_TOO_MANY: &str =
    "select (select count(*) from active_names) - (select count(*) from user_view where status = 'ACTIVE')";

/// The phases share one pipeline, because its start is most of the time. Clients write, and a careful reader reads, through the first three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_is_rebuilt_beside_the_live_one_and_all_that_hangs_on_it_stays() {
    let pipeline = crate::e2e::shared::builder().start().await.expect("a pipeline");
    let views = ViewsFolder::copy(&pipeline, "views");
    run_sql(&pipeline, ADD_THINGS).await;
    let reader = CarefulReader::start(&pipeline).await;
    let workload = start_workload(&pipeline, 300).await;

    what_cannot_be_carried_over_is_named_and_nothing_is_begun(&pipeline, &views).await;
    let added_before = query_text(&pipeline, ADDED_THINGS).await;
    let table_before = query_text(&pipeline, LIVE_TABLE).await;
    a_killed_rebuild_leaves_the_live_view_and_the_next_one_goes_on(&pipeline, &views, &table_before).await;
    assert_ne!(
        query_text(&pipeline, LIVE_TABLE).await,
        table_before,
        "another table is live"
    );
    assert_eq!(query_text(&pipeline, ADDED_THINGS).await, added_before);
    assert_eq!(query_number(&pipeline, LEFT_BEHIND).await, 0);

    drop(workload.stop().await);
    assert!(reader.end().await > 50);
    assert_view_equals_users(&pipeline, DEADLINE).await;
    let too_many = query_number(&pipeline, ACTIVE_NAMES_TOO_MANY).await;
    assert_eq!(too_many, 0, "views on the table show the new one");

    let refused_user = a_rebuild_leaves_dead_letters_out(&pipeline, &views).await;
    what_is_retried_during_a_rebuild_comes_in(&pipeline, &views, refused_user).await;
    let restarts = pipeline.view_builder.log_text().matches("these views are kept").count();
    assert_eq!(restarts, 0, "a builder whose views did not change keeps running");
    pipeline.stop().await.expect("a clean end");
}

async fn what_cannot_be_carried_over_is_named_and_nothing_is_begun(pipeline: &Pipeline, views: &ViewsFolder) {
    run_sql(
        pipeline,
        "create publication of_somebody for table user_view;
         create materialized view of_somebody as select name from user_view",
    )
    .await;
    let log = assert_command(pipeline, views.path(), &REBUILD, view_builder_exit::REFUSED).await;
    assert!(
        log.contains("table user_view in publication of_somebody") && log.contains("materialized view"),
        "{log}"
    );
    run_sql(
        pipeline,
        "drop publication of_somebody; drop materialized view of_somebody",
    )
    .await;
}

/// An open transaction could see the new tables half full, so a rebuild waits for it before it swaps the tables. Meanwhile no other rebuild can
/// begin, and the rebuild can be killed.
async fn a_killed_rebuild_leaves_the_live_view_and_the_next_one_goes_on(
    pipeline: &Pipeline,
    views: &ViewsFolder,
    table_before: &str,
) {
    let open_transaction = begin_transaction(pipeline).await;
    let first = command(pipeline, views.path(), &REBUILD);
    first.start().expect("a start");
    wait_for(&first, "the swap waits", |log| log.contains("the swap waits")).await;
    let log = assert_command(pipeline, views.path(), &REBUILD, view_builder_exit::REFUSED).await;
    assert!(log.contains("another rebuild of user_view is under way"), "{log}");
    first.kill_hard().await;
    let live_table = query_text(pipeline, LIVE_TABLE).await;
    assert_eq!(live_table, table_before, "the live view is the old one");

    let second = command(pipeline, views.path(), &REBUILD);
    second.start().expect("a start");
    wait_for(&second, "the rebuild goes on", |log| {
        let resumed = log.rfind("an unfinished rebuild goes on");
        resumed.is_some_and(|at| log[at..].contains("the swap waits"))
    })
    .await;
    open_transaction.batch_execute("commit").await.expect("commit");
    let status = second.exited(DEADLINE).await.expect("it ends");
    assert!(status.success(), "{}", second.log_tail(20));
}

/// A session with a transaction that has read, and so makes a swap wait.
async fn begin_transaction(pipeline: &Pipeline) -> Client {
    let client = connect(pipeline).await;
    client
        .batch_execute("begin isolation level repeatable read; select count(*) from posts")
        .await
        .expect("a transaction");
    client
}

/// Waits until the log of the command is as `is_there` wants it.
async fn wait_for(command: &Program, what: &str, is_there: impl Fn(&str) -> bool) {
    eventually_ok(DEADLINE, what, || async {
        anyhow::ensure!(is_there(&command.log_text()), "{}", command.log_tail(5));
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
}

/// A user whose name the added constraint refuses becomes a dead letter, and a later event of this user waits behind it. Returns the user's id.
async fn a_rebuild_leaves_dead_letters_out(pipeline: &Pipeline, views: &ViewsFolder) -> i64 {
    let rest = Rest::of(pipeline);
    let created = rest
        .create_user(&user("refused", "개발팀", "ACTIVE"))
        .await
        .expect("a user");
    let id = created["id"].as_i64().expect("an id");
    // The second event must come in a later batch. Of two events in one batch only the later one is applied, and nothing is wrong with that one.
    wait_for_dead_letters(pipeline, 1).await;
    rest.update_user(id, &user("behind", "개발팀", "ACTIVE"))
        .await
        .expect("an update");
    wait_for_dead_letters(pipeline, 2).await;
    assert_command(pipeline, views.path(), &REBUILD, 0).await;
    let rows = query_number(pipeline, &rows_of(id)).await;
    assert_eq!(rows, 0, "an event behind a dead one is not applied");
    id
}

async fn what_is_retried_during_a_rebuild_comes_in(pipeline: &Pipeline, views: &ViewsFolder, refused_user: i64) {
    let open_transaction = begin_transaction(pipeline).await;
    let rebuild = command(pipeline, views.path(), &REBUILD);
    // The log also has the earlier rebuilds.
    let waits_of = |log: &str| log.matches("the swap waits").count();
    let waits_before = waits_of(&rebuild.log_text());
    rebuild.start().expect("a start");
    wait_for(&rebuild, "the swap waits", |log| waits_of(log) > waits_before).await;
    let begun = query_number(pipeline, "select count(*) from view_rebuilds").await;
    assert_eq!(begun, 1, "the rebuild is noted");
    for schema in ["public", "user_view_rebuild"] {
        let mend = format!("alter table {schema}.user_view drop constraint added_constraint");
        run_sql(pipeline, &mend).await;
    }
    assert_command(pipeline, views.path(), &["dead-letters", "retry", "--all"], 0).await;
    open_transaction.batch_execute("commit").await.expect("commit");
    let status = rebuild.exited(DEADLINE).await.expect("it ends");
    assert!(status.success(), "{}", rebuild.log_tail(20));
    let rows = query_number(pipeline, &rows_of(refused_user)).await;
    assert_eq!(rows, 1, "what was retried meanwhile");
    assert_view_equals_users(pipeline, DEADLINE).await;
}

async fn wait_for_dead_letters(pipeline: &Pipeline, expected: i64) {
    eventually_ok(DEADLINE, "dead letters", || async {
        let waiting = query_number(pipeline, "select count(*) from view_dead_letters").await;
        anyhow::ensure!(waiting == expected, "{waiting}");
        Ok(())
    })
    .await
    .expect("dead letters");
}

/// The query that counts the rows of user `id` in the view.
fn rows_of(id: i64) -> String {
    format!("select count(*) from user_view where user_id = {id}")
}
