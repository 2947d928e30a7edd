//! `/api/posts`: the posts themselves, and those of a department.

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use rest::database::Failure;
use rest::listing::Page;
use rest::{Database, Id, IfMatch, JsonBody, MinVersion, MinVersions, Problem, Room, SHORT_BYTES, Segment, answer};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row, query};
use uuid::Uuid;

use crate::list::List;
use crate::post::PostInput;
use crate::reading::Reader;
use crate::statements;

/// A post may have half a megabyte.
const BATCH_SIZE: i64 = 100;
const LIST: List = List {
    statement: statements::LIST,
    batch_size: BATCH_SIZE,
};
const LIST_BY_DEPARTMENT: List = List {
    statement: statements::LIST_BY_DEPARTMENT,
    batch_size: BATCH_SIZE,
};

pub(crate) fn router(reader: Reader) -> Router {
    Router::new()
        .route("/api/posts", get(list).post(create))
        .route("/api/posts/{id}", get(read).put(update).delete(delete))
        .route("/api/posts/by-department/{department}", get(list_by_department))
        .with_state(reader)
}

async fn create(State(database): State<Database>, JsonBody(body, room): JsonBody) -> Result<Response, Problem> {
    let post = PostInput::parse(body)?;
    let event = Uuid::new_v4();
    let post = change_post(&database, bind_post(statements::CREATE, &post).bind(event), event).await?;
    let post = post.ok_or_else(Problem::internal)?;
    let location = format!("/api/posts/{}", post.id);
    Ok(answer::created(
        location,
        &post.tag,
        post.version,
        room.body(required_body(post.body)?),
    ))
}

/// The post is read from its own table, which is never behind. So `minVersion` is about its author.
async fn read(
    State(reader): State<Reader>,
    Id(id): Id,
    min_version: MinVersion,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let statement = |bytes: i64| query(statements::READ).bind(id).bind(min_version.version).bind(bytes);
    let row = reader.row(min_version.wait, || statement(SHORT_BYTES as i64)).await?;
    let post = read_row(Ok(row))?;
    if let Some(body) = post.body {
        return Ok(answer::tagged(&headers, &post.tag, body));
    }
    let room = Room::take().await?;
    let row = reader.row(min_version.wait, || statement(i64::MAX)).await?;
    let post = read_row(Ok(row))?;
    Ok(answer::tagged(
        &headers,
        &post.tag,
        room.body(required_body(post.body)?),
    ))
}

async fn update(
    State(database): State<Database>,
    Id(id): Id,
    IfMatch(versions): IfMatch,
    JsonBody(body, room): JsonBody,
) -> Result<Response, Problem> {
    let post = PostInput::parse(body)?;
    let event = Uuid::new_v4();
    let statement = bind_post(statements::UPDATE, &post)
        .bind(id)
        .bind(&versions)
        .bind(event);
    let post = change_post(&database, statement, event).await?;
    let post = ensure_changed(&database, post, id, versions.is_some()).await?;
    Ok(answer::changed(
        &post.tag,
        post.version,
        room.body(required_body(post.body)?),
    ))
}

async fn delete(State(database): State<Database>, Id(id): Id, IfMatch(versions): IfMatch) -> Result<Response, Problem> {
    let event = Uuid::new_v4();
    let statement = query(statements::DELETE).bind(id).bind(&versions).bind(event);
    let post = change_post(&database, statement, event).await?;
    let post = ensure_changed(&database, post, id, versions.is_some()).await?;
    Ok(answer::deleted(post.version))
}

async fn list(State(reader): State<Reader>, page: Page, asked: MinVersions) -> Result<Response, Problem> {
    LIST.answer(&reader, None, page, asked).await
}

async fn list_by_department(
    State(reader): State<Reader>,
    Segment(department): Segment,
    page: Page,
    asked: MinVersions,
) -> Result<Response, Problem> {
    LIST_BY_DEPARTMENT.answer(&reader, Some(department), page, asked).await
}

/// One row that a statement of this file returns.
struct PostRow {
    id: i64,
    version: i64,
    /// The entity tag. It changes when the post changes and when its author changes.
    tag: String,
    /// JSON text. `None`: the post is longer than the statement allowed, or its author is behind.
    body: Option<String>,
}

fn required_body(body: Option<String>) -> Result<String, Problem> {
    body.ok_or_else(Problem::internal)
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

fn bind_post<'q>(statement: &'static str, post: &'q PostInput) -> Statement<'q> {
    query(statement)
        .bind(&post.title)
        .bind(&post.content)
        .bind(post.author_id)
}

/// Runs a change that writes the event `event`. `None`: there is no such post, or the post is at another version.
async fn change_post(database: &Database, statement: Statement<'_>, event: Uuid) -> Result<Option<PostRow>, Problem> {
    read_optional_row(
        database
            .change(statement, || query(statements::ANSWER_OF).bind(event))
            .await,
    )
}

/// The row that a change returned. Without one, 404 if there is no such post, and 412 if the post is at another version than the client named.
async fn ensure_changed(
    database: &Database,
    post: Option<PostRow>,
    id: i64,
    has_versions: bool,
) -> Result<PostRow, Problem> {
    match post {
        Some(post) => Ok(post),
        None if has_versions => {
            let post = fetch_post(database, query(statements::READ).bind(id).bind(0_i64).bind(0_i64)).await?;
            Err(IfMatch::failed(&post.tag, post.version))
        }
        None => Err(no_such_post()),
    }
}

fn no_such_post() -> Problem {
    Problem::not_found("there is no post with this id")
}

/// Runs a statement about one post. 404 if there is none.
async fn fetch_post(database: &Database, statement: Statement<'_>) -> Result<PostRow, Problem> {
    read_row(database.row(statement).await)
}

fn read_row(row: Result<Option<PgRow>, Failure>) -> Result<PostRow, Problem> {
    read_optional_row(row)?.ok_or_else(no_such_post)
}

fn read_optional_row(row: Result<Option<PgRow>, Failure>) -> Result<Option<PostRow>, Problem> {
    let read = |row: PgRow| {
        let (version, author_version): (i64, i64) = (row.try_get("version")?, row.try_get("author_version")?);
        Ok(PostRow {
            id: row.try_get("id")?,
            version,
            tag: format!("{version}.{author_version}"),
            body: row.try_get("body")?,
        })
    };
    row.and_then(|row| row.map(read).transpose().map_err(Failure::Refused))
        .map_err(|failure| failure.problem(&[]))
}
