//! Answers lists: a whole list of any length as a JSON array, with bounded memory, or one page of it.
//!
//! A list is read in batches by key, each a short statement of its own, and each of a bounded number of bytes. So a slow reader holds neither a
//! connection nor a snapshot, and a list of a million rows costs no more memory than one of a thousand, however long the rows are. The
//! first batch is short and needs no [`Room`]. So short lists are answered even while long ones use up all room.

use std::future::Future;
use std::io;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};

use crate::database::{Database, Failure};
use crate::room::{Room, SHORT_BYTES};
use crate::{Problem, answer};

/// A client may ask for so many items of a page, at most.
const LIMIT_MAX: i64 = 1000;
/// A batch has about so many bytes, at most. A longer item is a batch of its own.
const BATCH_BYTES: i64 = 256 * 1024;

/// Which part of a list is asked for: `?after=ID` starts behind that id, `?limit=N` ends after N items; without a limit
/// the list goes on to its end. Other names in the query are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    path: String,
    after: i64,
    limit: Option<i64>,
}

/// Which items one statement selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The items come after this key.
    pub after: i64,
    /// No item has a greater key.
    pub until: i64,
    /// So many items are candidates, at most. Those that fit into `bytes` are selected.
    pub size: i64,
    /// The selected items have about so many bytes, at most.
    pub bytes: i64,
    /// So many of the candidates are selected in any case, even if they have more bytes.
    pub least: i64,
}

impl Part {
    /// The first part of a page or a list. It is short, so it can be read at once. If the first candidate is too long, it selects no item.
    #[must_use]
    pub fn first(page: &Page, batch_size: i64) -> Self {
        Self {
            after: page.after,
            until: i64::MAX,
            size: page.limit.unwrap_or(batch_size),
            bytes: SHORT_BYTES as i64,
            least: 0,
        }
    }

    /// A later part.
    fn next(after: i64, until: i64, batch_size: i64) -> Self {
        Self {
            after,
            until,
            size: batch_size,
            bytes: BATCH_BYTES,
            least: 1,
        }
    }
}

/// Items of a list, in order of their keys.
#[derive(Debug)]
pub struct Batch {
    /// The items as JSON texts with commas between; empty when there are none.
    items: String,
    last_key: Option<i64>,
    count: i64,
    /// How many candidates there were, of which `count` were selected.
    candidates: i64,
    last_candidate: Option<i64>,
}

impl Batch {
    /// Runs a statement `select string_agg(item, ',' order by key) as items, max(key) as last_key, count(*) as count, candidates, last_candidate`.
    ///
    /// # Errors
    /// The database gives no answer.
    pub async fn read(database: &Database, statement: Query<'_, Postgres, PgArguments>) -> Result<Self, Failure> {
        let row = database.row(statement).await?;
        row.ok_or(sqlx::Error::RowNotFound)
            .and_then(|row| Self::from_row(&row))
            .map_err(Failure::Refused)
    }

    /// Reads the columns of `row` that [`Batch::read`] names.
    ///
    /// # Errors
    /// A column is missing, or has another type.
    pub fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            // Null where there are no items.
            items: row.try_get::<Option<String>, _>("items")?.unwrap_or_default(),
            last_key: row.try_get("last_key")?,
            count: row.try_get("count")?,
            candidates: row.try_get("candidates")?,
            last_candidate: row.try_get("last_candidate")?,
        })
    }

    fn has_all_candidates(&self) -> bool {
        self.count == self.candidates
    }
}

/// Answers a page, or a whole list batch by batch. `fetch` loads the items of a part.
///
/// # Errors
/// The first batch cannot be loaded. If a later batch fails, the connection is broken off, so that the client sees that the list is not complete.
pub async fn answer<F, Fut>(page: Page, batch_size: i64, fetch: F) -> Result<Response, Problem>
where
    F: Fn(Part) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Batch, Failure>> + Send + 'static,
{
    let first = fetch(Part::first(&page, batch_size)).await;
    let first = first.map_err(|failure| failure.problem(&[]))?;
    Ok(answer_from(page, batch_size, first, fetch))
}

