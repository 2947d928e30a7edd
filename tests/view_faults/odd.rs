//! Two views of one topic. In `item` nothing goes wrong. In `odd` a trigger fails for certain events, which their names choose.

use anyhow::ensure;
use rig::ViewRig;
use rig::view_rig::{DEADLINE, Event};
use serde_json::json;
use stack::{Program, eventually_ok};

use super::rig_itself;

/// There are two partitions, so that one can see that trouble in one leaves the other alone.
pub(crate) const PARTITIONS: i32 = 2;

/// The `name` of an item chooses what its trigger does. `raise XXXXX` raises this SQLSTATE; the other names cause a real error. A row in `odd_switch`
/// makes every row fail with its SQLSTATE, as a full disk does.
const ODD_TABLE: &str = "
create table if not exists odd (id bigint primary key, version bigint not null, name text);
create table if not exists odd_switch (state text primary key);
create table if not exists odd_shown (name text);
create or replace view odd_checked as select name from odd_shown where name <> '44000' with check option;
alter table odd enable row level security;
alter table odd force row level security;
do $$ begin
    if not exists (select from pg_policy where polrelid = 'odd'::regclass) then
        create policy odd_rows on odd using (true) with check (name is distinct from 'row security');
    end if;
end $$;
create or replace function odd_row() returns trigger language plpgsql as $$
declare
    told text;
begin
    select state into told from odd_switch;
    if told is null then
        told = substring(new.name from '^raise (.....)$');
    end if;
    if told is not null then
        raise exception 'made by the test' using errcode = told;
    end if;
    case new.name
        when '21000' then perform (select n from generate_series(1, 2) as n);
        when '22012' then perform 1 / (length(new.name) - 5);
        when '42883' then execute 'select there_is_no_such_function()';
        when '44000' then insert into odd_checked values (new.name);
        when 'slow' then perform pg_sleep(60);
        else null;
    end case;
    return new;
end
$$;
create or replace trigger odd_row before insert or update on odd for each row execute function odd_row();
";

pub(crate) fn odd_apply(topic: &str) -> String {
    rig_itself::apply(topic)
        .replace("Every item", "Every odd item")
        .replace("insert into item as known", "insert into odd as known")
}

/// A rig with both views and a topic for them. No builder runs yet.
pub(crate) async fn rig(name: &str) -> (ViewRig, String) {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, PARTITIONS, &[]).await.expect("a topic");
    write_views(&rig, &topic);
    (rig, topic)
}

pub(crate) fn write_views(rig: &ViewRig, topic: &str) {
    rig.write_view("item", rig_itself::TABLE, &rig_itself::apply(topic));
    rig.write_view("odd", ODD_TABLE, &odd_apply(topic));
}

/// The first event of item `id`, with this name. The id decides the partition.
pub(crate) fn item(topic: &str, id: i64, name: &str) -> Event {
    let partition = (id % i64::from(PARTITIONS)) as i32;
    Event::of(topic, partition, id, 1, Some(&json!({"name": name})))
}

pub(crate) fn good(topic: &str, ids: impl IntoIterator<Item = i64>) -> Vec<Event> {
    ids.into_iter().map(|id| item(topic, id, "good")).collect()
}

/// Waits until `sql` gives this value.
pub(crate) async fn wait_until_value_is(rig: &ViewRig, builder: &Program, sql: &str, wanted: &str) {
    eventually_ok(DEADLINE, sql, || async {
        let value = rig.value(sql).await?;
        ensure!(value == wanted, "{value} and not {wanted}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
}

/// Waits until `/readyz` has all these words. Returns its text.
pub(crate) async fn wait_until_readyz_says(builder: &Program, wanted: &[&str]) -> String {
    let asked = eventually_ok(DEADLINE, "readyz says it", || async {
        let text = reqwest::get(builder.url("/readyz")).await?.text().await?;
        for part in wanted {
            ensure!(text.contains(part), "no {part:?} in {text}");
        }
        Ok(text)
    });
    asked
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)))
}
