//! A view of one topic, for tests that need a view and do not care which.

/// The `table.sql` of the view. It has each item as the item's latest event describes it.
pub const TABLE: &str = "
    create table if not exists item (id bigint primary key, version bigint not null, name text);";

/// The `apply.sql` of the view.
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
