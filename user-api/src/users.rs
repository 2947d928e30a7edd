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
use crate::user::{STATUS_RULE, UserInput};

/// Users that one statement of a list reads.
const BATCH_SIZE: i64 = 1000;

/// Rules that only the database can check, or that it checks as well as this program.
const CONSTRAINTS: &[Constraint] = &[
    Constraint {
        name: "users_email_key",
        field: "email",
        message: "belongs to another user",
    },
    Constraint {
        name: "users_status_check",
        field: "status",
        message: STATUS_RULE,
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
    let user = change_user(&database, bind_user(statements::CREATE, &user).bind(event), event).await?;
    let user = user.ok_or_else(Problem::internal)?;
    Ok(answer::created(
        format!("/api/users/{}", user.id),
        &user.version.to_string(),
        user.version,
        user.body,
    ))
}

/// This reads the user's own row and no view. So there is nothing to wait for: a version above that of the row was never written.
async fn read(
    State(database): State<Database>,
    Id(id): Id,
    min_version: MinVersion,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let user = fetch_user(&database, query(statements::READ).bind(id)).await?;
    if user.version < min_version.version {
        return Err(version_not_written(min_version.version, user.version));
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
    let statement = bind_user(statements::UPDATE, &user)
        .bind(id)
        .bind(&versions)
        .bind(event);
    let user = change_user(&database, statement, event).await?;
    let user = ensure_changed(&database, user, id, versions.is_some()).await?;
    Ok(answer::changed(&user.version.to_string(), user.version, user.body))
}

async fn delete(State(database): State<Database>, Id(id): Id, IfMatch(versions): IfMatch) -> Result<Response, Problem> {
    let event = Uuid::new_v4();
    let statement = query(statements::DELETE).bind(id).bind(&versions).bind(event);
    let user = change_user(&database, statement, event).await?;
    let user = ensure_changed(&database, user, id, versions.is_some()).await?;
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

/// One row that a statement of this file returns.
struct UserRow {
    id: i64,
    version: i64,
    /// JSON text.
    body: String,
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

fn bind_user<'q>(statement: &'static str, user: &'q UserInput) -> Statement<'q> {
    query(statement)
        .bind(&user.name)
        .bind(&user.email)
        .bind(user.department.as_deref())
        .bind(&user.status)
}

/// 404: the user exists, but has never had that version.
fn version_not_written(min_version: i64, version: i64) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("the user is at version {version}; version {min_version} was not written"),
    )
    .with_type("urn:problem-type:version-not-written", "Version Not Written")
    .with_member("minVersion", min_version)
    .with_member("version", version)
}

/// Runs a change that writes the event `event`. `None`: there is no such user, or the user is at another version.
async fn change_user(database: &Database, statement: Statement<'_>, event: Uuid) -> Result<Option<UserRow>, Problem> {
    read_row(
        database
            .change(statement, || query(statements::ANSWER_OF).bind(event))
            .await,
    )
}

/// The row that a change returned. Without one, 404 if there is no such user, and 412 if the user is at another version than the client named.
async fn ensure_changed(
    database: &Database,
    user: Option<UserRow>,
    id: i64,
    has_versions: bool,
) -> Result<UserRow, Problem> {
    match user {
        Some(user) => Ok(user),
        None if has_versions => {
            let user = fetch_user(database, query(statements::READ).bind(id)).await?;
            Err(IfMatch::failed(&user.version.to_string(), user.version))
        }
        None => Err(no_such_user()),
    }
}

fn no_such_user() -> Problem {
    Problem::not_found("there is no user with this id")
}

/// Runs a statement about one user. 404 if there is none.
async fn fetch_user(database: &Database, statement: Statement<'_>) -> Result<UserRow, Problem> {
    read_row(database.row(statement).await)?.ok_or_else(no_such_user)
}

fn read_row(row: Result<Option<PgRow>, Failure>) -> Result<Option<UserRow>, Problem> {
    let read = |row: PgRow| {
        Ok(UserRow {
            id: row.try_get("id")?,
            version: row.try_get("version")?,
            body: row.try_get("body")?,
        })
    };
    row.and_then(|row| row.map(read).transpose().map_err(Failure::Refused))
        .map_err(|failure| failure.problem(CONSTRAINTS))
}
