//! What an operator has set on the tables of a view is exactly the same after a rebuild. Or the rebuild names what it cannot keep.

use rig::view_rig::{DEADLINE, Event};
use rig::{ViewRig, view_builder_exit};
use serde_json::json;

use super::rig_itself::apply;

/// The view's own tables. Some of their names are parts of an operator's names, and the other way round.
const TABLE: &str = "
    create table if not exists item (
        id      bigint primary key,
        version bigint not null,
        name    text default 'none',
        note    text,
        constraint item_note check (note <> 'never')
    ) with (fillfactor = 80);
    create index if not exists idx_item_name_long on item (name);
    comment on table item is 'every item';
    create or replace function stamp() returns trigger language plpgsql as 'begin return new; end';
    create or replace trigger own_trigger before update on item for each row execute function stamp();";

/// Everything that Postgres lets people set on a table without changing the contents of its rows.
const SET_EVERYTHING: &str = "
    create unique index item_unique on item (id, name);
    create index idx_item_name on item (name, id);
    create index expression on item (lower(name));
    alter index expression alter column 1 set statistics 200;
    comment on index expression is 'for the shop''s search';
    alter table item cluster on item_unique;
    alter table item replica identity full;
    alter table item alter column note set not null;
    alter table item alter column note set default 'noted';
    alter table item alter column name drop default;
    alter table item alter column name set statistics 321;
    alter table item alter column name set (n_distinct = -0.5);
    alter table item alter column note set storage external;
    alter table item alter column note set compression pglz;
    alter table item add constraint item_note_short check (length(note) < 100);
    alter table item add constraint item_later check (length(name) < 1000) not valid;
    comment on constraint item_note_short on item is 'short';
    alter table item set (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.03, toast.autovacuum_enabled = false);
    comment on table item is 'E''s table \\ of items';
    comment on column item.name is 'as printed';
    create statistics item_statistics (dependencies) on id, name from item;
    create function audit() returns trigger language plpgsql as 'begin return null; end';
    create trigger audited after delete on item for each row execute function audit();
    create trigger always after insert on item for each row execute function audit();
    create trigger never after insert on item for each row execute function audit();
    create constraint trigger deferred_audit after update on item deferrable initially deferred for each row execute function audit();
    alter table item enable always trigger always;
    alter table item disable trigger never;
    alter table item enable replica trigger own_trigger;
    comment on trigger audited on item is 'audited';
    grant select on item to reporter with grant option;
    grant update (note) on item to auditor;
    alter default privileges for role view_builder grant select on tables to auditor;
    revoke all on item from auditor;
    grant update (note) on item to auditor;
    alter table item enable row level security;
    create policy visible on item for select to reporter, auditor using (name <> 'hidden');
    create policy changed on item as restrictive for update to public using (id > 0) with check (version > 0);";

/// What is set, read from the catalog in another way than the program reads it.
const WHAT_IS_SET: &str = "
    select string_agg(line, chr(10) order by line) from (
        select 'index ' || indexdef from pg_indexes where schemaname = 'public' and tablename = 'item'
        union all select 'index column ' || c.relname || ' ' || attnum || ' ' || attstattarget from pg_index join pg_class as c on c.oid = indexrelid
            join pg_attribute on attrelid = c.oid where indrelid = 'item'::regclass and attstattarget > 0
        union all select 'clustered ' || indexrelid::regclass from pg_index where indrelid = 'item'::regclass and indisclustered
        union all select concat_ws(' ', 'table', relreplident, relrowsecurity, relforcerowsecurity, (select string_agg(option, ',' order by option) from unnest(reloptions) as option))
            from pg_class where oid = 'item'::regclass
        union all select 'toast ' || reloptions::text from pg_class where oid = (select reltoastrelid from pg_class where oid = 'item'::regclass)
        union all select concat_ws(' ', 'column', attname, attnotnull, attstattarget, attoptions, attstorage, attcompression, pg_get_expr(adbin, adrelid), attacl)
            from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum where attrelid = 'item'::regclass and attnum > 0
        union all select concat_ws(' ', 'constraint', conname, pg_get_constraintdef(oid), convalidated, obj_description(oid, 'pg_constraint'))
            from pg_constraint where conrelid = 'item'::regclass and contype <> 't'
        union all select concat_ws(' ', 'trigger', tgenabled, pg_get_triggerdef(oid), obj_description(oid, 'pg_trigger'))
            from pg_trigger where tgrelid = 'item'::regclass and not tgisinternal
        union all select concat_ws(' ', 'comment', objsubid, description) from pg_description where objoid = 'item'::regclass and classoid = 'pg_class'::regclass
        union all select concat_ws(' ', 'index comment', description) from pg_description join pg_index on indexrelid = objoid where indrelid = 'item'::regclass
        union all select concat_ws(' ', 'statistics', pg_get_statisticsobjdef(oid)) from pg_statistic_ext where stxrelid = 'item'::regclass
        union all select concat_ws(' ', 'privilege', grantee::regrole, privilege_type, is_grantable) from pg_class cross join aclexplode(relacl) where oid = 'item'::regclass
        union all select concat_ws(' ', 'policy', policyname, permissive, roles, cmd, qual, with_check) from pg_policies where tablename = 'item'
    ) as setting(line)";

