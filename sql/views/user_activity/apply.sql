-- How often each user changed, how many posts the user has, and when the user was last active.
-- topics: user-events, post-events
--
-- The work is done in steps that must each see what another builder has committed meanwhile, so it is a function: see
-- table.sql, which says as well what a replay mends.
select apply_user_activity(
    array_agg(key) filter (where topic = 'post-events'),
    array_agg(version) filter (where topic = 'post-events'),
    array_agg((entity ->> 'authorId')::bigint) filter (where topic = 'post-events'),
    array_agg((entity ->> 'updatedAt')::timestamptz at time zone 'UTC') filter (where topic = 'post-events'),
    array_agg(key) filter (where topic = 'user-events'),
    array_agg(version) filter (where topic = 'user-events'),
    array_agg((entity ->> 'updatedAt')::timestamptz at time zone 'UTC') filter (where topic = 'user-events'))
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::jsonb[]) as event(topic, key, version, type, entity)
