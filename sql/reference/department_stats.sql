-- What department_stats must hold, computed from reference_user; the time of the last event is the view's own.
select u.department, count(*) as user_count,
    count(*) filter (where u.status = 'ACTIVE') as active_users,
    count(*) filter (where u.status = 'INACTIVE') as inactive_users,
    max(v.last_processed_at) as last_updated
from reference_user as u join user_view as v on v.user_id = u.id
group by u.department
