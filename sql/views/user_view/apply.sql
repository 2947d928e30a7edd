-- Every user as the latest event tells it.
-- topics: user-events
--
-- An event older than the row changes nothing. One of the row's own version is applied again, so that a replay mends
-- what somebody edited or deleted by hand. A deleted user stays deleted for every event up to the deletion's version.
-- A date-time without zone is UTC, one with a zone is taken to UTC; nanoseconds are rounded to microseconds.
with event as materialized (
    select *
    from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::jsonb[])
        as event(topic, user_id, version, type, entity)
),
removed as (
    delete from user_view
    using event
    where event.entity is null
        and user_view.user_id = event.user_id
        and user_view.version <= event.version
),
remembered as (
    insert into user_view_deleted as deleted (user_id, version)
    select user_id, version
    from event
    where entity is null
        and not exists (
            select from user_view
            where user_view.user_id = event.user_id and user_view.version > event.version
        )
    on conflict (user_id) do update set version = excluded.version
    where deleted.version < excluded.version
)
insert into user_view as present
    (user_id, name, email, department, status, created_at, updated_at, version, last_processed_at)
select
    user_id,
    entity ->> 'name',
    entity ->> 'email',
    entity ->> 'department',
    entity ->> 'status',
    (entity ->> 'createdAt')::timestamptz at time zone 'UTC',
    (entity ->> 'updatedAt')::timestamptz at time zone 'UTC',
    version,
    statement_timestamp() at time zone 'UTC'
from event
where entity is not null
    and not exists (
        select from user_view_deleted as deleted
        where deleted.user_id = event.user_id and deleted.version >= event.version
    )
on conflict (user_id) do update set
    name = excluded.name,
    email = excluded.email,
    department = excluded.department,
    status = excluded.status,
    created_at = excluded.created_at,
    updated_at = excluded.updated_at,
    version = excluded.version,
    last_processed_at = excluded.last_processed_at
where present.version <= excluded.version
