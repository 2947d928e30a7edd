//! `/api/posts/users` and `/api/posts/department-stats`: the views that view-builder makes of the users' events.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use rest::database::Failure;
use rest::listing::Page;
use rest::{Id, MinVersion, MinVersions, Problem, Segment, answer};
use sqlx::postgres::PgRow;
use sqlx::{Row, query};

use crate::list::{self, List};
use crate::reading::Reader;
use crate::statements;

const BATCH_SIZE: i64 = 1000;
const LIST: List = List {
    statement: statements::LIST_USERS,
    batch_size: BATCH_SIZE,
};
const LIST_OF_DEPARTMENT: List = List {
    statement: statements::LIST_USERS_OF_DEPARTMENT,
    batch_size: BATCH_SIZE,
};

pub(crate) fn router(reader: Reader) -> Router {
    Router::new()
        .route("/api/posts/users", get(list))
        .route("/api/posts/users/{id}", get(read))
        .route("/api/posts/users/department/{department}", get(list_of_department))
        .route("/api/posts/department-stats", get(department_stats))
        .with_state(reader)
}

async fn list(State(reader): State<Reader>, page: Page, asked: MinVersions) -> Result<Response, Problem> {
    LIST.answer(&reader, None, page, asked).await
}

async fn list_of_department(
    State(reader): State<Reader>,
    Segment(department): Segment,
    page: Page,
    asked: MinVersions,
) -> Result<Response, Problem> {
    LIST_OF_DEPARTMENT.answer(&reader, Some(department), page, asked).await
}

async fn read(State(reader): State<Reader>, Id(id): Id, asked: MinVersion) -> Result<Response, Problem> {
    let statement = || query(statements::READ_USER).bind(id).bind(asked.version);
    first_column(reader.row(asked.wait, statement).await?)?
        .map(answer::json)
        .ok_or_else(|| Problem::not_found("the view has no user with this id"))
}

async fn department_stats(State(reader): State<Reader>, asked: MinVersions) -> Result<Response, Problem> {
    let (users, versions) = list::users_and_versions(&asked);
    let statement = || {
        query(statements::READ_DEPARTMENT_STATS)
            .bind(users.clone())
            .bind(versions.clone())
    };
    // Null where there is no department.
    let items = first_column(reader.row(asked.wait, statement).await?)?.unwrap_or_default();
    Ok(answer::json(format!("[{items}]")))
}

/// The text in the first column. `None`: there is no row, or it has null there.
fn first_column(row: Option<PgRow>) -> Result<Option<String>, Problem> {
    row.map_or(Ok(None), |row| row.try_get(0))
        .map_err(|err| Failure::Refused(err).problem(&[]))
}
