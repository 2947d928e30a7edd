-- Every event that was applied, in the order of its application, as often as it was applied. No shipped view may be like this one, as
-- it cannot be rebuilt from a compacted topic; here it is what tells once from twice.
create table if not exists applied_events (
    id      bigint generated always as identity primary key,
    topic   text   not null,
    key     bigint not null,
    version bigint not null
);

-- A row here makes each COMMIT of this view take so long.
create table if not exists slow_commits (seconds double precision not null);

create or replace function dawdle_in_commit() returns trigger
    language plpgsql
as $$
begin
    perform pg_sleep(seconds) from slow_commits;
    return null;
end
$$;

-- Deferred, so that it runs inside of COMMIT, before the transaction has committed.
do $$
begin
    if not exists (select from pg_trigger where tgname = 'applied_events_committed') then
        create constraint trigger applied_events_committed after insert on applied_events
            deferrable initially deferred for each row execute function dawdle_in_commit();
    end if;
end
$$;
