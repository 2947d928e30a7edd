-- What department_performance must hold, computed from reference_user and reference_post.
select department, count(*) filter (where status = 'ACTIVE') as active_users, count(*) filter (where posts > 0) as authors,
    sum(posts)::bigint as posts, sum(posts)::numeric / count(*) as posts_per_user, count(*) as users
from (
    select u.department, u.status, (select count(*) from reference_post as p where p.author_id = u.id) as posts
    from reference_user as u
) as counted
group by department
