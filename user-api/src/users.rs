//! `/api/users`.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use rest::database::{Constraint, Failure};
use rest::listing::{self, Batch, Page};
use rest::{Database, Id, IfMatch, JsonBody, MinVersion, Problem, answer};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row, query};
use uuid::Uuid;

use crate::statements;
use crate::user::{STATUS_MUST, UserInput};

/// Users that one statement of a list reads.
const BATCH_SIZE: i64 = 1000;

/// Rules that only the database can keep, or that it keeps as well.
const CONSTRAINTS: &[Constraint] = &[
    Constraint {
        name: "users_email_key",
        field: "email",
        message: "belongs to another user",
    },
    Constraint {
        name: "users_status_check",
        field: "status",
        message: STATUS_MUST,
    },
];

pub(crate) fn router(database: Database) -> Router {
    Router::new()
        .route("/api/users", get(list).post(create))
        .route("/api/users/{id}", get(read).put(update).delete(delete))
        .with_state(database)
}

async fn create(State(database): State<Database>, JsonBody(body, _room): JsonBody) -> Result<Response, Problem> {
    let user = UserInput::parse(body)?;
    let event = Uuid::new_v4();
    let user = change(&database, bound(statements::CREATE, &user).bind(event), event).await?;
    let user = user.ok_or_else(Problem::internal)?;
    Ok(answer::created(
        format!("/api/users/{}", user.id),
        &user.version.to_string(),
        user.version,
        user.body,
    ))
}

/// The row itself is read, so there is nothing to wait for: a version that it has not reached was never written.
async fn read(
    State(database): State<Database>,
    Id(id): Id,
    asked: MinVersion,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let user = one(&database, query(statements::READ).bind(id)).await?;
    if user.version < asked.version {
        return Err(not_written(asked.version, user.version));
    }
    Ok(answer::tagged(&headers, &user.version.to_string(), user.body))
}

async fn update(
    State(database): State<Database>,
    Id(id): Id,
    IfMatch(versions): IfMatch,
    JsonBody(body, _room): JsonBody,
) -> Result<Response, Problem> {
    let user = UserInput::parse(body)?;
    let event = Uuid::new_v4();
    let statement = bound(statements::UPDATE, &user).bind(id).bind(&versions).bind(event);
    let user = change(&database, statement, event).await?;
    let user = made(&database, user, id, versions.is_some()).await?;
    Ok(answer::changed(&user.version.to_string(), user.version, user.body))
}

async fn delete(State(database): State<Database>, Id(id): Id, IfMatch(versions): IfMatch) -> Result<Response, Problem> {
    let event = Uuid::new_v4();
    let statement = query(statements::DELETE).bind(id).bind(&versions).bind(event);
    let user = change(&database, statement, event).await?;
    let user = made(&database, user, id, versions.is_some()).await?;
    Ok(answer::deleted(user.version))
}

async fn list(State(database): State<Database>, page: Page) -> Result<Response, Problem> {
    listing::answer(page, BATCH_SIZE, move |part| {
        let database = database.clone();
        async move {
            let statement = query(statements::LIST)
                .bind(part.after)
                .bind(part.until)
                .bind(part.size);
            let statement = statement.bind(part.bytes).bind(part.least);
            Batch::read(&database, statement).await
        }
    })
    .await
}

/// A user as a statement answers it.
struct Answered {
    id: i64,
    version: i64,
    /// JSON text.
    body: String,
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

fn bound<'q>(statement: &'static str, user: &'q UserInput) -> Statement<'q> {
    query(statement)
        .bind(&user.name)
        .bind(&user.email)
        .bind(user.department.as_deref())
        .bind(&user.status)
}

/// 404: the user is there and has never had that version.
fn not_written(min_version: i64, version: i64) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("the user is at version {version}; version {min_version} was not written"),
    )
    .of_type("urn:problem-type:version-not-written", "Version Not Written")
    .with("minVersion", min_version)
    .with("version", version)
}

/// Runs a change that writes the event; none when there is no such user, or the user is at another version.
async fn change(database: &Database, statement: Statement<'_>, event: Uuid) -> Result<Option<Answered>, Problem> {
    answered(
        database
            .change(statement, || query(statements::ANSWER_OF).bind(event))
            .await,
    )
}

/// What a change answered; 404 when there is no such user, 412 when the user is at another version than the client named.
async fn made(database: &Database, user: Option<Answered>, id: i64, has_versions: bool) -> Result<Answered, Problem> {
    match user {
        Some(user) => Ok(user),
        None if has_versions => {
            let user = one(database, query(statements::READ).bind(id)).await?;
            Err(IfMatch::failed(&user.version.to_string(), user.version))
        }
        None => Err(no_such_user()),
    }
}

fn no_such_user() -> Problem {
    Problem::not_found("there is no user with this id")
}

/// Runs a statement about one user; 404 when there is none.
async fn one(database: &Database, statement: Statement<'_>) -> Result<Answered, Problem> {
    answered(database.row(statement).await)?.ok_or_else(no_such_user)
}

fn answered(row: Result<Option<PgRow>, Failure>) -> Result<Option<Answered>, Problem> {
    let read = |row: PgRow| {
        Ok(Answered {
            id: row.try_get("id")?,
            version: row.try_get("version")?,
            body: row.try_get("body")?,
        })
    };
    row.and_then(|row| row.map(read).transpose().map_err(Failure::Refused))
        .map_err(|failure| failure.problem(CONSTRAINTS))
}
