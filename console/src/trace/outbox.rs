//! The outbox row of an event, by the table's primary key.

use time::OffsetDateTime;
use tokio_postgres::Row;

use super::views::time_in;
use crate::postgres::{Databases, SqlError, in_time, quoted, text_as};
use crate::settings::Outbox;

/// An event as its service wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    pub id: String,
    pub aggregate_type: String,
    /// The record's key.
    pub aggregate_id: String,
    pub event_type: String,
    /// When the row was written, by the database's clock. A column without a zone is taken as UTC.
    pub created_at: OffsetDateTime,
    /// When its transaction committed. `None`: the server does not keep this (`track_commit_timestamp` is off, or it was long ago).
    pub committed_at: Option<OffsetDateTime>,
}

/// The row of this id. `None`: there is none, or the text cannot be an id of this table.
///
/// The names of the columns are the defaults of Debezium's outbox event router, and `created_at`.
///
/// # Errors
/// The database does not answer, or refuses: the role may not read the table, or a column has another name; `created_at` is no time.
pub(super) async fn row_of(databases: &Databases, outbox: &Outbox, id: &str) -> Result<Option<OutboxRow>, SqlError> {
    let Some(database) = databases.of_outbox(outbox) else {
        return Ok(None);
    };
    let sql = format!(
        "select id::text, aggregatetype::text, aggregateid::text, type::text, created_at,
            case when current_setting('track_commit_timestamp')::boolean then pg_xact_commit_timestamp(xmin) end as committed_at
         from {} where id = $1 order by created_at limit 1",
        quoted(&outbox.table)
    );
    let (client, statement) = database.prepare(&sql).await?;
    let Some(id) = statement.params().first().and_then(|wanted| text_as(id, wanted)) else {
        return Ok(None);
    };
    let rows = in_time(client.query(&statement, &[&*id])).await?;
    rows.first().map(from_row).transpose()
}

fn from_row(row: &Row) -> Result<OutboxRow, SqlError> {
    let text = |index: usize| row.get::<_, Option<String>>(index).unwrap_or_default();
    let created_at =
        time_in(row, 4).ok_or_else(|| SqlError::Refused("the row's column created_at has no time".to_owned()))?;
    Ok(OutboxRow {
        id: text(0),
        aggregate_type: text(1),
        aggregate_id: text(2),
        event_type: text(3),
        created_at,
        committed_at: row.get(5),
    })
}
