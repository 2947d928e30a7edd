-- What users do: post_stats has the authors with their posts, user_activity the users, department_performance the departments.
--
-- Run at each start of the view-builder, so every statement may run again.
-- Columns, their order and their types are what people query with psql: further columns go to the end.
--
-- All three need each post's author as he was before the event, and one row for each author: kept by each on its own that was
-- most of what they cost. So they share activity_post and activity; post_stats and user_activity are plain selections of
-- columns of activity, and cost nothing to read.
--
-- A batch adds the difference that it makes. An event older than what the view has of its key changes nothing; one of the same
-- version is applied again. An edit by hand has everything that is derived counted anew, as a whole. So a replay brings back
-- what was deleted by hand: to mend an edited row, delete it and replay.

-- Once each of the three kept tables of its own; they are filled again from the topics, as those of any new view.
do $$
declare
    once name;
begin
    for once in
        select relname from pg_class
        where relnamespace = current_schema()::regnamespace and relkind = 'r'
            and (relname in ('post_stats', 'post_stats_post', 'user_activity', 'user_activity_post', 'user_activity_deleted',
                    'department_performance_post', 'department_performance_user')
                or relname = 'department_performance' and to_regclass('activity') is null)
    loop
        execute format('drop table %I', once);
    end loop;
end
$$;
drop function if exists keep_post_stats(), keep_user_activity(), keep_department_performance(),
    keep_department_performance_posts(), lock_post_stats(), lock_user_activity(boolean), lock_department_performance(),
    lock_department_performance_user(boolean), count_post_stats(bigint[], bigint[]),
    count_department_performance(varchar, bigint, bigint, bigint, bigint),
    apply_post_stats(bigint[], bigint[], bigint[], timestamp[]),
    apply_user_activity(bigint[], bigint[], bigint[], timestamp[], bigint[], bigint[], timestamp[]),
    apply_department_performance(bigint[], bigint[], bigint[], bigint[], bigint[], varchar[], boolean[]);

-- Every post's latest event. A deleted post keeps its version alone, so that no older event brings it back.
create table if not exists activity_post (
    post_id    bigint    primary key,
    version    bigint    not null,
    -- Null: the post was deleted.
    author_id  bigint,
    created_at timestamp,
    updated_at timestamp
);

-- Finds the first and the last post of an author in one probe each, and the one that was changed last.
create index if not exists idx_activity_post_created on activity_post (author_id, created_at, post_id)
    where author_id is not null;
create index if not exists idx_activity_post_updated on activity_post (author_id, updated_at)
    where author_id is not null;

-- Every user's latest event and every author's posts, whether the author is known or not. A deleted user keeps version and
-- posts alone, so that no older event brings the user back.
create table if not exists activity (
    user_id          bigint    primary key,
    -- 0: no event of the user has come yet.
    version          bigint    not null,
    department       varchar(255),
    active           boolean,
    -- The newest change of the user itself: local date-time in UTC, as all. Null: the user is not known, or was deleted.
    updated_at       timestamp,
    -- The author's posts that exist now; without any, the columns below are null.
    posts            bigint    not null,
    -- The posts that were created first and last. Of two that were created at the same time the one with the lower id is the
    -- first.
    first_created_at timestamp,
    last_created_at  timestamp,
    first_post_id    bigint,
    last_post_id     bigint,
    -- The newest change of one of the posts.
    post_updated_at  timestamp,
    last_active      timestamp generated always as (greatest(updated_at, post_updated_at)) stored,
    -- What a write that may change the department's numbers found: the difference is what the department has to be told. It
    -- cannot be read beforehand, as another builder may write the row meanwhile.
    department_before varchar(255),
    active_before     boolean,
    posts_before      bigint
);

-- Who writes most.
create index if not exists idx_activity_posts on activity (posts) where posts > 0;
-- Who was active lately, and who was not.
create index if not exists idx_activity_last_active on activity (last_active) where updated_at is not null;

