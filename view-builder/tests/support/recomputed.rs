//! The views of users and posts in plain SQL. The end-to-end tests use this file as well.

/// Each view's name and the query that computes it from the tables `reference_user` and `reference_post`.
pub(crate) const VIEWS: [(&str, &str, &str); 3] = [
    (
        "post_stats",
        "author_id, posts, first_post_at, last_post_at, first_post_id, last_post_id",
        "select author_id, count(*), min(created_at), max(created_at),
            (array_agg(id order by created_at, id))[1], (array_agg(id order by created_at desc, id desc))[1]
         from reference_post group by author_id",
    ),
    (
        "user_activity",
        "user_id, changes, posts, last_active",
        "select u.id, u.version, count(p.id), greatest(max(u.updated_at), max(p.updated_at))
         from reference_user as u left join reference_post as p on p.author_id = u.id group by u.id, u.version",
    ),
    (
        "department_performance",
        "department, active_users, authors, posts, posts_per_user, users",
        "select department, count(*) filter (where status = 'ACTIVE'), count(*) filter (where posts > 0), sum(posts)::bigint,
            sum(posts)::numeric / count(*), count(*)
         from (
            select u.department, u.status, (select count(*) from reference_post as p where p.author_id = u.id) as posts
            from reference_user as u
         ) as counted
         group by department",
    ),
];
