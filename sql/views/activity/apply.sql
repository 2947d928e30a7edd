-- What users do: post_stats, user_activity and department_performance.
-- topics: user-events, post-events
--
-- A function, as the post that is the first once another is gone must be looked for behind its author's lock: see
-- table.sql, which says as well what a replay mends.
select apply_activity($1::text[], $2::bigint[], $3::bigint[], $5::jsonb[])
