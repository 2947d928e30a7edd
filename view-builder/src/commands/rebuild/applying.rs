//! Applies a batch to a generation.
//!
//! A batch that Postgres refuses is applied in halves, as a builder does it. A statement may refuse events together that it takes one by one. An
//! event that is refused alone ends the rebuild. The live view has this event, so the new SQL is to blame, and the event must not become a dead
//! letter. Only a lost connection is retried for ever.

use std::time::Duration;

use tokio_postgres::Error;

use super::fill::Fill;
use super::letters;
use super::trouble::Trouble;
use crate::apply::apply_views;
use crate::contract::batch::Batch;
use crate::postgres::refusal::{self, Kind, Remedy};
use crate::process::faults::{self, Bug};
use crate::views::database::Session;
use crate::views::view::View;

/// Pause before the second attempt. Each later pause is longer by the same time.
const PAUSE: Duration = Duration::from_millis(200);

impl Fill {
    /// Applies the batch and moves the generation's positions: in one transaction, if Postgres takes the whole batch.
    pub(super) async fn commit(&self, session: &Session, view: &View, batch: Batch) -> Result<(), Trouble> {
        let mut waiting = vec![batch];
        let mut is_whole = true;
        while let Some(batch) = waiting.pop() {
            let Some(err) = self.attempt(session, view, &batch, is_whole).await? else {
                continue;
            };
            is_whole = false;
            match batch.split() {
                Ok((first, second)) => waiting.extend([second, first]),
                Err(single) => return Err(trouble_of_refused_event(session, view, &single, &err).await?),
            }
        }
        if !is_whole {
            // After a crash before this, the same events are applied again, which changes nothing.
            self.save(&session.client, view).await?;
        }
        Ok(faults::point("fill.committed").await?)
    }

    /// Applies these events. `saves_positions`: in the same transaction also moves the positions. Returns the error if Postgres refuses the events.
    async fn attempt(
        &self,
        session: &Session,
        view: &View,
        batch: &Batch,
        saves_positions: bool,
    ) -> Result<Option<Error>, Trouble> {
        let mut attempts = 0;
        loop {
            let Err(err) = self.transact(session, view, batch, saves_positions).await else {
                return Ok(None);
            };
            attempts += 1;
            match remedy(&err) {
                Remedy::Reconnect => return Err(err.into()),
                Remedy::Again(attempts_max) if attempts < attempts_max => tokio::time::sleep(PAUSE * attempts).await,
                Remedy::Again(_) | Remedy::Mend => return Ok(Some(err)),
            }
        }
    }

    async fn transact(
        &self,
        session: &Session,
        view: &View,
        batch: &Batch,
        saves_positions: bool,
    ) -> Result<(), Error> {
        let client = &session.client;
        client.batch_execute("begin").await?;
        let committed = async {
            apply_views(session, std::slice::from_ref(view), &self.contracts, batch).await?;
            if saves_positions {
                self.save(client, view).await?;
            }
            faults::point("fill.applied").await?;
            // A deferred constraint is checked here.
            client.batch_execute("commit").await
        }
        .await;
        if committed.is_err() && !client.is_closed() {
            client.batch_execute("rollback").await?;
        }
        committed
    }
}

/// Decides what to do about a single event that Postgres refuses.
async fn trouble_of_refused_event(
    session: &Session,
    view: &View,
    single: &Batch,
    err: &Error,
) -> Result<Trouble, Error> {
    let mut at = String::new();
    if let Some(part) = single.parts.first() {
        let offset = part.events.first().map_or(part.from, |event| event.offset);
        if letters::was_applied(&session.client, &part.place, offset).await? {
            return Ok(Trouble::MustLeaveOut(part.place.clone(), offset));
        }
        at = format!(" at {} offset {offset}", part.place);
    }
    let what_to_do = match refusal::remedy(err) {
        Remedy::Mend => "mend the view's SQL",
        Remedy::Again(_) | Remedy::Reconnect => "see what Postgres lacks (its log tells)",
    };
    let message = format!(
        "the event{at} is {}; the live view is as it was: {what_to_do} and run rebuild again",
        refusal::without_values(err)
    );
    Ok(Trouble::Final(view.apply.refused(None, &message).into()))
}

/// What to do about the error. The planted bug treats every error as a lost connection, unless Postgres refuses the data.
fn remedy(err: &Error) -> Remedy {
    if faults::is_planted(Bug::RefusedByDataAlone) && refusal::kind(err) != Kind::Refused {
        return Remedy::Reconnect;
    }
    refusal::remedy(err)
}