fn apply_with_notes(topic: &str) -> String {
    apply(topic)
        .replace("(id, version, name)", "(id, version, name, note)")
        .replace("entity ->> 'name'", "entity ->> 'name', entity ->> 'note'")
}

/// A rig with the view, its running builder, which has applied ten events, and the view's topic.
async fn rig_with_builder(name: &str) -> (ViewRig, stack::Program, String) {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply_with_notes(&topic));
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    let events = (0..10).map(|id| {
        Event::of(
            &topic,
            0,
            id,
            1,
            Some(&json!({"name": format!("n{id}"), "note": "noted"})),
        )
    });
    rig.produce(&topic, events).await.expect("offsets");
    rig.wait_until_applied(&topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    (rig, builder, topic)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_an_operator_has_set_is_as_it_was_after_a_rebuild() {
    let (rig, builder, _) = rig_with_builder("carried").await;
    let as_owner = format!("set role view_builder; {SET_EVERYTHING}");
    rig.query("create role reporter; create role auditor")
        .await
        .expect("roles");
    rig.query(&as_owner).await.expect("what an operator sets");
    let before = rig.value(WHAT_IS_SET).await.expect("what is set");
    for name in ["item_later", "deferred_audit", "toast"] {
        assert!(before.contains(name), "{name}: {before}");
    }
    for round in 1..=2 {
        let said = rig
            .assert_command(&["rebuild", "item"], view_builder_exit::SUCCESS)
            .await;
        let after = rig.value(WHAT_IS_SET).await.expect("what is set");
        assert_eq!(before, after, "round {round}");
        assert!(!said.contains("not carried over"), "{said}");
    }
    let count = rig
        .value("select count(*) from item where note = 'noted'")
        .await
        .expect("a count");
    assert_eq!(count, "10");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_carried_over_is_named_and_nothing_is_begun() {
    let (rig, builder, _) = rig_with_builder("carried_obstacles").await;
    for (make, unmake, named) in [
        (
            "alter table item add column mine text",
            "alter table item drop column mine",
            "column mine of item",
        ),
        (
            "create table theirs (id bigint references item)",
            "drop table theirs",
            "foreign key theirs_id_fkey of theirs",
        ),
        (
            "create table child () inherits (item)",
            "drop table child",
            "table child inherits",
        ),
        (
            "create rule quiet as on delete to item do also notify items",
            "drop rule quiet on item",
            "rule quiet on item",
        ),
        (
            "alter table item set unlogged",
            "alter table item set logged",
            "item, which is unlogged",
        ),
    ] {
        rig.query(&format!("set role view_builder; {make}")).await.expect(make);
        let (code, said) = rig.command(&["rebuild", "item"]).await.expect("a rebuild");
        assert_eq!(code, Some(view_builder_exit::REFUSED), "{make}: {said}");
        assert!(said.contains(named), "{make}: {said}");
        rig.query(unmake).await.expect(unmake);
    }
    // A table that happens to have the same name as a table of a new view.
    rig.query("create table precious (id bigint); insert into precious values (7)")
        .await
        .expect("a table");
    let apply_precious = apply(&rig.topic("item")).replace("insert into item", "insert into precious").replace("(id, version, name)", "(id)")
        .replace("select key, version, entity ->> 'name'", "select key")
        .replace("on conflict (id) do update set version = excluded.version, name = excluded.name\nwhere known.version <= excluded.version", "on conflict do nothing");
    rig.write_view(
        "precious",
        "create table if not exists precious (id bigint primary key);",
        &apply_precious,
    );
    let said = rig
        .assert_command(&["rebuild", "precious"], view_builder_exit::REFUSED)
        .await;
    assert!(said.contains("table precious, which is none of this view's"), "{said}");
    assert_eq!(rig.value("select id from precious").await.expect("a row"), "7");
    rig.command(&["rebuild", "precious", "--abandon"])
        .await
        .expect("an end");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    builder.stop().await.expect("a clean end");
}
