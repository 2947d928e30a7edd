//! A batch becomes one transaction of Postgres: the positions move first, then each view applies the events.
//!
//! Why it is exactly once:
//! - positions and views commit together, so neither is ever ahead of the other;
//! - the position moves only from where this process believes it and under the epoch of its claim: after another
//!   process has claimed the partition, or has applied the same events, the first statement fails, and with it the rest;
//! - the row lock of that first statement makes a claim wait for a transaction that is under way;
//! - where the answer to COMMIT is lost, the position tells whether it happened.
//!
//! Records that cannot be applied go to the dead letters in the same transaction, see [`crate::letters`]. What becomes of a batch that
//! Postgres refuses is told in `hunt.rs`.
//!
//! All statements are sent at once and answered together: one round trip for a batch.

mod ages;
mod hunt;
mod planted;
mod rehearsal;
mod transaction;
mod tries;
mod verdict;

use bytes::Bytes;
use tokio_postgres::Error;

use crate::contract::batch::{Batch, RefusedEvent};
use crate::contract::place::TopicPartition;
use crate::postgres::refusal::{self, Kind, Passing};
use crate::process::faults;
use crate::process::measure;
use crate::views::database::Database;
pub(crate) use transaction::apply_views;
use tries::Tries;

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The positions that were reached.
    pub reached: Vec<(TopicPartition, i64)>,
    /// The events that Postgres refuses. Nothing of their partitions from them on is applied.
    pub refused: Vec<RefusedEvent>,
    /// Why nothing more was applied.
    pub given_up: Option<GivenUp>,
}

/// Why a batch was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// Another builder owns one of the partitions.
    Fenced,
    /// A key that the batch takes to wait may wait no longer: these are the keys.
    OtherLetters(Vec<(TopicPartition, Bytes)>),
}

/// How one transaction ended.
enum Ended {
    Committed,
    GivenUp(GivenUp),
    Failed(Failed),
}

/// Why a transaction did not commit, however often it was tried.
#[derive(Clone, Debug)]
struct Failed {
    kind: Kind,
    /// SQLSTATE.
    state: String,
    /// Without values.
    reason: String,
    /// The view whose statement failed; none: another part of the transaction did, or it is not known.
    view: Option<String>,
}

impl Failed {
    fn of(err: &Error, kind: Kind, view: Option<String>) -> Self {
        Self {
            kind,
            state: refusal::state(err),
            reason: refusal::without_values(err),
            view,
        }
    }

    fn lost() -> Self {
        Self {
            kind: Kind::Away,
            state: "connection".to_owned(),
            reason: "the connection to Postgres is lost with this event each time".to_owned(),
            view: None,
        }
    }
}

/// An error of a transaction's statement.
struct Stumble {
    err: Error,
    /// The index among the views of the one whose statement it is.
    view: Option<usize>,
}

impl From<Error> for Stumble {
    fn from(err: Error) -> Self {
        Self { err, view: None }
    }
}

impl Database {
    /// Tries the batch until it commits, or until trying is of no use. `is_piece`: the batch that it belongs to has failed already.
    async fn transact(&mut self, batch: &Batch, is_piece: bool) -> Ended {
        // After a lost connection the earlier attempt may have committed.
        let mut unknown = false;
        let mut is_lost = false;
        let mut tries = Tries::of(is_piece);
        loop {
            // A session that is made anew may have taken up other views.
            self.session().await;
            let (views, contracts) = (self.views.clone(), self.contracts.clone());
            let session = self.session().await;
            let attempt = async {
                faults::point("batch.before").await?;
                if unknown && let Some(ended) = transaction::settle(session, batch).await? {
                    return Ok(ended);
                }
                if is_lost {
                    return Ok(Ended::Failed(Failed::lost()));
                }
                transaction::send(session, &views, &contracts, batch).await?;
                Ok(Ended::Committed)
            };
            let Stumble { err, view } = match attempt.await {
                Ok(ended) => return ended,
                Err(stumble) => stumble,
            };
            let view = view.and_then(|at| views.get(at)).map(|view| view.name.clone());
            let passing = match refusal::kind(&err) {
                Kind::Fenced => return Ended::GivenUp(GivenUp::Fenced),
                Kind::OtherLetters => return Ended::GivenUp(GivenUp::OtherLetters(batch.parked_keys())),
                kind @ (Kind::Refused | Kind::Ambiguous) => {
                    measure::failed(&refusal::state(&err));
                    return Ended::Failed(Failed::of(&err, kind, view));
                }
                Kind::Passing(passing) => passing,
                Kind::Away if is_raised_by_a_view(&err, view.as_deref()) => {
                    // The connection is there, and still the next try gets a session of its own.
                    self.session = None;
                    Passing::Limit
                }
                Kind::Away => {
                    measure::failed(&refusal::state(&err));
                    unknown = true;
                    is_lost |= refusal::is_lost(&err) && tries.lost();
                    self.wait(&err).await;
                    continue;
                }
            };
            measure::failed(&refusal::state(&err));
            if passing == Passing::Conflict {
                measure::conflict();
            }
            match tries.failed(passing) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Ended::Failed(Failed::of(&err, Kind::Passing(passing), view)),
            }
        }
    }
}

/// Whether a view's function has raised the state of a lost connection. Then the session goes on, which a lost one does not.
fn is_raised_by_a_view(err: &Error, view: Option<&str>) -> bool {
    view.is_some() && refusal::goes_on(err) && !planted::takes_any_state_for_a_lost_connection()
}
