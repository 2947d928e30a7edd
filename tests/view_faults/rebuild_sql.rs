//! The SQL of a rebuild refuses events. Whatever the SQLSTATE is, the rebuild ends and says where, and the live view stays.

use anyhow::ensure;
use rig::view_rig::DEADLINE;
use rig::{ViewRig, view_builder_exit};
use stack::eventually_ok;

use super::rebuild_positions::{CONTENT, ITEMS, rebuild, rig_with_applied_versions};
use super::rig_itself::{TABLE, apply};

/// A statement that fails at item 7 with this SQLSTATE, and is otherwise right.
fn failing(topic: &str, code: &str) -> (String, String) {
    let table = format!(
        "{TABLE}
create or replace function checked(id bigint) returns bigint language plpgsql as $$
begin
    if id = 7 then raise exception 'no' using errcode = '{code}'; end if;
    return id;
end $$;"
    );
    let statement = apply(topic).replace("select key, version", "select checked(key), version");
    (table, statement)
}

async fn ends_with(rig: &ViewRig, code: &str, bug: &str) -> anyhow::Result<()> {
    let before = rig.value(CONTENT).await?;
    let (ended, said) = rebuild(rig, "item", bug, &[]).await;
    ensure!(
        ended == Some(view_builder_exit::VIEW_REFUSED),
        "{code}: {ended:?} {said}"
    );
    ensure!(said.contains(&format!("SQLSTATE {code}")), "{code} is not told: {said}");
    ensure!(
        said.contains("offset 3 ") || said.contains("offset 103 "),
        "{code}: no place: {said}"
    );
    ensure!(rig.value(CONTENT).await? == before, "{code}: the view is another one");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_that_refuses_an_event_ends_a_rebuild_whatever_the_sqlstate() {
    let (rig, topic) = rig_with_applied_versions("refusing_sql").await;
    for code in [
        "21000", "U0001", "38000", "44000", "42501", "0A000", "23505", "P0001", "57014", "53100",
    ] {
        let (table, statement) = failing(&topic, code);
        rig.write_view("item", &table, &statement);
        ends_with(&rig, code, "").await.unwrap_or_else(|err| panic!("{err:#}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_constraint_that_refuses_at_the_commit_ends_a_rebuild() {
    let (rig, topic) = rig_with_applied_versions("refusing_commit").await;
    let table = format!(
        "{TABLE}
create or replace function refuse() returns trigger language plpgsql as $$ begin raise exception 'no' using errcode = '23514'; end $$;
do $$ begin
    if not exists (select from pg_trigger where tgrelid = 'item'::regclass and tgname = 'refuse_7') then
        create constraint trigger refuse_7 after insert on item deferrable initially deferred
            for each row when (new.id = 7) execute function refuse();
    end if;
end $$;"
    );
    rig.write_view("item", &table, &apply(&topic));
    ends_with(&rig, "23514", "")
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
}

/// Two events of a batch may be refused together, although each alone is right. Then a builder applies them one by one, and a rebuild has to do the
/// same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_refused_together_and_not_one_by_one_are_applied() {
    let (rig, topic) = rig_with_applied_versions("refusing_batches").await;
    let statement = apply(&topic).replace("select key, version", "select key / 2 * 2, version");
    rig.write_view("item", TABLE, &statement);
    let (code, said) = rebuild(&rig, "item", "", &[]).await;
    assert_eq!(code, Some(0), "{said}");
    let count = rig.value("select count(*) from item where version = 3").await;
    assert_eq!(count.expect("a count"), (ITEMS / 2 + 1).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taking_a_refusal_for_a_lost_connection_is_caught() {
    let (rig, topic) = rig_with_applied_versions("bug_refused_by_data").await;
    let (table, statement) = failing(&topic, "0A000");
    rig.write_view("item", &table, &statement);
    let command = rig
        .faulty_builder("rebuild")
        .env("VIEW_BUILDER_BUG", "RefusedByDataAlone")
        .command_of("rebuild-bug", &["rebuild", "item"]);
    command.start().expect("a start");
    let ended = eventually_ok(DEADLINE, "it ends or goes round", || async {
        let rounds = command.log_text().matches("an unfinished rebuild goes on").count();
        let is_over = command.process().is_none_or(|process| !process.is_running());
        ensure!(is_over || rounds > 2, "neither");
        Ok(())
    });
    ended.await.unwrap_or_else(|err| panic!("{err:#}"));
    let status = command.exited(DEADLINE).await.expect("an end");
    assert_ne!(
        status.code(),
        Some(view_builder_exit::VIEW_REFUSED),
        "the bug goes unnoticed: {}",
        command.log_tail(20)
    );
}
