-- Every event that was applied, as often as it was applied.
-- topics: post-events, user-events
insert into applied_events (topic, key, version)
select topic, key, version from unnest($1::text[], $2::bigint[], $3::bigint[]) as event(topic, key, version)
