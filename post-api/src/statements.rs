//! The SQL of posts and of the views.
//!
//! A change of a post can only be written by `change!`, which writes its event in the same statement: one transaction, one round trip, and no change
//! without its event. The event's version is the row's own. An update holds the row's lock until it has committed, so that a post's events commit,
//! and thus are published, in the order of their versions.
//!
//! JSON texts are made by the database, in the order of the answer's fields. Each statement finds the views by their names when it runs. So
//! view-builder may swap in a rebuilt view at any time.
//!
//! A read may ask for versions of users. The statement that reads its answer also finds out whether the view has these versions, so both come from
//! the same snapshot: see `behind!`.

/// The answer's post, from a row `p` and its author `a`.
macro_rules! post {
    () => {
        "(select row_to_json(answer)::text from (select p.id, p.title, p.content, p.author_id as \"authorId\", \
            a.name as \"authorName\", a.email as \"authorEmail\", a.department as \"authorDepartment\", \
            p.created_at as \"createdAt\", p.updated_at as \"updatedAt\", p.version) as answer)"
    };
}

/// The answer's user, from a row `u` of `user_view`.
macro_rules! user {
    () => {
        "(select row_to_json(answer)::text from (select u.user_id as \"userId\", u.name, u.email, u.department, \
            u.status, u.created_at as \"createdAt\", u.updated_at as \"updatedAt\", u.version, \
            u.last_processed_at as \"lastProcessedAt\") as answer)"
    };
}

/// A change of one post with its event. Returns `id`, `version`, `author_version` (0 if the view does not have the author) and `body`, which is a
/// JSON text, or no row if there is no such post. `$change` writes the row and returns it as the event shows it. `$event_id` is the parameter that
/// has the event's id.
macro_rules! change {
    ($event_type:literal, $event_id:literal, $post:literal, $change:literal) => {
        rest::change_with_event!(
            row: "p",
            change: $change,
            aggregate: "post",
            event_id: $event_id,
            event_type: $event_type,
            state: $post,
            answer: "select p.id, p.version, coalesce(a.version, 0) as author_version, ", post!(),
                " as body from p left join user_view as a on a.user_id = p.author_id",
        )
    };
}

/// The CTE `behind`: which of the users in `$asked` (`user_id`, `version`; version 0 asks for nothing) the view does not have at
/// that version yet. A user whose deletion the view has seen is at the deletion's version.
macro_rules! behind {
    ($asked:literal) => {
        concat!(
            "with behind as (
                select asked.user_id, asked.version, view.version as view_version
                from (",
            $asked,
            ") as asked(user_id, version)
                cross join lateral (select greatest(
                    (select u.version from user_view as u where u.user_id = asked.user_id),
                    (select d.version from user_view_deleted as d where d.user_id = asked.user_id)
                ) as version) as view
                where asked.version > 0 and coalesce(view.version, 0) < asked.version
            ) "
        )
    };
}

/// The answer's column `behind`: null if the view has all that is asked for, else the users that are behind, as JSON text.
macro_rules! behind_column {
    () => {
        "(select json_agg(json_build_object('userId', user_id, 'minVersion', version, 'viewVersion', view_version)
            order by user_id)::text from behind) as behind"
    };
}

/// Returns items of a list as one `rest::listing::Batch`, and `behind`. There are no items if any user is behind. $1 ids of users, $2 the least
/// version of each, $3 to $7 a `rest::listing::Part`. `$candidates` selects `key` and `bytes`, in order of the key. `$rows` selects `body` and `key`
/// of the candidates in `chosen`.
macro_rules! batch {
    ($candidates:literal, $($rows:expr),+) => {
        concat!(
            behind!("select * from unnest($1::bigint[], $2::bigint[])"),
            ", candidates as materialized (",
            $candidates,
            "), chosen as (
                select key from (
                    select key, sum(bytes) over (order by key) as bytes, row_number() over (order by key) as number from candidates
                ) as sized where bytes <= $6 or number <= $7
            ) select string_agg(body, ',' order by key) as items, max(key) as last_key, count(*) as count,
                (select count(*) from candidates) as candidates, (select max(key) from candidates) as last_candidate, ",
            behind_column!(),
            " from (",
            $($rows),+,
            ") as batch where not exists (select from behind)"
        )
    };
}

/// $1 title, $2 content, $3 author's id, $4 the event's id.
pub(crate) const CREATE: &str = change!(
    "POST_CREATED",
    "$4",
    "jsonb_build_object('id', p.id, 'title', p.title, 'content', p.content, 'authorId', p.author_id,
        'createdAt', p.created_at, 'updatedAt', p.updated_at)",
    "insert into posts (title, content, author_id)
        values ($1, $2, $3)
        returning id, title, content, author_id, created_at, updated_at, version"
);

/// $1 title, $2 content, $3 author's id, $4 id, $5 versions of which the row must have one, or null,
/// $6 the event's id.
///
/// If an update had to wait for another update of the same post, it compares with the version that the other one has written.
pub(crate) const UPDATE: &str = change!(
    "POST_UPDATED",
    "$6",
    "jsonb_build_object('id', p.id, 'title', p.title, 'content', p.content, 'authorId', p.author_id,
        'createdAt', p.created_at, 'updatedAt', p.updated_at)",
    "update posts
        set title = $1, content = $2, author_id = $3,
            updated_at = clock_timestamp() at time zone 'utc', version = version + 1
        where id = $4 and ($5::bigint[] is null or version = any($5))
        returning id, title, content, author_id, created_at, updated_at, version"
);

