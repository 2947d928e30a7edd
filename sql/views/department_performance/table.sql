-- How many active users, authors and posts each department has, and how many posts for each of its users.
--
-- Run at each start of the view-builder, so every statement may run again.
-- Columns, their order and their types are what people query with psql: further columns go to the end.
--
-- Tables, indexes and triggers are made in the order in which a batch locks the tables, so that a builder that starts cannot
-- deadlock with one that applies.
--
-- Three steps, each kept by the triggers of the one before: posts, users with their number of posts, departments. A post counts
-- for the department in which its author is now, and for none while its author is not known. An event older than
-- what the view has of its key changes nothing; one of the same version is applied again. So a replay brings back rows that
-- were deleted by hand, counted anew, also a department's: to mend an edited row, delete it and replay.

-- Every post's latest event. A deleted post keeps its version alone, so that no older event brings it back.
create table if not exists department_performance_post (
    post_id   bigint primary key,
    version   bigint not null,
    -- Null: the post was deleted.
    author_id bigint
);

-- Counts the posts of a user who comes after them.
create index if not exists idx_department_performance_post_author on department_performance_post (author_id)
    where author_id is not null;

-- Every user's latest event. A deleted user keeps version and posts alone, so that no older event brings the user back.
create table if not exists department_performance_user (
    user_id    bigint  primary key,
    version    bigint  not null,
    department varchar(255),
    -- Null: the user was deleted.
    active     boolean,
    -- The user's posts that exist now.
    posts      bigint  not null
);

-- Counts a department that has no row.
create index if not exists idx_department_performance_user_department on department_performance_user (department)
    where active is not null;

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

-- Lets either users' events or posts' events in, until the transaction ends: a post and its author that came at once, by two
-- builders, would each not see the other. Builders that apply only users go on side by side until they reach the
-- departments; those with posts take turns, as they share the authors. Readers never wait.
create or replace function lock_department_performance_user(with_posts boolean) returns void
    language plpgsql
as $$
declare
    class constant integer := 'pg_class'::regclass::oid::integer;
    users constant integer := 'department_performance_user'::regclass::oid::integer;
begin
    -- The stronger lock at once: two builders that hold the weaker one and ask for more would wait for each other.
    if with_posts then
        perform pg_advisory_xact_lock(class, users);
    else
        perform pg_advisory_xact_lock_shared(class, users);
    end if;
end
$$;

-- Holds every other writer of department_performance until this transaction ends; always taken after the lock above.
create or replace function lock_department_performance() returns void
    language sql
as $$
    select pg_advisory_xact_lock('pg_class'::regclass::oid::integer, 'department_performance'::regclass::oid::integer)
$$;

-- Adds one statement's change of a department. A department without a row is counted anew, so the users must be as this one
-- statement left them: one that inserts and updates (`on conflict do update`) would count its second half twice.
create or replace function count_department_performance(
    department_changed varchar, users_more bigint, active_more bigint, authors_more bigint, posts_more bigint
) returns void
    language plpgsql
as $$
declare
    place tid;
begin
    -- An index finds a null by `is null` and a text by `=`, and both by neither.
    if department_changed is null then
        select ctid into place from department_performance where department is null;
    else
        select ctid into place from department_performance where department = department_changed;
    end if;
    if place is not null then
        if (users_more, active_more, authors_more, posts_more) <> (0, 0, 0, 0) then
            update department_performance set
                users = users + users_more,
                active_users = active_users + active_more,
                authors = authors + authors_more,
                posts = posts + posts_more
            where ctid = place
            returning ctid into place;
            delete from department_performance where ctid = place and users <= 0;
        end if;
    elsif department_changed is null then
        insert into department_performance (department, users, active_users, authors, posts)
        select null, count(*), count(*) filter (where active), count(*) filter (where posts > 0), sum(posts)
        from department_performance_user
        where department is null and active is not null
        having count(*) > 0;
    else
        insert into department_performance (department, users, active_users, authors, posts)
        select department_changed, count(*), count(*) filter (where active), count(*) filter (where posts > 0), sum(posts)
        from department_performance_user
        where department = department_changed and active is not null
        having count(*) > 0;
    end if;
end
$$;

-- Keeps department_performance after each statement on department_performance_user: the cost is the statement's, not the
-- table's. Writers take their turn until they commit, as user_view's do for department_stats, and for the same reason.
create or replace function keep_department_performance() returns trigger
    language plpgsql
    security definer
    set search_path from current
