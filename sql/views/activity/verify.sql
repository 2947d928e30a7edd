-- What `view-builder verify` compares: the latest events with users and posts, and what is derived with a recomputation.
-- Users live in users_db, posts beside the views. A deleted post or user keeps a version alone and is left out.

-- source: user-events
select department, id, version, row(status = 'ACTIVE', updated_at)::text
from users;

-- view: activity
select department, user_id, version, row(active, updated_at)::text
from activity
where updated_at is not null;

-- source: post-events
select (author_id % 64)::text, id, version, row(author_id, created_at, updated_at)::text
from posts;

-- view: activity_post
select (author_id % 64)::text, post_id, version, row(author_id, created_at, updated_at)::text
from activity_post
where author_id is not null;

-- source: views
select (author_id % 64)::text, author_id, 0::bigint,
    row(count(*), min(created_at), max(created_at),
        (array_agg(post_id order by created_at, post_id))[1], (array_agg(post_id order by created_at desc, post_id desc))[1])::text
from activity_post
where author_id is not null
group by author_id;

-- view: post_stats
select (author_id % 64)::text, author_id, 0::bigint,
    row(posts, first_post_at, last_post_at, first_post_id, last_post_id)::text
from post_stats;

-- source: views
select (user_id % 64)::text, user_id, activity.version,
    row(count(post_id), greatest(activity.updated_at, max(post.updated_at)), activity.updated_at, max(post.updated_at))::text
from activity
left join activity_post as post on post.author_id = activity.user_id
where activity.updated_at is not null
group by user_id;

-- view: user_activity
select (user_id % 64)::text, user_id, changes, row(posts, last_active, updated_at, last_post_at)::text
from user_activity;

-- One row a department: the department's hash stands for a number.

-- source: views
select department, coalesce(hashtextextended(department, 0), 0), 0::bigint,
    row(count(*), count(*) filter (where active), count(*) filter (where written > 0), sum(written)::bigint)::text
from (
    select department, active, count(post_id) as written
    from activity
    left join activity_post as post on post.author_id = activity.user_id
    where activity.updated_at is not null
    group by user_id
) as counted
group by department;

-- view: department_performance
select department, coalesce(hashtextextended(department, 0), 0), 0::bigint,
    row(users, active_users, authors, posts)::text
from department_performance;