-- One row for each department that has users; a null department is a row of its own.
create table if not exists department_performance (
    department     varchar(255),
    -- Users with status ACTIVE.
    active_users   bigint  not null,
    -- Users, active or not, with at least one existing post.
    authors        bigint  not null,
    -- Existing posts of the department's users.
    posts          bigint  not null,
    -- posts / users, unrounded: all users count, also those who are not active or have not written.
    posts_per_user numeric not null generated always as (coalesce(posts::numeric / nullif(users, 0), 0)) stored,
    -- All users of the department.
    users          bigint  not null
) with (fillfactor = 50);

-- No primary key, as that would refuse a null department.
create unique index if not exists idx_department_performance_department
    on department_performance (department) nulls not distinct;

-- ANALYZE, which comes each minute while a table is young and grows fast, and then takes the processor from who writes to it, samples
-- a tenth of what it would by default. What somebody has set stays.
do $$
declare
    target record;
begin
    for target in
        select attrelid::regclass as relation, attname
        from pg_attribute
        where attrelid in ('activity'::regclass, 'activity_post'::regclass)
            and attnum > 0 and not attisdropped and coalesce(attstattarget, -1) < 0
    loop
        execute format('alter table %s alter %I set statistics 10', target.relation, target.attname);
    end loop;
end
$$;

-- One row for each author with at least one post, also where no such user is known or the user was deleted.
create or replace view post_stats as
    select user_id as author_id, posts, first_created_at as first_post_at, last_created_at as last_post_at, first_post_id, last_post_id
    from activity
    where posts > 0;

-- One row for each user who exists. changes: those of the user itself, its creation among them.
create or replace view user_activity as
    select user_id, version as changes, posts, last_active, updated_at, post_updated_at as last_post_at
    from activity
    where updated_at is not null;

-- Applies a batch: one event of each user and post.
--
-- Several builders share authors and departments. Each locks first the rows of activity in the order of the ids, then the
-- departments' in the order of their names, by writing to them, and keeps them until it commits: so no two wait for each other,
-- and each adds to what the other has committed. A post and its author that come at once meet in the author's row. A post itself
-- has one builder at a time. The tables are locked in the order of this file, so that a builder that starts cannot deadlock
-- with one that applies.
--
-- The settings make each plan, once for the session, one probe of an index for each event. A plan that reads a whole table
-- wins while the table is small, and would be kept while the table grows.
create or replace function apply_activity(topics text[], keys bigint[], versions bigint[], entities jsonb[]) returns void
    language plpgsql
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
as $$
declare
    losers bigint[];
    firsts_gone timestamp[];
    lasts_gone timestamp[];
    updates_gone timestamp[];
    emptied tid[];
