//! The two databases' rows, as psql shows them.

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

/// The single value that `sql` gives.
pub(crate) fn single(rows: &[Row]) -> &str {
    match rows {
        [row] if row.len() == 1 => row[0].as_deref().expect("a value that is not null"),
        other => panic!("expected one row with one column: {other:?}"),
    }
}

/// Every user's own row.
pub(crate) async fn users(pipeline: &Pipeline) -> Vec<Row> {
    let columns = "name, email, department, status, created_at, updated_at, version";
    in_users(pipeline, &format!("select id, {columns} from users order by id")).await
}

/// The same columns of the view.
pub(crate) async fn user_view(pipeline: &Pipeline) -> Vec<Row> {
    let columns = "name, email, department, status, created_at, updated_at, version";
    in_views(
        pipeline,
        &format!("select user_id, {columns} from user_view order by user_id"),
    )
    .await
}

/// Waits until `user_view` equals `users` row by row, then compares `department_stats` with what the view's rows say.
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

/// The last lines of every program, for a failure's message.
pub(crate) fn logs(pipeline: &Pipeline) -> String {
    let programs = pipeline.programs();
    let tails = programs.map(|program| format!("--- {}\n{}", program.name(), program.log_tail(8)));
    tails.join("\n")
}
