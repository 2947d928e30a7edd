-- How often each user changed, how many posts the user has, and when the user was last active.
--
-- Run at each start of the view-builder, so every statement may run again.
-- Columns, their order and their types are what people query with psql: further columns go to the end.
--
-- Tables, indexes and triggers are made in the order in which a batch locks the tables, so that a builder that starts cannot
-- deadlock with one that applies.
--
-- Posts of a user who is not known, yet or any more, wait in user_activity_post and are counted when the user comes. An event
-- older than what the view has of its key changes nothing; one of the same version is applied again. So a replay brings back
-- rows that were deleted by hand, with their posts counted anew: to mend an edited row, delete it and replay.

-- Every post's latest event. A deleted post keeps its version alone, so that no older event brings it back.
create table if not exists user_activity_post (
    post_id    bigint    primary key,
    version    bigint    not null,
    -- Null: the post was deleted.
    author_id  bigint,
    updated_at timestamp
);

-- Finds an author's newest post in one probe, and counts the posts of a user who comes after them.
create index if not exists idx_user_activity_post_author on user_activity_post (author_id, updated_at)
    where author_id is not null;

-- One row for each user who exists.
create table if not exists user_activity (
    user_id      bigint    primary key,
    -- Changes of the user itself, its creation among them: the version.
    changes      bigint    not null,
    -- The user's posts that exist now.
    posts        bigint    not null,
    -- The newest change of the user or of one of the user's existing posts: local date-time in UTC.
    last_active  timestamp not null generated always as (greatest(updated_at, last_post_at)) stored,
    -- The newest change of the user itself.
    updated_at   timestamp not null,
    -- The newest change of one of the user's existing posts; null without posts.
    last_post_at timestamp
);

-- Who was active lately, and who was not.
create index if not exists idx_user_activity_last_active on user_activity (last_active);

-- Which version deleted a user, so that no older event brings the user back.
create table if not exists user_activity_deleted (
    user_id bigint primary key,
    version bigint not null
);

-- Lets either users' events or posts' events in, until the transaction ends: a post and its author that came at once, by two
-- builders, would each not see the other. Builders that apply only users go on side by side, as they never touch the
-- same row; those with posts take turns, as they share the authors. Readers never wait.
create or replace function lock_user_activity(with_posts boolean) returns void
    language plpgsql
as $$
declare
    class constant integer := 'pg_class'::regclass::oid::integer;
    view constant integer := 'user_activity'::regclass::oid::integer;
begin
    -- The stronger lock at once: two builders that hold the weaker one and ask for more would wait for each other.
    if with_posts then
        perform pg_advisory_xact_lock(class, view);
    else
        perform pg_advisory_xact_lock_shared(class, view);
    end if;
end
$$;

-- Keeps user_activity after each statement on user_activity_post: the cost is the statement's, not the table's.
create or replace function keep_user_activity() returns trigger
    language plpgsql
    security definer
    set search_path from current
as $$
declare
    authors bigint[];
    differences bigint[];
begin
    perform lock_user_activity(true);
    if tg_op = 'TRUNCATE' then
        update user_activity set posts = 0, last_post_at = null where posts > 0;
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
        ) as change;
    end if;
    update user_activity as activity set
        posts = activity.posts + change.difference,
        last_post_at = newest.updated_at
    from unnest(authors, differences) as change(author_id, difference)
    cross join lateral (
        select max(updated_at) as updated_at from user_activity_post as post where post.author_id = change.author_id
    ) as newest
    where activity.user_id = change.author_id
        and (change.difference <> 0 or activity.last_post_at is distinct from newest.updated_at);
    return null;
end
$$;

-- Applies a batch: one event of each user and post; its author and its moment are null in a deletion, and the arrays are null
-- where there is none of the kind. Posts first, so that they are there when their users are new.
--
-- The settings make each plan one probe of an index for each event. A plan that reads a whole table wins while the table is
-- small, and the session would keep it while the table grows.
create or replace function apply_user_activity(
    posts bigint[], post_versions bigint[], authors bigint[], post_moments timestamp[],
    users bigint[], user_versions bigint[], user_moments timestamp[]
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
    perform lock_user_activity(posts is not null);

    if posts is not null then
        insert into user_activity_post as post (post_id, version, author_id, updated_at)
        select * from unnest(posts, post_versions, authors, post_moments)
        on conflict (post_id) do update set
            version = excluded.version,
            author_id = excluded.author_id,
            updated_at = excluded.updated_at
        where post.version < excluded.version
            or post.version = excluded.version and (post.author_id is not null or excluded.author_id is null);
    end if;

    if users is not null then
        delete from user_activity as activity
        using unnest(users, user_versions, user_moments) as event(user_id, version, updated_at)
        where event.updated_at is null
            and activity.user_id = event.user_id and activity.changes <= event.version;

        insert into user_activity_deleted as deleted (user_id, version)
        select user_id, version
        from unnest(users, user_versions, user_moments) as event(user_id, version, updated_at)
        where event.updated_at is null
            and not exists (select from user_activity as activity where activity.user_id = event.user_id)
        on conflict (user_id) do update set version = excluded.version
        where deleted.version < excluded.version;

        update user_activity as activity set
            changes = event.version,
            updated_at = event.updated_at
        from unnest(users, user_versions, user_moments) as event(user_id, version, updated_at)
        where event.updated_at is not null
            and activity.user_id = event.user_id and activity.changes <= event.version;

        -- Materialized, so that only the posts of new users are counted.
        with new_user as materialized (
            select user_id, version, updated_at
            from unnest(users, user_versions, user_moments) as event(user_id, version, updated_at)
            where event.updated_at is not null
                and not exists (select from user_activity as activity where activity.user_id = event.user_id)
                and not exists (
                    select from user_activity_deleted as deleted
                    where deleted.user_id = event.user_id and deleted.version >= event.version
                )
        )
        insert into user_activity (user_id, changes, posts, updated_at, last_post_at)
        select user_id, version, written.posts, new_user.updated_at, written.updated_at
        from new_user
        cross join lateral (
            select count(*) as posts, max(updated_at) as updated_at
            from user_activity_post as post
            where post.author_id = new_user.user_id
        ) as written;
    end if;
end
$$;

create or replace trigger user_activity_inserted after insert on user_activity_post
    referencing new table as added
    for each statement execute function keep_user_activity();
create or replace trigger user_activity_updated after update on user_activity_post
    referencing old table as removed new table as added
    for each statement execute function keep_user_activity();
create or replace trigger user_activity_deleted after delete on user_activity_post
    referencing old table as removed
    for each statement execute function keep_user_activity();
create or replace trigger user_activity_truncated after truncate on user_activity_post
    for each statement execute function keep_user_activity();
