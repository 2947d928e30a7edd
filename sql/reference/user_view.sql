-- What user_view must hold, computed from reference_user: the latest state of each user that exists.
select id as user_id, name, email, department, status, created_at, updated_at, version
from reference_user
