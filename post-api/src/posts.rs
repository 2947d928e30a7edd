//! `/api/posts`: the posts themselves, and those of a department.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rest::database::Failure;
use rest::listing::{self, Batch, Page};
use rest::{Database, Id, JsonBody, Problem, Segment, answer};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row, query};

use crate::post::PostInput;
use crate::statements;

/// Posts that one statement of a list reads. A post may have half a megabyte.
const BATCH_SIZE: i64 = 100;

pub(crate) fn router(database: Database) -> Router {
    Router::new()
        .route("/api/posts", get(list).post(create))
        .route("/api/posts/{id}", get(read).put(update).delete(delete))
        .route("/api/posts/by-department/{department}", get(list_by_department))
        .with_state(database)
}

async fn create(State(database): State<Database>, JsonBody(body): JsonBody) -> Result<Response, Problem> {
    let post = PostInput::parse(body)?;
    let post = one(&database, bound(statements::CREATE, &post)).await?;
    let location = format!("/api/posts/{}", post.id);
    Ok(answer::created(location, &post.tag, post.body))
}

async fn read(State(database): State<Database>, Id(id): Id, headers: HeaderMap) -> Result<Response, Problem> {
    let post = one(&database, query(statements::READ).bind(id)).await?;
    Ok(answer::tagged(&headers, &post.tag, post.body))
}

async fn update(State(database): State<Database>, Id(id): Id, JsonBody(body): JsonBody) -> Result<Response, Problem> {
    let post = PostInput::parse(body)?;
    let post = one(&database, bound(statements::UPDATE, &post).bind(id)).await?;
    Ok(answer::tagged(&HeaderMap::new(), &post.tag, post.body))
}

async fn delete(State(database): State<Database>, Id(id): Id) -> Result<Response, Problem> {
    one(&database, query(statements::DELETE).bind(id)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn list(State(database): State<Database>, page: Page) -> Result<Response, Problem> {
    listing::answer(page, BATCH_SIZE, move |after, size| {
        let database = database.clone();
        async move {
            let statement = query(statements::LIST).bind(after).bind(size);
            Batch::read(&database, statement).await
        }
    })
    .await
}

async fn list_by_department(
    State(database): State<Database>,
    Segment(department): Segment,
    page: Page,
) -> Result<Response, Problem> {
    listing::answer(page, BATCH_SIZE, move |after, size| {
        let (database, department) = (database.clone(), department.clone());
        async move {
            let statement = query(statements::LIST_BY_DEPARTMENT)
                .bind(after)
                .bind(size)
                .bind(department);
            Batch::read(&database, statement).await
        }
    })
    .await
}

/// A post as a statement answers it.
struct Answered {
    id: i64,
    /// Names the state of the answer: it changes with the post and with its author.
    tag: String,
    /// JSON text.
    body: String,
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

fn bound<'q>(statement: &'static str, post: &'q PostInput) -> Statement<'q> {
    query(statement)
        .bind(&post.title)
        .bind(&post.content)
        .bind(post.author_id)
}

/// Runs a statement about one post; 404 when there is none.
async fn one(database: &Database, statement: Statement<'_>) -> Result<Answered, Problem> {
    let read = |row: PgRow| {
        let (version, author_version): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
        Ok(Answered {
            id: row.try_get(0)?,
            tag: format!("{version}.{author_version}"),
            body: row.try_get(3)?,
        })
    };
    database
        .row(statement)
        .await
        .and_then(|row| row.map(read).transpose().map_err(Failure::Refused))
        .map_err(|failure| failure.problem(&[]))?
        .ok_or_else(|| Problem::not_found("there is no post with this id"))
}
