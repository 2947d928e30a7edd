-- What `view-builder verify` compares: user_view with users, and department_stats with what user_view's rows count up to.
-- Users live in users_db. last_processed_at is the view's own and is left out; date-times are UTC on both sides.

-- source: user-events
select department, id, version, row(name, email, status, created_at, updated_at)::text
from users;

-- view: user_view
select department, user_id, version, row(name, email, status, created_at, updated_at)::text
from user_view;

-- One row a department: the department's hash stands for a number.

-- source: views
select department, coalesce(hashtextextended(department, 0), 0), 0::bigint,
    row(count(*), count(*) filter (where status = 'ACTIVE'), count(*) filter (where status = 'INACTIVE'), max(last_processed_at))::text
from user_view
group by department;

-- view: department_stats
select department, coalesce(hashtextextended(department, 0), 0), 0::bigint,
    row(user_count, active_users, inactive_users, last_updated)::text
from department_stats;
