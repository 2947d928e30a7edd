//! Applying events to see whether it would work: everything is rolled back.

use tokio_postgres::Error;

use super::Stumble;
use super::transaction::Columns;
use crate::contract::Contracts;
use crate::contract::batch::Batch;
use crate::views::database::Session;
use crate::views::view::View;

/// A rehearsal waits for nobody for long: what it waits for says nothing about the event.
const BEGIN: &str = "begin isolation level read committed; set local lock_timeout = '1s'";

/// Room that has to be there for the server to count as not full, bytes.
const ROOM_BYTES: i32 = 1_048_576;

/// Applies the batch's events to those views that `which` names by their places, one after the other, checks what is deferred after each,
/// and rolls back. A view without an event in the batch is left out, unless there is none in the batch at all.
pub(super) async fn rehearse(
    session: &Session,
    views: &[View],
    contracts: &Contracts,
    batch: &Batch,
    which: impl Fn(usize) -> bool,
) -> Result<(), Stumble> {
    session.client.batch_execute(BEGIN).await?;
    let mut outcome = Ok(());
    for (at, (view, statement)) in views.iter().zip(&session.apply).enumerate() {
        let columns = Columns::of(batch, view, contracts);
        if !which(at) || (columns.key.is_empty() && batch.event_count() > 0) {
            continue;
        }
        let done = async {
            session.client.execute(statement, &columns.parameters()).await?;
            session.client.batch_execute("set constraints all immediate").await
        };
        if let Err(err) = done.await {
            outcome = Err(Stumble { err, view: Some(at) });
            break;
        }
    }
    session.client.batch_execute("rollback").await?;
    outcome
}

/// Whether Postgres has room to write. Rolled back as well.
pub(super) async fn has_room(session: &Session) -> Result<bool, Error> {
    session.client.batch_execute(BEGIN).await?;
    let wrote = session
        .client
        .batch_execute(&format!(
            "create temporary table view_builder_room (filler text) on commit drop;
             alter table view_builder_room alter column filler set storage external;
             insert into view_builder_room values (repeat('x', {ROOM_BYTES}))"
        ))
        .await;
    session.client.batch_execute("rollback").await?;
    Ok(wrote.is_ok())
}