begin
    -- For this function alone; as an option of the function only a superuser could name it.
    perform set_config('view_builder.counts', 'on', true);
    lock table activity_post, activity, department_performance in row exclusive mode;

    with event as materialized (
        select topic, key, version, entity, (entity ->> 'updatedAt')::timestamptz at time zone 'UTC' as updated_at
        from unnest(topics, keys, versions, entities) as event(topic, key, version, entity)
    ),
    post as materialized (
        select event.key as post_id, event.version, event.updated_at,
            (event.entity ->> 'authorId')::bigint as author_id,
            (event.entity ->> 'createdAt')::timestamptz at time zone 'UTC' as created_at,
            known.author_id as author_before, known.created_at as created_before, known.updated_at as updated_before
        from event
        left join activity_post as known on known.post_id = event.key
        where event.topic = 'post-events'
            and (known.version is null
                or known.version < event.version
                or known.version = event.version and known.author_id is not null)
    ),
    written as (
        insert into activity_post (post_id, version, author_id, created_at, updated_at)
        select post_id, version, author_id, created_at, updated_at from post
        on conflict (post_id) do update set
            version = excluded.version,
            author_id = excluded.author_id,
            created_at = excluded.created_at,
            updated_at = excluded.updated_at
    ),
    change as materialized (
        select user_id, max(version) as version, max(department) as department, bool_or(active) as active,
            max(updated_at) as updated_at,
            sum(n)::bigint as posts,
            min(created_at) filter (where n > 0) as first_came,
            max(created_at) filter (where n > 0) as last_came,
            array_agg(post_id order by created_at, post_id) filter (where n > 0 and created_at is not null) as came,
            max(post_updated_at) filter (where n > 0) as update_came,
            min(created_at) filter (where n < 0) as first_gone,
            max(created_at) filter (where n < 0) as last_gone,
            max(post_updated_at) filter (where n < 0) as update_gone
        from (
            select key as user_id, version, entity ->> 'department' as department, entity ->> 'status' = 'ACTIVE' as active,
                updated_at, 0 as n, null::bigint as post_id, null::timestamp as created_at, null::timestamp as post_updated_at
            from event where topic = 'user-events'
            union all
            -- A post that stays where it was is neither a new first nor a new last one.
            select author_id, 0, null, null, null, 1, post_id,
                case when (author_id, created_at) is distinct from (author_before, created_before) then created_at end, updated_at
            from post where author_id is not null
            union all
            select author_before, 0, null, null, null, -1, post_id,
                case when (author_id, created_at) is distinct from (author_before, created_before) then created_before end,
                updated_before
            from post where author_before is not null
        ) as row_change
        group by user_id
    ),
    changed as (
        insert into activity as known (user_id, version, department, active, updated_at, posts,
            first_created_at, last_created_at, first_post_id, last_post_id, post_updated_at)
        select user_id, version, department, active, updated_at, posts,
            first_came, last_came, came[1], came[cardinality(came)], update_came
        from change
        order by user_id
        on conflict (user_id) do update set
            version = greatest(known.version, excluded.version),
            department = case
                when excluded.version > known.version or excluded.version = known.version and known.updated_at is not null
                then excluded.department else known.department end,
            active = case
                when excluded.version > known.version or excluded.version = known.version and known.updated_at is not null
                then excluded.active else known.active end,
            updated_at = case
                when excluded.version > known.version or excluded.version = known.version and known.updated_at is not null
                then excluded.updated_at else known.updated_at end,
            posts = known.posts + excluded.posts,
            first_created_at = least(known.first_created_at, excluded.first_created_at),
            last_created_at = greatest(known.last_created_at, excluded.last_created_at),
            first_post_id = case
                when excluded.first_post_id is null
                    or (known.first_created_at, known.first_post_id) < (excluded.first_created_at, excluded.first_post_id)
                then known.first_post_id else excluded.first_post_id end,
            last_post_id = case
                when excluded.last_post_id is null
                    or (known.last_created_at, known.last_post_id) > (excluded.last_created_at, excluded.last_post_id)
                then known.last_post_id else excluded.last_post_id end,
            post_updated_at = greatest(known.post_updated_at, excluded.post_updated_at),
            department_before = known.department,
            active_before = known.active,
            posts_before = known.posts
        where excluded.version > 0 and excluded.version >= known.version
            or excluded.posts <> 0
            or excluded.first_post_id is not null
            or excluded.post_updated_at > known.post_updated_at
        returning department, active, posts, department_before, active_before, posts_before
    ),
    counted as (
        insert into department_performance as known (department, users, active_users, authors, posts)
        select department, sum(n), coalesce(sum(n) filter (where active), 0), coalesce(sum(n) filter (where posts > 0), 0),
            sum(n * posts)
        from (
            select 1 as n, department, active, posts from changed where active is not null
            union all
            select -1, department_before, active_before, posts_before from changed where active_before is not null
        ) as row_change
        group by department
        having sum(n) <> 0 or sum(n * posts) <> 0
            or sum(n) filter (where active) <> 0 or sum(n) filter (where posts > 0) <> 0
        order by department
        on conflict (department) do update set
            users = known.users + excluded.users,
            active_users = known.active_users + excluded.active_users,
            authors = known.authors + excluded.authors,
            posts = known.posts + excluded.posts
        returning ctid, users
    )
    select array_agg(user_id), array_agg(first_gone), array_agg(last_gone), array_agg(update_gone),
        (select array_agg(ctid) from counted where users <= 0)
    into losers, firsts_gone, lasts_gone, updates_gone, emptied
    from change
    where first_gone is not null or update_gone > coalesce(update_came, '-infinity');

    -- New statements, which see what others had committed before they let go of these rows.
    if emptied is not null then
        delete from department_performance where ctid = any (emptied);
    end if;

    if losers is not null then
        update activity as known set
            first_created_at = earliest.created_at,
            last_created_at = latest.created_at,
            first_post_id = earliest.post_id,
            last_post_id = latest.post_id,
            post_updated_at = (select max(updated_at) from activity_post as post where post.author_id = known.user_id)
        from unnest(losers, firsts_gone, lasts_gone, updates_gone) as loser(user_id, first_gone, last_gone, update_gone)
        left join lateral (
            select created_at, post_id from activity_post as post
            where post.author_id = loser.user_id order by created_at, post_id limit 1
        ) as earliest on true
        left join lateral (
            select created_at, post_id from activity_post as post
            where post.author_id = loser.user_id order by created_at desc, post_id desc limit 1
        ) as latest on true
        where known.user_id = loser.user_id
            and (known.first_created_at >= loser.first_gone
                or known.last_created_at <= loser.last_gone
                or known.post_updated_at <= loser.update_gone);
    end if;
    perform set_config('view_builder.counts', 'off', true);
