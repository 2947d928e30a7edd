-- How many posts each author has, and which are the first and the last.
--
-- Run at each start of the view-builder, so every statement may run again.
-- Columns, their order and their types are what people query with psql: further columns go to the end.
--
-- Tables, indexes and triggers are made in the order in which a batch locks the tables, so that a builder that starts cannot
-- deadlock with one that applies.
--
-- post_stats_post keeps the latest event of each post; post_stats follows it by triggers. An event older than the post's
-- row changes nothing; one of the row's own version is applied again. So a replay brings back posts that were deleted by
-- hand, and counts an author anew whose row in post_stats is missing: to mend an edited row, delete it and replay.

-- Every post's latest event. A deleted post keeps its version alone, so that no older event brings it back.
create table if not exists post_stats_post (
    post_id    bigint    primary key,
    version    bigint    not null,
    -- Null: the post was deleted.
    author_id  bigint,
    created_at timestamp
);

-- Finds an author's first and last post in one probe each, and counts the posts of an author without statistics.
create index if not exists idx_post_stats_post_author on post_stats_post (author_id, created_at, post_id)
    where author_id is not null;

-- One row for each author with at least one post, also where no such user is known or the user was deleted.
create table if not exists post_stats (
    author_id     bigint    primary key,
    -- Posts that exist now.
    posts         bigint    not null,
    -- When the author's first and last existing posts were created: local date-time in UTC. Of two that were created at
    -- the same time the one with the lower id is the first.
    first_post_at timestamp not null,
    last_post_at  timestamp not null,
    first_post_id bigint    not null,
    last_post_id  bigint    not null
);

-- Who writes most.
create index if not exists idx_post_stats_posts on post_stats (posts);

-- Adds to each author's posts what one statement has changed. An author without a row is counted anew, so the posts must
-- be as this one statement left them: one that inserts and updates (`on conflict do update`) would count its second half twice.
create or replace function count_post_stats(authors bigint[], differences bigint[]) returns void
    language plpgsql
as $$
begin
    delete from post_stats
    using unnest(authors, differences) as change(author_id, difference)
    where post_stats.author_id = change.author_id
        and change.difference < 0
        and not exists (select from post_stats_post as post where post.author_id = change.author_id);

    update post_stats as stats set
        posts = stats.posts + change.difference,
        first_post_at = earliest.created_at,
        last_post_at = latest.created_at,
        first_post_id = earliest.post_id,
        last_post_id = latest.post_id
    from unnest(authors, differences) as change(author_id, difference)
    cross join lateral (
        select created_at, post_id from post_stats_post as post
        where post.author_id = change.author_id order by created_at, post_id limit 1
    ) as earliest
    cross join lateral (
        select created_at, post_id from post_stats_post as post
        where post.author_id = change.author_id order by created_at desc, post_id desc limit 1
    ) as latest
    where stats.author_id = change.author_id
        and (change.difference, stats.first_post_at, stats.last_post_at, stats.first_post_id, stats.last_post_id)
            is distinct from (0, earliest.created_at, latest.created_at, earliest.post_id, latest.post_id);

    -- Materialized, so that only their posts are counted.
    with missing as materialized (
        select author_id
        from unnest(authors) as touched(author_id)
        where not exists (select from post_stats as stats where stats.author_id = touched.author_id)
    )
    insert into post_stats (author_id, posts, first_post_at, last_post_at, first_post_id, last_post_id)
    select author_id, counted.posts, counted.created_at[1], counted.created_at[counted.posts],
        counted.post_id[1], counted.post_id[counted.posts]
    from missing
    cross join lateral (
        select count(*) as posts,
            array_agg(created_at order by created_at, post_id) as created_at,
            array_agg(post_id order by created_at, post_id) as post_id
        from post_stats_post as post
        where post.author_id = missing.author_id
    ) as counted
    where counted.posts > 0;
end
$$;

-- Keeps post_stats after each statement on post_stats_post: the cost is the statement's, not the table's.
--
-- Writers take their turn by one lock until they commit, since authors are shared by all partitions: a statement's rows
-- could be locked crosswise with another's, and the first post that is left must be looked for in what the writer before
-- has committed. Readers never wait.
create or replace function keep_post_stats() returns trigger
    language plpgsql
    security definer
    set search_path from current
as $$
declare
    authors bigint[];
    differences bigint[];
begin
    if tg_op = 'TRUNCATE' then
        perform lock_post_stats();
        delete from post_stats;
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
    if authors is not null then
        perform lock_post_stats();
        perform count_post_stats(authors, differences);
    end if;
    return null;
end
$$;

-- Holds every other writer of post_stats until this transaction ends.
create or replace function lock_post_stats() returns void
    language sql
as $$
    select pg_advisory_xact_lock('pg_class'::regclass::oid::integer, 'post_stats'::regclass::oid::integer)
$$;

-- Applies a batch: one event of each post; author and moment of creation are null in a deletion.
--
-- The settings make each plan one probe of an index for each event. A plan that reads a whole table wins while the table is
-- small, and the session would keep it while the table grows.
create or replace function apply_post_stats(
    posts bigint[], versions bigint[], authors bigint[], moments timestamp[]
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
    update post_stats_post as post set
        version = event.version,
        author_id = event.author_id,
        created_at = event.created_at
    from unnest(posts, versions, authors, moments) as event(post_id, version, author_id, created_at)
    where post.post_id = event.post_id
        and (post.version < event.version
            or post.version = event.version and (post.author_id is not null or event.author_id is null));

    insert into post_stats_post (post_id, version, author_id, created_at)
    select post_id, version, author_id, created_at
    from unnest(posts, versions, authors, moments) as event(post_id, version, author_id, created_at)
    where not exists (select from post_stats_post as post where post.post_id = event.post_id);
end
$$;

create or replace trigger post_stats_inserted after insert on post_stats_post
    referencing new table as added
    for each statement execute function keep_post_stats();
create or replace trigger post_stats_updated after update on post_stats_post
    referencing old table as removed new table as added
    for each statement execute function keep_post_stats();
create or replace trigger post_stats_deleted after delete on post_stats_post
    referencing old table as removed
    for each statement execute function keep_post_stats();
create or replace trigger post_stats_truncated after truncate on post_stats_post
    for each statement execute function keep_post_stats();