/// Does the same as [`answer()`] with a first batch that is loaded already: that of [`Part::first`].
pub fn answer_from<F, Fut>(page: Page, batch_size: i64, first: Batch, fetch: F) -> Response
where
    F: Fn(Part) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Batch, Failure>> + Send + 'static,
{
    let is_whole = first.has_all_candidates() && (page.limit.is_some() || first.candidates < batch_size);
    let next = match (page.limit, first.last_candidate) {
        (Some(limit), Some(last)) if first.candidates == limit => {
            HeaderValue::try_from(format!("<{}?limit={limit}&after={last}>; rel=\"next\"", page.path)).ok()
        }
        _ => None,
    };
    let mut response = if is_whole {
        answer::json(format!("[{}]", first.items))
    } else {
        let until = match (page.limit, first.last_candidate) {
            (Some(_), Some(last)) => last,
            // A whole list goes on to its end, whatever its keys are. (A page without any candidate is complete, so it was answered above.)
            _ => i64::MAX,
        };
        answer::json(Body::from_stream(stream_batches(
            page.after, until, batch_size, first, fetch,
        )))
    };
    if let Some(next) = next {
        response.headers_mut().insert(header::LINK, next);
    }
    response
}

/// The state of a list that is sent batch by batch.
struct Rest<F> {
    first: Option<Batch>,
    after: i64,
    until: i64,
    has_items: bool,
    is_done: bool,
    /// The room of the batch before. It is given back when the next batch is asked for, since only then the client may have taken that batch.
    room: Option<Room>,
    fetch: F,
}

/// Streams the array, beginning with the first batch.
fn stream_batches<F, Fut>(
    after: i64,
    until: i64,
    batch_size: i64,
    first: Batch,
    fetch: F,
) -> impl stream::Stream<Item = io::Result<String>> + Send
where
    F: Fn(Part) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Batch, Failure>> + Send + 'static,
{
    let start = Rest {
        first: Some(first),
        after,
        until,
        has_items: false,
        is_done: false,
        room: None,
        fetch,
    };
    stream::try_unfold(start, move |mut rest| async move {
        if rest.is_done {
            return Ok(None);
        }
        rest.room = None;
        let (batch, is_first) = match rest.first.take() {
            Some(first) => (first, true),
            None => {
                let mut room = Room::take().await.map_err(|problem| broken_off(problem.detail()))?;
                let part = Part::next(rest.after, rest.until, batch_size);
                let batch = (rest.fetch)(part)
                    .await
                    .map_err(|failure| broken_off(&failure.to_string()))?;
                room.shrink_to(batch.items.len());
                rest.room = Some(room);
                rest.is_done = batch.has_all_candidates() && batch.candidates < batch_size;
                (batch, false)
            }
        };
        rest.after = batch.last_key.unwrap_or(rest.after);
        rest.is_done |= rest.after >= rest.until;
        let begin = if is_first { "[" } else { "" };
        let comma = if rest.has_items && batch.count > 0 { "," } else { "" };
        let end = if rest.is_done { "]" } else { "" };
        rest.has_items |= batch.count > 0;
        Ok(Some((format!("{begin}{comma}{}{end}", batch.items), rest)))
    })
}

fn broken_off(why: &str) -> io::Error {
    tracing::warn!(error = why, "a list was broken off");
    io::Error::other(why.to_owned())
}

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parse(parts.uri.path(), parts.uri.query().unwrap_or_default())
    }
}

fn parse(path: &str, query: &str) -> Result<Page, Problem> {
    let number = |name: &str, least: i64, most: i64| {
        let given = query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        });
        let Some(value) = given else {
            return Ok(None);
        };
        match value.parse::<i64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(Problem::bad_request(format!(
                "{name} must be a whole number from {least} to {most}"
            ))),
        }
    };
    Ok(Page {
        path: path.to_owned(),
        after: number("after", 0, i64::MAX)?.unwrap_or(i64::MIN),
        limit: number("limit", 1, LIMIT_MAX)?,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_page_is_asked_for_by_limit_and_after() {
        let page = parse("/api/users", "after=7&x=|&limit=10").unwrap();
        assert_eq!((page.after, page.limit), (7, Some(10)));
        let all = parse("/api/users", "verbose").unwrap();
        assert_eq!((all.after, all.limit), (i64::MIN, None));
        for query in ["limit=0", "limit=1001", "limit", "limit=x", "after=-1", "after="] {
            assert_eq!(parse("/", query).unwrap_err().status(), 400, "{query}");
        }
    }
}