end
$$;

-- Counts everything that is derived anew, for whoever has edited a table by hand.
create or replace function recount_activity() returns trigger
    language plpgsql
    security definer
    set search_path from current
as $$
begin
    perform set_config('view_builder.counts', 'on', true);
    lock table activity_post, activity, department_performance in share row exclusive mode;
    update activity set posts = 0, first_created_at = null, last_created_at = null, first_post_id = null,
        last_post_id = null, post_updated_at = null;
    insert into activity (user_id, version, posts,
        first_created_at, last_created_at, first_post_id, last_post_id, post_updated_at)
    select author_id, 0, count(*), min(created_at), max(created_at),
        (array_agg(post_id order by created_at, post_id))[1], (array_agg(post_id order by created_at desc, post_id desc))[1],
        max(updated_at)
    from activity_post
    where author_id is not null
    group by author_id
    on conflict (user_id) do update set
        posts = excluded.posts,
        first_created_at = excluded.first_created_at,
        last_created_at = excluded.last_created_at,
        first_post_id = excluded.first_post_id,
        last_post_id = excluded.last_post_id,
        post_updated_at = excluded.post_updated_at;
    delete from department_performance;
    insert into department_performance (department, users, active_users, authors, posts)
    select department, count(*), count(*) filter (where active), count(*) filter (where posts > 0), sum(posts)
    from activity
    where active is not null
    group by department;
    perform set_config('view_builder.counts', 'off', true);
    return null;
end
$$;

-- The builder says by a setting that it counts itself.
create or replace trigger recount_activity after insert or update or delete or truncate on activity_post
    for each statement when (current_setting('view_builder.counts', true) is distinct from 'on')
    execute function recount_activity();
create or replace trigger recount_activity after insert or update or delete or truncate on activity
    for each statement when (current_setting('view_builder.counts', true) is distinct from 'on')
    execute function recount_activity();
create or replace trigger recount_activity after insert or update or delete or truncate on department_performance
    for each statement when (current_setting('view_builder.counts', true) is distinct from 'on')
    execute function recount_activity();
