-- What user_activity must hold, computed from reference_user and reference_post.
select u.id as user_id, u.version as changes, count(p.id) as posts, greatest(max(u.updated_at), max(p.updated_at)) as last_active
from reference_user as u left join reference_post as p on p.author_id = u.id
group by u.id, u.version
