//! The SQL of posts and of the views.
//!
//! A change of a post can only be written by [`change!`], which writes its event in the same statement: one transaction, one
//! round trip, and no post without its event. The event's version is the row's own. An update holds the row's lock until
//! it has committed, so that a post's events commit, and thus are published, in the order of their versions.
//!
//! JSON texts are made by the database, in the order of the answer's fields. Each statement names the views anew when it
//! runs, so view-builder may swap a rebuilt one in at any time.

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

/// A change of one post, its event and its answer (`id`, `version`, the author's version or 0, JSON text); no row when there
/// is no such post. `$change` writes the row and returns it as the event is to tell it.
macro_rules! change {
    ($type:literal, $post:literal, $change:literal) => {
        concat!(
            "with p as (",
            $change,
            "), event as (
                insert into outbox (aggregatetype, aggregateid, type, payload)
                select 'post', p.id::text, '",
            $type,
            "', jsonb_build_object('eventType', '",
            $type,
            "', 'postId', p.id, 'post', ",
            $post,
            ", 'timestamp', clock_timestamp() at time zone 'utc', 'version', p.version)
                from p
            )
            select p.id, p.version, coalesce(a.version, 0), ",
            post!(),
            " from p left join user_view as a on a.user_id = p.author_id"
        )
    };
}

/// Items of a list as one `rest::listing::Batch`. `$rows` gives `body` and `key`, ordered, behind $1 and at most $2 rows.
macro_rules! batch {
    ($($rows:expr),+) => {
        concat!(
            "select string_agg(body, ',' order by key), max(key), count(*) from (",
            $($rows),+,
            ") as batch"
        )
    };
}

/// $1 title, $2 content, $3 author's id.
pub(crate) const CREATE: &str = change!(
    "POST_CREATED",
    "jsonb_build_object('id', p.id, 'title', p.title, 'content', p.content, 'authorId', p.author_id,
        'createdAt', p.created_at, 'updatedAt', p.updated_at)",
    "insert into posts (title, content, author_id)
        values ($1, $2, $3)
        returning id, title, content, author_id, created_at, updated_at, version"
);

/// $1 title, $2 content, $3 author's id, $4 id.
pub(crate) const UPDATE: &str = change!(
    "POST_UPDATED",
    "jsonb_build_object('id', p.id, 'title', p.title, 'content', p.content, 'authorId', p.author_id,
        'createdAt', p.created_at, 'updatedAt', p.updated_at)",
    "update posts
        set title = $1, content = $2, author_id = $3,
            updated_at = clock_timestamp() at time zone 'utc', version = version + 1
        where id = $4
        returning id, title, content, author_id, created_at, updated_at, version"
);

/// $1 id. The event carries no post, and the version that the post would have had next.
pub(crate) const DELETE: &str = change!(
    "POST_DELETED",
    "null",
    "delete from posts
        where id = $1
        returning id, title, content, author_id, created_at, updated_at, version + 1 as version"
);

/// $1 id; gives `id`, `version`, the author's version or 0, JSON text.
pub(crate) const READ: &str = concat!(
    "select p.id, p.version, coalesce(a.version, 0), ",
    post!(),
    " from posts as p left join user_view as a on a.user_id = p.author_id where p.id = $1"
);

/// $1 the key before the first, $2 most rows.
pub(crate) const LIST: &str = batch!(
    "select p.id as key, ",
    post!(),
    " as body from posts as p left join user_view as a on a.user_id = p.author_id
    where p.id > $1 order by p.id limit $2"
);

/// Posts whose author the view has in that department. $1 the key before the first, $2 most rows, $3 department.
pub(crate) const LIST_BY_DEPARTMENT: &str = batch!(
    "select p.id as key, ",
    post!(),
    " as body from posts as p join user_view as a on a.user_id = p.author_id
    where p.id > $1 and a.department = $3 order by p.id limit $2"
);

/// $1 the key before the first, $2 most rows.
pub(crate) const LIST_USERS: &str = batch!(
    "select u.user_id as key, ",
    user!(),
    " as body from user_view as u where u.user_id > $1 order by u.user_id limit $2"
);

/// $1 the key before the first, $2 most rows, $3 department.
pub(crate) const LIST_USERS_OF_DEPARTMENT: &str = batch!(
    "select u.user_id as key, ",
    user!(),
    " as body from user_view as u where u.user_id > $1 and u.department = $3
    order by u.user_id limit $2"
);

/// $1 user's id; gives the user's JSON text.
pub(crate) const READ_USER: &str = concat!("select ", user!(), " from user_view as u where u.user_id = $1");

/// Gives all departments' statistics as the JSON texts of an array's items, null when there are none.
pub(crate) const READ_DEPARTMENT_STATS: &str = "
    select string_agg(row_to_json(answer)::text, ',' order by department nulls first)
    from (
        select department, user_count as \"userCount\", active_users as \"activeUsers\",
            inactive_users as \"inactiveUsers\", last_updated as \"lastUpdated\"
        from department_stats
    ) as answer";

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
                "select '{}', p.id::text, '{name}', jsonb_build_object('eventType', '{name}'",
                events::POST_AGGREGATE
            )));
        }
    }
}
