-- An outbox that grows for ever has to be emptied, and deleting its rows one by one costs as much as writing them. So it is
-- partitioned by day: a day whose rows are all published is dropped at once. outbox-relay makes the days ahead and drops the old
-- ones, as the role outbox_maintainer, which owns this table and nothing else. Where the relay is away for long, rows go to the
-- default partition: no insert ever fails for want of a day.
--
-- The rows stay where they are, in a partition that ends tomorrow: rewritten, they would be in the write-ahead log a second time.
-- Publications get the new table in the same transaction as the writers, so none of its rows is in no stream. A relay that was
-- initialised before finds another table in its publication and stops with exit code 20: see
-- docs/decisions/outbox-by-day.md for what the operator says then.
--
-- The key of a partitioned table has to hold created_at, too: (id, created_at).
alter table public.outbox rename to outbox_before_days;
alter table public.outbox_before_days drop constraint outbox_pkey;

create table public.outbox (
    id            uuid        not null default gen_random_uuid(),
    aggregatetype text        not null,
    aggregateid   text        not null,
    type          text        not null,
    payload       jsonb,
    created_at    timestamptz not null default clock_timestamp(),
    constraint outbox_pkey primary key (id, created_at)
) partition by range (created_at);

grant insert on public.outbox to user_api;
-- For the rows that were there before the relay, and for those that a lost slot did not see; everything else comes from the log.
grant select on public.outbox to outbox_relay;

create table public.outbox_default partition of public.outbox default;

do $$
declare
    publication name;
    member name;
    utc_today constant date := (now() at time zone 'utc')::date;
    first_day date := utc_today;
begin
    if exists (select from public.outbox_before_days) then
        select greatest(utc_today, (max(created_at) at time zone 'utc')::date) + 1 into first_day from public.outbox_before_days;
        execute format('alter table public.outbox attach partition public.outbox_before_days for values from (minvalue) to (%L)',
            first_day::timestamp at time zone 'utc');
    end if;
    for day in 0..7 loop
        execute format('create table public.%I partition of public.outbox for values from (%L) to (%L)',
            'outbox_' || to_char(first_day + day, 'YYYYMMDD'),
            (first_day + day)::timestamp at time zone 'utc', (first_day + day + 1)::timestamp at time zone 'utc');
    end loop;
    for publication in
        select p.pubname from pg_publication p join pg_publication_rel r on r.prpubid = p.oid
        where r.prrelid = 'public.outbox_before_days'::regclass
    loop
        execute format('alter publication %I drop table public.outbox_before_days', publication);
        execute format('alter publication %I add table public.outbox', publication);
        execute format('alter publication %I set (publish_via_partition_root = true)', publication);
    end loop;
    if not exists (select from pg_inherits where inhrelid = 'public.outbox_before_days'::regclass) then
        drop table public.outbox_before_days;
    end if;
    -- Owning a table takes no right on its schema; making partitions does.
    grant usage, create on schema public to outbox_maintainer;
    for member in
        select c.relname from pg_class c
        where c.oid = 'public.outbox'::regclass or c.oid in (select inhrelid from pg_inherits where inhparent = 'public.outbox'::regclass)
    loop
        execute format('alter table public.%I owner to outbox_maintainer', member);
    end loop;
end $$;
