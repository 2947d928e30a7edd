//! The planted bugs and the failpoints of a batch's transaction. Without the feature `faults` none of them is there.

use std::future::Future;

use futures_util::future::{OptionFuture, join};
use tokio_postgres::{Client, Error};

use super::Ended;
use crate::process::faults::{self, Bug};

/// What an attempt believes of the one before without a look at the positions: a bug, so it is `None` in a right builder.
pub(super) async fn believe_in_an_outcome() -> Result<Option<Option<Ended>>, Error> {
    faults::point("settle.before").await?;
    if faults::is_planted(Bug::UnknownIsFailed) {
        return Ok(Some(None));
    }
    if faults::is_planted(Bug::UnknownIsDone) {
        return Ok(Some(Some(Ended::Committed)));
    }
    Ok(None)
}

/// The move of the positions, where it comes first, as it must; and where it comes after the commit.
pub(super) fn first_or_last<F>(move_positions: F) -> (Option<F>, Option<F>) {
    if faults::is_planted(Bug::PositionLast) {
        (None, Some(move_positions))
    } else {
        (Some(move_positions), None)
    }
}

pub(super) async fn between_positions_and_views(client: &Client, has_letters: bool) -> Result<(), Error> {
    faults::point("positions.sent").await?;
    if faults::is_planted(Bug::PositionFirst) {
        client.batch_execute("commit; begin").await?;
        faults::point("positions.committed").await?;
    }
    if has_letters {
        faults::point("letters.before").await?;
    }
    Ok(())
}

/// Sends `commit` between two failpoints.
pub(super) async fn around_commit(commit: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    faults::point("views.sent").await?;
    let (committed, sent) = join(commit, faults::point("commit.sent")).await;
    sent.and(committed)
}

pub(super) async fn after_commit(late_move: Option<impl Future<Output = Result<u64, Error>>>) -> Result<(), Error> {
    faults::point("commit.answered").await?;
    OptionFuture::from(late_move).await.transpose().map(|_| ())
}

/// Whether a builder waits for ever where a view's function raises a state of a lost connection.
pub(super) fn takes_any_state_for_a_lost_connection() -> bool {
    faults::is_planted(Bug::UnknownStatesBlock)
}
