//! Lists: a JSON array of any length from bounded memory, or one page of it.
//!
//! A list is read in batches by key, each a short statement of its own. So a slow reader holds neither a connection nor a
//! snapshot, and a list of a million rows costs no more memory than one of a thousand.

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
use crate::{Problem, answer};

/// Most items that a page may be asked to have.
const LIMIT_MAX: i64 = 1000;

/// Which part of a list is asked for: `?after=ID` starts behind that id, `?limit=N` ends after N items; without a limit
/// the list goes on to its end. Other names in the query are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    path: String,
    after: i64,
    limit: Option<i64>,
}

impl Page {
    /// The key before the first item.
    #[must_use]
    pub fn after(&self) -> i64 {
        self.after
    }

    /// Most items that the first batch has, where batches have `batch_size`.
    #[must_use]
    pub fn first_size(&self, batch_size: i64) -> i64 {
        self.limit.unwrap_or(batch_size)
    }
}

/// Items of a list, in order of their keys.
#[derive(Debug)]
pub struct Batch {
    /// The items as JSON texts with commas between; empty when there are none.
    items: String,
    last_key: i64,
    count: i64,
}

impl Batch {
    /// Runs a statement `select string_agg(item, ',' order by key), max(key), count(*)`.
    ///
    /// # Errors
    /// The database gives no answer.
    pub async fn read(database: &Database, statement: Query<'_, Postgres, PgArguments>) -> Result<Self, Failure> {
        let row = database.row(statement).await?;
        row.ok_or(sqlx::Error::RowNotFound)
            .and_then(|row| Self::of(&row))
            .map_err(Failure::Refused)
    }

    /// The first three columns of `row`, as [`Batch::read`] has them.
    ///
    /// # Errors
    /// They are not there, or of other types.
    pub fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            items: row.try_get::<Option<String>, _>(0)?.unwrap_or_default(),
            last_key: row.try_get::<Option<i64>, _>(1)?.unwrap_or(i64::MAX),
            count: row.try_get(2)?,
        })
    }
}

/// Answers a page, or a whole list batch by batch. `fetch` gives at most so many items behind a key.
///
/// # Errors
/// The first batch cannot be had. A later one that fails breaks the connection off, so that the client sees that the list
/// is not whole.
pub async fn answer<F, Fut>(page: Page, batch_size: i64, fetch: F) -> Result<Response, Problem>
where
    F: Fn(i64, i64) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Batch, Failure>> + Send + 'static,
{
    let first = fetch(page.after, page.first_size(batch_size)).await;
    let first = first.map_err(|failure| failure.problem(&[]))?;
    Ok(answer_from(page, batch_size, first, fetch))
}

/// As [`answer`], from a first batch that is there already: [`Page::first_size`] items behind [`Page::after`].
pub fn answer_from<F, Fut>(page: Page, batch_size: i64, first: Batch, fetch: F) -> Response
where
    F: Fn(i64, i64) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Batch, Failure>> + Send + 'static,
{
    let size = page.first_size(batch_size);
    if page.limit.is_some() || first.count < size {
        let mut response = answer::json(format!("[{}]", first.items));
        if page.limit.is_some() && first.count == size {
            let next = format!("<{}?limit={size}&after={}>; rel=\"next\"", page.path, first.last_key);
            if let Ok(next) = HeaderValue::try_from(next) {
                response.headers_mut().insert(header::LINK, next);
            }
        }
        return response;
    }

    let start = Rest {
        last_key: first.last_key,
        first: Some(first.items),
        is_done: false,
    };
    let chunks = stream::try_unfold((start, fetch), move |(mut rest, fetch)| async move {
        if let Some(first) = rest.first.take() {
            return Ok(Some((format!("[{first}"), (rest, fetch))));
        }
        if rest.is_done {
            return Ok(None);
        }
        let batch = fetch(rest.last_key, batch_size).await.map_err(|failure| {
            tracing::warn!(error = %failure, "a list was broken off");
            io::Error::other(failure)
        })?;
        rest.last_key = batch.last_key;
        rest.is_done = batch.count < batch_size;
        let (comma, end) = (
            if batch.count > 0 { "," } else { "" },
            if rest.is_done { "]" } else { "" },
        );
        let chunk = format!("{comma}{}{end}", batch.items);
        Ok::<_, io::Error>(Some((chunk, (rest, fetch))))
    });
    answer::json(Body::from_stream(chunks))
}

struct Rest {
    first: Option<String>,
    last_key: i64,
    is_done: bool,
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
