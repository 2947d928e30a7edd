//! Answers lists for which the views are read. A list is read as soon as the views have the versions that the client asks for.

use axum::response::Response;
use rest::database::Failure;
use rest::listing::{self, Batch, Page, Part};
use rest::{MinVersions, Problem};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Postgres, query};

use crate::reading::Reader;

/// A list, and how it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    /// $1 ids of users, $2 their least versions, $3 to $7 the part, $8 department where there is one.
    pub(crate) statement: &'static str,
    /// Items that one statement reads.
    pub(crate) batch_size: i64,
}

impl List {
    /// Answers a page or the whole list. Its first batch comes from a snapshot that has the versions that are asked for. The later batches come from
    /// later snapshots, so they need not ask for versions.
    ///
    /// # Errors
    /// As [`Reader::row`].
    pub(crate) async fn answer(
        self,
        reader: &Reader,
        department: Option<String>,
        page: Page,
        asked: MinVersions,
    ) -> Result<Response, Problem> {
        let part = Part::first(&page, self.batch_size);
        let least = users_and_versions(&asked);
        let statement = || self.query(part, least.clone(), department.clone());
        let row = reader.row(asked.wait, statement).await?;
        let first = row
            .ok_or(sqlx::Error::RowNotFound)
            .and_then(|row| Batch::from_row(&row));
        let first = first.map_err(|err| Failure::Refused(err).problem(&[]))?;
        let database = reader.database().clone();
        Ok(listing::answer_from(page, self.batch_size, first, move |part| {
            let (database, department) = (database.clone(), department.clone());
            async move {
                let statement = self.query(part, <(Vec<i64>, Vec<i64>)>::default(), department);
                Batch::read(&database, statement).await
            }
        }))
    }

    fn query(
        self,
        part: Part,
        (users, versions): (Vec<i64>, Vec<i64>),
        department: Option<String>,
    ) -> Query<'static, Postgres, PgArguments> {
        let statement = query(self.statement).bind(users).bind(versions);
        let statement = statement.bind(part.after).bind(part.until).bind(part.size);
        let statement = statement.bind(part.bytes).bind(part.least);
        match department {
            Some(department) => statement.bind(department),
            None => statement,
        }
    }
}

/// The users that are asked for, and the least version of each.
pub(crate) fn users_and_versions(asked: &MinVersions) -> (Vec<i64>, Vec<i64>) {
    asked.versions.iter().map(|(user, version)| (*user, *version)).unzip()
}
