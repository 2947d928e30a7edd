//! A view of one topic, for tests that only need one.

/// Every item as its latest event tells it: its `table.sql`.
pub const TABLE: &str = "
    create table if not exists item (id bigint primary key, version bigint not null, name text);";

/// Its `apply.sql`.
#[must_use]
pub fn apply(topic: &str) -> String {
    format!(
        "-- Every item.
-- topics: {topic}
insert into item as known (id, version, name)
select key, version, entity ->> 'name'
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::jsonb[]) as event(topic, key, version, type, entity)
order by key
on conflict (id) do update set version = excluded.version, name = excluded.name
where known.version <= excluded.version"
    )
}