/// $1 id, $2 versions as in [`UPDATE`], $3 the event's id. The event carries no post. Its version is the next one after the post's last.
pub(crate) const DELETE: &str = change!(
    "POST_DELETED",
    "$3",
    "null",
    "delete from posts
        where id = $1 and ($2::bigint[] is null or version = any($2))
        returning id, title, content, author_id, created_at, updated_at, version + 1 as version"
);

/// $1 the id of an event. Returns the row that the change which wrote this event would have returned, and no row if the change was not made.
pub(crate) const ANSWER_OF: &str = concat!(
    "select (o.payload ->> 'postId')::bigint as id, p.version, coalesce(a.version, 0) as author_version, ",
    post!(),
    " as body from outbox as o left join lateral (select * from jsonb_to_record(nullif(o.payload -> 'post', 'null'))
            as told(id bigint, title text, content text, \"authorId\" bigint, \"createdAt\" timestamp, \"updatedAt\" timestamp)
        ) as told on true
        cross join lateral (select told.id, told.title, told.content, told.\"authorId\" as author_id,
            told.\"createdAt\" as created_at, told.\"updatedAt\" as updated_at, (o.payload ->> 'version')::bigint as version) as p
        left join user_view as a on a.user_id = p.author_id
    where o.id = $1"
);

/// $1 id, $2 the author's least version, $3 the most bytes that the post's content may have. Returns `id`, `version`, `author_version`, `body`,
/// `behind`. `body` is null if the author is behind, or if the content is longer.
pub(crate) const READ: &str = concat!(
    behind!("select author_id, $2::bigint from posts where id = $1"),
    "select p.id, p.version, coalesce(a.version, 0) as author_version,
        case when octet_length(p.content) <= $3 and not exists (select from behind) then ",
    post!(),
    " end as body, ",
    behind_column!(),
    " from posts as p left join user_view as a on a.user_id = p.author_id where p.id = $1"
);

pub(crate) const LIST: &str = batch!(
    "select id as key, octet_length(content) + octet_length(title) + 400 as bytes from posts
        where id > $3 and id <= $4 order by id limit $5",
    "select p.id as key, ",
    post!(),
    " as body from chosen join posts as p on p.id = chosen.key left join user_view as a on a.user_id = p.author_id"
);

/// Posts whose author is in the department $8, as the view has it.
pub(crate) const LIST_BY_DEPARTMENT: &str = batch!(
    "select p.id as key, octet_length(p.content) + octet_length(p.title) + 400 as bytes
        from posts as p join user_view as a on a.user_id = p.author_id
        where p.id > $3 and p.id <= $4 and a.department = $8 order by p.id limit $5",
    "select p.id as key, ",
    post!(),
    " as body from chosen join posts as p on p.id = chosen.key join user_view as a on a.user_id = p.author_id"
);

pub(crate) const LIST_USERS: &str = batch!(
    "select user_id as key, octet_length(name) + octet_length(email) + octet_length(coalesce(department, '')) + 250 as bytes
        from user_view where user_id > $3 and user_id <= $4 order by user_id limit $5",
    "select u.user_id as key, ",
    user!(),
    " as body from chosen join user_view as u on u.user_id = chosen.key"
);

/// Users who are in the department $8, as the view has them.
pub(crate) const LIST_USERS_OF_DEPARTMENT: &str = batch!(
    "select user_id as key, octet_length(name) + octet_length(email) + octet_length(coalesce(department, '')) + 250 as bytes
        from user_view where user_id > $3 and user_id <= $4 and department = $8 order by user_id limit $5",
    "select u.user_id as key, ",
    user!(),
    " as body from chosen join user_view as u on u.user_id = chosen.key"
);

/// $1 the user's id, $2 the user's least version. Returns the user as a JSON text, which is null if the view has no such user, and `behind`.
pub(crate) const READ_USER: &str = concat!(
    behind!("select $1::bigint, $2::bigint"),
    "select (select ",
    user!(),
    " from user_view as u where u.user_id = $1), ",
    behind_column!()
);

/// $1 ids of users, $2 their least versions. Returns the statistics of all departments as one text, and `behind`. The text has the items of a JSON
/// array with commas between. It is null if there is no department.
pub(crate) const READ_DEPARTMENT_STATS: &str = concat!(
    behind!("select * from unnest($1::bigint[], $2::bigint[])"),
    "select string_agg(row_to_json(answer)::text, ',' order by department nulls first), ",
    behind_column!(),
    " from (
        select department, user_count as \"userCount\", active_users as \"activeUsers\",
            inactive_users as \"inactiveUsers\", last_updated as \"lastUpdated\"
        from department_stats
    ) as answer"
);

#[cfg(test)]
mod tests {
    use super::{CREATE, DELETE, UPDATE};

    #[test]
    fn every_change_writes_an_event_of_the_contract() {
        for (statement, event_type) in [
            (CREATE, events::PostEventType::PostCreated),
            (UPDATE, events::PostEventType::PostUpdated),
            (DELETE, events::PostEventType::PostDeleted),
        ] {
            let name = serde_json::to_value(event_type).unwrap();
            let name = name.as_str().unwrap();
            assert!(statement.contains(&format!(
                "::uuid, '{}', p.id::text, '{name}', jsonb_build_object('eventType', '{name}'",
                events::POST_AGGREGATE
            )));
        }
    }
}
