//! The rows of the two databases, as psql shows them.

use std::time::Duration;

use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::{Pipeline, eventually};

pub(crate) type Row = Vec<Option<String>>;

/// The rows that `sql` gives in the users' database.
pub(crate) async fn in_users(pipeline: &Pipeline, sql: &str) -> Vec<Row> {
    query(pipeline, USERS_DATABASE, sql).await
}

/// The rows that `sql` gives in the views' database.
pub(crate) async fn in_views(pipeline: &Pipeline, sql: &str) -> Vec<Row> {
    query(pipeline, VIEWS_DATABASE, sql).await
}

async fn query(pipeline: &Pipeline, database: &str, sql: &str) -> Vec<Row> {
    let postgres = pipeline.postgres().expect("our own postgres");
    let rows = postgres.query(database, sql).await;
    rows.unwrap_or_else(|err| panic!("{sql}: {err:#}"))
}

/// The only value in `rows`, which must be one row with one column.
pub(crate) fn single(rows: &[Row]) -> &str {
    match rows {
        [row] if row.len() == 1 => row[0].as_deref().expect("a value that is not null"),
        other => panic!("expected one row with one column: {other:?}"),
    }
}

/// The row of every user.
pub(crate) async fn users(pipeline: &Pipeline) -> Vec<Row> {
    let columns = "name, email, department, status, created_at, updated_at, version";
    in_users(pipeline, &format!("select id, {columns} from users order by id")).await
}

/// The same columns of the view's rows.
pub(crate) async fn user_view(pipeline: &Pipeline) -> Vec<Row> {
    let columns = "name, email, department, status, created_at, updated_at, version";
    in_views(
        pipeline,
        &format!("select user_id, {columns} from user_view order by user_id"),
    )
    .await
}

/// Waits until `user_view` equals `users` row by row. Asserts then that `department_stats` equals what the view's rows give, and that the other views
/// equal what users and posts give.
pub(crate) async fn assert_view_equals_users(pipeline: &Pipeline, deadline: Duration) {
    let start = std::time::Instant::now();
    loop {
        let (wanted, have) = (users(pipeline).await, user_view(pipeline).await);
        if wanted == have {
            break;
        }
        if start.elapsed() > deadline {
            let missing = wanted.iter().filter(|row| !have.contains(row)).count();
            let extra = have.iter().filter(|row| !wanted.contains(row)).count();
            panic!(
                "user_view differs from users after {deadline:?}: of {} rows {missing} are missing or different, {extra} are there and should not be\n{}",
                wanted.len(),
                logs(pipeline)
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let stats = in_views(
        pipeline,
        "select department, user_count, active_users, inactive_users from department_stats order by department nulls first",
    );
    let counted = in_views(
        pipeline,
        "select department, count(*), count(*) filter (where status = 'ACTIVE'), count(*) filter (where status = 'INACTIVE')
         from user_view group by department order by department nulls first",
    );
    assert_eq!(stats.await, counted.await, "department_stats differs from user_view");
    assert_post_views_are_right(pipeline, deadline).await;
}

/// Each view of users and posts with the query that computes it from `u` (users) and `posts`.
const POST_VIEWS: [(&str, &str, &str); 3] = [
    (
        "post_stats",
        "author_id, posts, first_post_at, last_post_at",
        "select author_id, count(*), min(created_at), max(created_at) from posts group by author_id",
    ),
    (
        "user_activity",
        "user_id, changes, posts, last_active",
        "select u.id, u.version, count(p.id), greatest(u.updated_at, max(p.updated_at))
         from u left join posts as p on p.author_id = u.id group by u.id, u.version, u.updated_at",
    ),
    (
        "department_performance",
        "department, active_users, authors, posts, posts_per_user",
        "select u.department, count(distinct u.id) filter (where u.status = 'ACTIVE'), count(distinct p.author_id), count(p.id),
            count(p.id)::numeric / count(distinct u.id)
         from u left join posts as p on p.author_id = u.id group by u.department",
    ),
];

/// Waits until `post_stats`, `user_activity` and `department_performance` are what `users` and `posts` give.
pub(crate) async fn assert_post_views_are_right(pipeline: &Pipeline, deadline: Duration) {
    for (view, columns, query) in POST_VIEWS {
        let start = std::time::Instant::now();
        loop {
            let users = in_users(
                pipeline,
                "select coalesce(json_agg(row_to_json(users)), '[]')::text from users",
            )
            .await;
            let users = single(&users).replace('\'', "''");
            let difference = in_views(
                pipeline,
                &format!(
                    "with u as (
                        select * from jsonb_to_recordset('{users}') as u(
                            id bigint, department varchar, status varchar, version bigint, updated_at timestamp)
                     ),
                     computed as ({query}), kept as (select {columns} from {view})
                     (select 'missing', missing::text from (table computed except all table kept) as missing)
                     union all
                     (select 'wrong', wrong::text from (table kept except all table computed) as wrong)"
                ),
            )
            .await;
            if difference.is_empty() {
                break;
            }
            assert!(
                start.elapsed() < deadline,
                "{view} differs after {deadline:?} in {} rows: {:?}\n{}",
                difference.len(),
                &difference[..difference.len().min(5)],
                logs(pipeline)
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Waits until the view shows user `id` with `version`.
pub(crate) async fn wait_for_view(pipeline: &Pipeline, id: i64, version: i64, deadline: Duration) {
    let sql = format!("select version from user_view where user_id = {id}");
    let what = format!("user {id} is in the view with version {version}");
    eventually(deadline, &what, || async {
        let rows = in_views(pipeline, &sql).await;
        (rows == [[Some(version.to_string())]]).then_some(())
    })
    .await;
}

/// The last lines of every program's log, for the message of a failure.
pub(crate) fn logs(pipeline: &Pipeline) -> String {
    let programs = pipeline.programs();
    let tails = programs.map(|program| format!("--- {}\n{}", program.name(), program.log_tail(8)));
    tails.join("\n")
}
