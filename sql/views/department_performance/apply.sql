-- How many active users, authors and posts each department has, and how many posts for each of its users.
-- topics: user-events, post-events
--
-- The work is done in steps that must each see what another builder has committed meanwhile, so it is a function: see
-- table.sql, which says as well what a replay mends.
select apply_department_performance(
    array_agg(key) filter (where topic = 'post-events'),
    array_agg(version) filter (where topic = 'post-events'),
    array_agg((entity ->> 'authorId')::bigint) filter (where topic = 'post-events'),
    array_agg(key) filter (where topic = 'user-events'),
    array_agg(version) filter (where topic = 'user-events'),
    array_agg(entity ->> 'department') filter (where topic = 'user-events'),
    array_agg(entity ->> 'status' = 'ACTIVE') filter (where topic = 'user-events'))
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::jsonb[]) as event(topic, key, version, type, entity)
