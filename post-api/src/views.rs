//! `/api/posts/users` and `/api/posts/department-stats`: what view-builder has made of the users' events.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use rest::database::Failure;
use rest::listing::{self, Batch, Page};
use rest::{Database, Id, Problem, Segment, answer};
use sqlx::{Row, query};

use crate::statements;

/// Users that one statement of a list reads.
const BATCH_SIZE: i64 = 1000;

pub(crate) fn router(database: Database) -> Router {
    Router::new()
        .route("/api/posts/users", get(list))
        .route("/api/posts/users/{id}", get(read))
        .route("/api/posts/users/department/{department}", get(list_of_department))
        .route("/api/posts/department-stats", get(department_stats))
        .with_state(database)
}

async fn list(State(database): State<Database>, page: Page) -> Result<Response, Problem> {
    listing::answer(page, BATCH_SIZE, move |after, size| {
        let database = database.clone();
        async move {
            let statement = query(statements::LIST_USERS).bind(after).bind(size);
            Batch::read(&database, statement).await
        }
    })
    .await
}

async fn list_of_department(
    State(database): State<Database>,
    Segment(department): Segment,
    page: Page,
) -> Result<Response, Problem> {
    listing::answer(page, BATCH_SIZE, move |after, size| {
        let (database, department) = (database.clone(), department.clone());
        async move {
            let statement = query(statements::LIST_USERS_OF_DEPARTMENT)
                .bind(after)
                .bind(size)
                .bind(department);
            Batch::read(&database, statement).await
        }
    })
    .await
}

async fn read(State(database): State<Database>, Id(id): Id) -> Result<Response, Problem> {
    database
        .row(query(statements::READ_USER).bind(id))
        .await
        .and_then(|row| {
            row.map(|row| row.try_get::<String, _>(0))
                .transpose()
                .map_err(Failure::Refused)
        })
        .map_err(|failure| failure.problem(&[]))?
        .map(answer::json)
        .ok_or_else(|| Problem::not_found("the view has no user with this id"))
}

async fn department_stats(State(database): State<Database>) -> Result<Response, Problem> {
    let items = database
        .row(query(statements::READ_DEPARTMENT_STATS))
        .await
        .and_then(|row| match row {
            Some(row) => row.try_get::<Option<String>, _>(0).map_err(Failure::Refused),
            None => Ok(None),
        })
        .map_err(|failure| failure.problem(&[]))?;
    Ok(answer::json(format!("[{}]", items.unwrap_or_default())))
}
