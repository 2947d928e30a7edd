//! Applies a batch in one transaction of Postgres: the positions move first, then each view applies the events.
//!
//! Why it is exactly once:
//! - positions and views commit together, so neither is ever ahead of the other;
//! - the position moves only from where this process believes it and under the epoch of its claim: after another
//!   process has claimed the partition, or has applied the same events, the first statement fails, and with it the rest;
//! - the row lock of that first statement makes a claim wait for a transaction that is under way;
//! - if the answer to COMMIT is lost, the position tells whether the commit happened.
//!
//! Records that cannot be applied go to the dead letters in the same transaction, see [`crate::letters`]. `hunt.rs` says what
//! happens to a batch that Postgres refuses.
//!
//! All statements are sent at once, so a batch costs one round trip.

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
use tries::{Suspicion, Tries};

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The positions that were reached.
    pub reached: Vec<(TopicPartition, i64)>,
    /// The events that Postgres refuses. From such an event on, nothing of its partition is applied.
    pub refused: Vec<RefusedEvent>,
    /// Why nothing more was applied.
    pub given_up: Option<GivenUp>,
}

/// Why a batch was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// Another builder owns one of the partitions.
    Fenced,
    /// The batch parks events behind dead letters that may be gone by now. These are the keys of the parked events.
    OtherLetters(Vec<(TopicPartition, Bytes)>),
}

/// How one transaction ended.
enum Ended {
    Committed,
    GivenUp(GivenUp),
    Failed(Failed),
}

/// Why a transaction did not commit after all its tries.
#[derive(Clone, Debug)]
struct Failed {
    kind: Kind,
    /// SQLSTATE.
    state: String,
    /// Without a row's values.
    reason: String,
    /// The view whose statement failed. `None`: another part of the transaction failed, or it is not known which.
    view: Option<String>,
}

impl Failed {
    fn from_error(err: &Error, kind: Kind, view: Option<String>) -> Self {
        Self {
            kind,
            state: refusal::state(err),
            reason: refusal::without_values(err),
            view,
        }
    }

    fn connection_lost() -> Self {
        Self {
            kind: Kind::Away,
            state: "connection".to_owned(),
            reason: "the connection to Postgres is lost with this event each time".to_owned(),
            view: None,
        }
    }
}

/// An error of one statement of a transaction.
struct Stumble {
    err: Error,
    /// The index of the view whose statement failed. `None`: the statement belongs to no view.
    view: Option<usize>,
}

impl From<Error> for Stumble {
    fn from(err: Error) -> Self {
        Self { err, view: None }
    }
}

impl Database {
    /// Tries the batch until it commits, or until another try is of no use.
    async fn transact(&mut self, batch: &Batch, suspicion: Suspicion) -> Ended {
        // After a lost connection the earlier attempt may have committed.
        let mut may_have_committed = false;
        let mut loses_the_connection = false;
        let mut tries = Tries::new(suspicion);
        loop {
            // If the session has to be opened anew, this may change `self.views`. So they are read after it.
            self.session().await;
            let (views, contracts) = (self.views.clone(), self.contracts.clone());
            let session = self.session().await;
            let attempt = async {
                faults::point("batch.before").await?;
                if may_have_committed && let Some(ended) = transaction::settle(session, batch).await? {
                    return Ok(ended);
                }
                if loses_the_connection {
                    return Ok(Ended::Failed(Failed::connection_lost()));
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
                    return Ended::Failed(Failed::from_error(&err, kind, view));
                }
                Kind::Passing(passing) => passing,
                Kind::Away if is_raised_by_a_view(&err, view.as_deref()) => {
                    // The connection still works. Still, the next try gets a new session.
                    self.session = None;
                    Passing::Limit
                }
                Kind::Away => {
                    measure::failed(&refusal::state(&err));
                    may_have_committed = true;
                    loses_the_connection |= refusal::is_lost(&err) && tries.count_lost_connection();
                    self.wait(&err).await;
                    continue;
                }
            };
            measure::failed(&refusal::state(&err));
            if passing == Passing::Conflict {
                measure::conflict();
            }
            match tries.pause_after(passing) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Ended::Failed(Failed::from_error(&err, Kind::Passing(passing), view)),
            }
        }
    }
}

/// Whether a view's function has raised the SQLSTATE of a lost connection. Then the session still works, unlike one that is really lost.
fn is_raised_by_a_view(err: &Error, view: Option<&str>) -> bool {
    view.is_some() && refusal::goes_on(err) && !planted::takes_any_state_for_a_lost_connection()
}
