-- How many posts each author has, and which are the first and the last, whoever the author is.
-- topics: post-events
--
-- The work is done in steps that must each see what another builder has committed meanwhile, so it is a function: see
-- table.sql, which says as well what a replay mends.
select apply_post_stats(
    array_agg(key),
    array_agg(version),
    array_agg((entity ->> 'authorId')::bigint),
    array_agg((entity ->> 'createdAt')::timestamptz at time zone 'UTC'))
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::jsonb[]) as event(topic, key, version, type, entity)
