-- Every user as the latest event tells it, and how many users each department has.
--
-- Run at each start of the view-builder, so every statement may run again.
-- Columns, their order, their types and the indexes' names are what people query with psql: further columns go to the end.

create table if not exists user_view (
    user_id           bigint       primary key,
    name              varchar(255) not null,
    email             varchar(255) not null,
    department        varchar(255),
    status            varchar(50)  not null,
    -- The user's own times: local date-time in UTC.
    created_at        timestamp    not null,
    updated_at        timestamp    not null,
    version           bigint       not null default 1,
    -- When the view took the event up: local date-time in UTC, whatever the session's time zone.
    last_processed_at timestamp    not null default (current_timestamp at time zone 'UTC')
);

create index if not exists idx_user_view_department on user_view (department);
create index if not exists idx_user_view_email on user_view (email);
create index if not exists idx_user_view_last_processed on user_view (last_processed_at);
create index if not exists idx_user_view_name on user_view (name);
create index if not exists idx_user_view_status on user_view (status);
-- Finds a department's newest row in one probe, when its newest one has gone.
create index if not exists idx_user_view_department_processed on user_view (department, last_processed_at);

-- Which version deleted a user, so that no older event brings the user back. No personal data.
create table if not exists user_view_deleted (
    user_id bigint primary key,
    version bigint not null
);

-- One row per department that has users; a null department is a row of its own.
create table if not exists department_stats (
    department     varchar(255),
    user_count     bigint,
    active_users   bigint,
    inactive_users bigint,
    -- The newest last_processed_at of the department's users.
    last_updated   timestamp
) with (fillfactor = 50);

create unique index if not exists idx_department_stats_dept on department_stats (department) nulls not distinct;

-- ANALYZE, which comes each minute while a table is young and grows fast, and then takes the processor from who writes to it, samples
-- a tenth of what it would by default. What somebody has set stays.
do $$
declare
    target record;
begin
    for target in
        select attrelid::regclass as relation, attname
        from pg_attribute
        where attrelid in ('user_view'::regclass, 'user_view_deleted'::regclass)
            and attnum > 0 and not attisdropped and coalesce(attstattarget, -1) < 0
    loop
        execute format('alter table %s alter %I set statistics 10', target.relation, target.attname);
    end loop;
end
$$;

-- Adds one statement's change of a department to department_stats. came and gone: the newest last_processed_at among
-- the rows that the statement put there and among those that it took away.
create or replace function count_department(
    department_changed varchar, users bigint, active bigint, inactive bigint, came timestamp, gone timestamp
) returns void
    language plpgsql
as $$
declare
    place tid;
    users_left bigint;
    newest timestamp;
begin
    -- The unique index knows a null department as well; a comparison with `=` would not.
    insert into department_stats as stats (department, user_count, active_users, inactive_users, last_updated)
    values (department_changed, users, active, inactive, came)
    on conflict (department) do update set
        user_count = stats.user_count + excluded.user_count,
        active_users = stats.active_users + excluded.active_users,
        inactive_users = stats.inactive_users + excluded.inactive_users,
        last_updated = greatest(stats.last_updated, excluded.last_updated)
    returning ctid, user_count, last_updated into place, users_left, newest;
    if users_left <= 0 then
        delete from department_stats where ctid = place;
    elsif gone >= newest then
        -- The newest row may be the one that went: the next one is the first entry of the index on (department, last_processed_at).
        if department_changed is null then
            select max(last_processed_at) into newest from user_view where department is null;
        else
            select max(last_processed_at) into newest from user_view where department = department_changed;
        end if;
        update department_stats set last_updated = newest where ctid = place;
    end if;
end
$$;

-- Keeps department_stats after each statement on user_view: the cost is the statement's, not the table's, and an edit
-- by hand counts like an event.
--
-- One statement can insert, update and delete, and then this function runs three times, each time with departments of
-- its own. So writers take their turn by one lock until they commit: locks on the departments' rows, taken in three rounds,
-- could be taken crosswise. Readers never wait. Each query below sees what the writer before has committed.
create or replace function keep_department_stats() returns trigger
    language plpgsql
    security definer
    set search_path from current
as $$
begin
    if tg_op = 'TRUNCATE' then
        perform lock_department_stats();
        delete from department_stats;
    elsif tg_op = 'INSERT' then
        if exists (select from added) then
            perform lock_department_stats();
            perform count_department(
                change.department, change.users, change.active, change.inactive, change.newest, null)
            from (
                select department, count(*) as users,
                    count(*) filter (where status = 'ACTIVE') as active,
                    count(*) filter (where status = 'INACTIVE') as inactive,
                    max(last_processed_at) as newest
                from added group by department
            ) as change;
        end if;
    elsif tg_op = 'DELETE' then
        if exists (select from removed) then
            perform lock_department_stats();
            perform count_department(
                change.department, -change.users, -change.active, -change.inactive, null, change.newest)
            from (
                select department, count(*) as users,
                    count(*) filter (where status = 'ACTIVE') as active,
                    count(*) filter (where status = 'INACTIVE') as inactive,
                    max(last_processed_at) as newest
                from removed group by department
            ) as change;
        end if;
    elsif exists (select from added) then
        perform lock_department_stats();
        perform count_department(
            change.department, change.users, change.active, change.inactive, change.came, change.gone)
        from (
            select department, sum(n)::bigint as users,
                coalesce(sum(n) filter (where status = 'ACTIVE'), 0)::bigint as active,
                coalesce(sum(n) filter (where status = 'INACTIVE'), 0)::bigint as inactive,
                max(last_processed_at) filter (where n = 1) as came,
                max(last_processed_at) filter (where n = -1) as gone
            from (
                select 1 as n, department, status, last_processed_at from added
                union all
                select -1, department, status, last_processed_at from removed
            ) as row_change
            group by department
        ) as change;
    end if;
    return null;
end
$$;

-- Holds every other writer of department_stats until this transaction ends.
create or replace function lock_department_stats() returns void
    language sql
as $$
    select pg_advisory_xact_lock('pg_class'::regclass::oid::integer, 'department_stats'::regclass::oid::integer)
$$;

-- Counts department_stats anew from user_view: for whoever has edited department_stats itself.
--
-- The replaced system had a trigger function of this name that refreshed a materialized view. Its set-up script, run
-- here by habit, cannot replace this one, as the type that it returns differs, and so cannot install its trigger either.
create or replace function refresh_department_stats() returns void
    language plpgsql
    set search_path from current
as $$
begin
    lock table user_view in share mode;
    perform lock_department_stats();
    delete from department_stats;
    insert into department_stats (department, user_count, active_users, inactive_users, last_updated)
    select department, count(*),
        count(*) filter (where status = 'ACTIVE'),
        count(*) filter (where status = 'INACTIVE'),
        max(last_processed_at)
    from user_view group by department;
end
$$;

create or replace trigger department_stats_inserted after insert on user_view
    referencing new table as added
    for each statement execute function keep_department_stats();
create or replace trigger department_stats_updated after update on user_view
    referencing old table as removed new table as added
    for each statement execute function keep_department_stats();
create or replace trigger department_stats_deleted after delete on user_view
    referencing old table as removed
    for each statement execute function keep_department_stats();
create or replace trigger department_stats_truncated after truncate on user_view
    for each statement execute function keep_department_stats();