as $$
begin
    if tg_op = 'TRUNCATE' then
        perform lock_department_performance();
        delete from department_performance;
    elsif tg_op = 'INSERT' then
        if exists (select from added) then
            perform lock_department_performance();
            perform count_department_performance(
                change.department, change.users, change.active, change.authors, change.posts)
            from (
                select department, count(*) as users, count(*) filter (where active) as active,
                    count(*) filter (where posts > 0) as authors, sum(posts)::bigint as posts
                from added where active is not null group by department
            ) as change;
        end if;
    elsif tg_op = 'DELETE' then
        if exists (select from removed) then
            perform lock_department_performance();
            perform count_department_performance(
                change.department, -change.users, -change.active, -change.authors, -change.posts)
            from (
                select department, count(*) as users, count(*) filter (where active) as active,
                    count(*) filter (where posts > 0) as authors, sum(posts)::bigint as posts
                from removed where active is not null group by department
            ) as change;
        end if;
    elsif exists (select from added) then
        perform lock_department_performance();
        perform count_department_performance(
            change.department, change.users, change.active, change.authors, change.posts)
        from (
            select department, sum(n)::bigint as users,
                coalesce(sum(n) filter (where active), 0)::bigint as active,
                coalesce(sum(n) filter (where posts > 0), 0)::bigint as authors,
                sum(n * posts)::bigint as posts
            from (
                select 1 as n, department, active, posts from added
                union all
                select -1, department, active, posts from removed
            ) as row_change
            where active is not null
            group by department
        ) as change;
    end if;
    return null;
end
$$;

-- Keeps each user's number of posts after each statement on department_performance_post.
create or replace function keep_department_performance_posts() returns trigger
    language plpgsql
    security definer
    set search_path from current
as $$
declare
    authors bigint[];
    differences bigint[];
begin
    perform lock_department_performance_user(true);
    if tg_op = 'TRUNCATE' then
        update department_performance_user set posts = 0 where posts > 0;
        return null;
    elsif tg_op = 'INSERT' then
        select array_agg(author_id), array_agg(difference) into authors, differences
        from (
            select author_id, count(*) as difference from added where author_id is not null group by author_id
        ) as change;
    elsif tg_op = 'DELETE' then
        select array_agg(author_id), array_agg(difference) into authors, differences
        from (
            select author_id, -count(*) as difference from removed where author_id is not null group by author_id
        ) as change;
    else
        select array_agg(author_id), array_agg(difference) into authors, differences
        from (
            select author_id, sum(n)::bigint as difference
            from (select 1 as n, author_id from added union all select -1, author_id from removed) as row_change
            where author_id is not null
            group by author_id
            having sum(n) <> 0
        ) as change;
    end if;
    update department_performance_user as author set posts = author.posts + change.difference
    from unnest(authors, differences) as change(author_id, difference)
    where author.user_id = change.author_id;
    return null;
end
$$;

-- Applies a batch: one event of each user and post; a deleted post's author and a deleted user's `active` are null, and the arrays
-- are null where there is none of the kind. Posts first, so that they are there when their users are new.
--
-- The settings make each plan one probe of an index for each event. A plan that reads a whole table wins while the table is
-- small, and the session would keep it while the table grows.
create or replace function apply_department_performance(
    posts bigint[], post_versions bigint[], authors bigint[],
    users bigint[], user_versions bigint[], departments varchar[], actives boolean[]
) returns void
    language plpgsql
    set search_path from current
    set plan_cache_mode = force_custom_plan
    set enable_seqscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set jit = off
as $$
begin
    perform lock_department_performance_user(posts is not null);

    if posts is not null then
        insert into department_performance_post as post (post_id, version, author_id)
        select * from unnest(posts, post_versions, authors)
        on conflict (post_id) do update set
            version = excluded.version,
            author_id = excluded.author_id
        where post.version < excluded.version
            or post.version = excluded.version and (post.author_id is not null or excluded.author_id is null);
    end if;

    if users is not null then
        update department_performance_user as known set
            version = event.version,
            department = event.department,
            active = event.active
        from unnest(users, user_versions, departments, actives) as event(user_id, version, department, active)
        where known.user_id = event.user_id
            and (known.version < event.version
                or known.version = event.version and (known.active is not null or event.active is null));

        -- Materialized, so that only the posts of new users are counted.
        with new_user as materialized (
            select user_id, version, department, active
            from unnest(users, user_versions, departments, actives) as event(user_id, version, department, active)
            where not exists (select from department_performance_user as known where known.user_id = event.user_id)
        )
        insert into department_performance_user (user_id, version, department, active, posts)
        select user_id, version, department, active, written.posts
        from new_user
        cross join lateral (
            select count(*) as posts
            from department_performance_post as post
            where post.author_id = new_user.user_id
        ) as written;
    end if;
end
$$;

create or replace trigger department_performance_post_inserted after insert on department_performance_post
    referencing new table as added
    for each statement execute function keep_department_performance_posts();
create or replace trigger department_performance_post_updated after update on department_performance_post
    referencing old table as removed new table as added
    for each statement execute function keep_department_performance_posts();
create or replace trigger department_performance_post_deleted after delete on department_performance_post
    referencing old table as removed
    for each statement execute function keep_department_performance_posts();
create or replace trigger department_performance_post_truncated after truncate on department_performance_post
    for each statement execute function keep_department_performance_posts();

create or replace trigger department_performance_inserted after insert on department_performance_user
    referencing new table as added
    for each statement execute function keep_department_performance();
create or replace trigger department_performance_updated after update on department_performance_user
    referencing old table as removed new table as added
    for each statement execute function keep_department_performance();
create or replace trigger department_performance_deleted after delete on department_performance_user
    referencing old table as removed
    for each statement execute function keep_department_performance();
create or replace trigger department_performance_truncated after truncate on department_performance_user
    for each statement execute function keep_department_performance();
