-- What post_stats must hold, computed from reference_post: the latest state of each post that exists.
select author_id, count(*) as posts, min(created_at) as first_post_at, max(created_at) as last_post_at,
    (array_agg(id order by created_at, id))[1] as first_post_id,
    (array_agg(id order by created_at desc, id desc))[1] as last_post_id
from reference_post
group by author_id
