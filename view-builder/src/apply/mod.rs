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
mod rehearsal;
mod tries;
mod verdict;

use bytes::Bytes;
use futures_util::future::{OptionFuture, join, join_all, join3};
use tokio_postgres::Error;
use tokio_postgres::types::ToSql;

use crate::contract::Contracts;
use crate::contract::batch::Batch;
use crate::contract::batch::Refused;
use crate::contract::place::TopicPartition;
use crate::letters::store;
use crate::postgres::refusal::{self, Kind, Passing};
use crate::process::faults::{self, Bug};
use crate::process::json::Json;
use crate::process::measure;
use crate::views::database::{Database, Session};
use crate::views::view::View;
use tries::Tries;

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The positions that were reached.
    pub reached: Vec<(TopicPartition, i64)>,
    /// The events that Postgres refuses. Nothing of their partitions from them on is applied.
    pub refused: Vec<Refused>,
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
    /// The place among the views of the one whose statement it is.
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
                if unknown && let Some(ended) = settle(session, batch).await? {
                    return Ok(ended);
                }
                if is_lost {
                    return Ok(Ended::Failed(Failed::lost()));
                }
                send(session, &views, &contracts, batch).await?;
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
                // A state of a lost connection that a view's function has raised. The next try has a session of its own all the same.
                Kind::Away
                    if view.is_some() && refusal::goes_on(&err) && !faults::is_planted(Bug::UnknownStatesBlock) =>
                {
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

/// Sends the whole transaction and waits for all answers; the first error is the cause of the others.
async fn send(session: &Session, views: &[View], contracts: &Contracts, batch: &Batch) -> Result<(), Stumble> {
    let client = &session.client;
    let moves = Moves::of(batch);
    let columns: Vec<Columns<'_>> = views.iter().map(|view| Columns::of(batch, view, contracts)).collect();
    let move_parameters = moves.parameters();
    let apply_parameters: Vec<_> = columns.iter().map(Columns::parameters).collect();
    let applies = session
        .apply
        .iter()
        .zip(&columns)
        .zip(&apply_parameters)
        .enumerate()
        .filter(|(_, ((_, columns), _))| !columns.key.is_empty())
        .map(|(view, ((statement, _), parameters))| async move {
            let applied = client.execute(statement, parameters).await;
            applied.map_err(|err| Stumble { err, view: Some(view) })
        });
    let letters = store::Columns::of(batch);
    let letter_parameters = letters.parameters();
    let keep = (!letters.topic.is_empty()).then(|| client.execute(&session.keep_letters, &letter_parameters));
    let is_moved_last = faults::is_planted(Bug::PositionLast);
    let move_positions = || client.execute(&session.move_positions, &move_parameters);
    // A future is sent when it is polled first, and all are polled in this order.
    let ((begun, moved), rest) = join(
        join(
            client.batch_execute("begin isolation level read committed"),
            OptionFuture::from((!is_moved_last).then(move_positions)),
        ),
        async {
            faults::point("positions.sent").await?;
            if faults::is_planted(Bug::PositionFirst) {
                client.batch_execute("commit; begin").await?;
                faults::point("positions.committed").await?;
            }
            if keep.is_some() {
                faults::point("letters.before").await?;
            }
            let (kept, applied, committed) = join3(OptionFuture::from(keep), join_all(applies), async {
                faults::point("views.sent").await?;
                let (committed, sent) = join(client.batch_execute("commit"), faults::point("commit.sent")).await;
                sent.and(committed)
            })
            .await;
            Ok::<_, Error>((kept, applied, committed))
        },
    )
    .await;
    begun?;
    moved.transpose()?;
    let (kept, applied, committed) = rest?;
    kept.transpose()?;
    for statement in applied {
        statement?;
    }
    committed?;
    faults::point("commit.answered").await?;
    if is_moved_last {
        move_positions().await?;
    }
    Ok(())
}

/// Applies the batch's events to all views, in the transaction that is open.
pub(crate) async fn apply_views(
    session: &Session,
    views: &[View],
    contracts: &Contracts,
    batch: &Batch,
) -> Result<(), Error> {
    for (view, statement) in views.iter().zip(&session.apply) {
        let columns = Columns::of(batch, view, contracts);
        if !columns.key.is_empty() {
            session.client.execute(statement, &columns.parameters()).await?;
        }
    }
    Ok(())
}

/// How an earlier attempt ended, by the positions; none: it changed nothing.
async fn settle(session: &Session, batch: &Batch) -> Result<Option<Ended>, Error> {
    faults::point("settle.before").await?;
    if faults::is_planted(Bug::UnknownIsFailed) {
        return Ok(None);
    } else if faults::is_planted(Bug::UnknownIsDone) {
        return Ok(Some(Ended::Committed));
    }
    let moves = Moves::of(batch);
    let row = session
        .client
        .query_one(
            "select count(*) filter (where held.next_offset = wanted.new_offset),
                    count(*) filter (where held.next_offset = wanted.old_offset)
             from view_positions as held
             join unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[])
                 as wanted(topic, partition, epoch, old_offset, new_offset)
                 using (topic, partition, epoch)",
            &[&moves.topic, &moves.partition, &moves.epoch, &moves.from, &moves.to],
        )
        .await?;
    let all = i64::try_from(batch.parts.len()).unwrap_or(i64::MAX);
    Ok(if row.get::<_, i64>(0) == all {
        tracing::info!("the connection was lost, and the batch has been committed, as its positions say");
        Some(Ended::Committed)
    } else if row.get::<_, i64>(1) == all {
        tracing::info!("the connection was lost, and nothing of the batch has been committed, as its positions say");
        None
    } else {
        Some(Ended::GivenUp(GivenUp::Fenced))
    })
}

/// Parameters of `advance_view_positions`.
struct Moves<'a> {
    topic: Vec<&'a str>,
    partition: Vec<i32>,
    epoch: Vec<i64>,
    from: Vec<i64>,
    to: Vec<i64>,
    read_to: Vec<Option<i64>>,
    read_epoch: Vec<Option<i32>>,
}

impl<'a> Moves<'a> {
    fn of(batch: &'a Batch) -> Self {
        let parts = &batch.parts;
        Self {
            topic: parts.iter().map(|part| &*part.place.topic).collect(),
            partition: parts.iter().map(|part| part.place.partition).collect(),
            epoch: parts.iter().map(|part| part.epoch).collect(),
            from: parts.iter().map(|part| part.from).collect(),
            to: parts.iter().map(|part| part.to).collect(),
            read_to: parts.iter().map(|part| Some(part.read?.offset)).collect(),
            read_epoch: parts.iter().map(|part| Some(part.read?.epoch)).collect(),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 7] {
        [
            &self.topic,
            &self.partition,
            &self.epoch,
            &self.from,
            &self.to,
            &self.read_to,
            &self.read_epoch,
        ]
    }
}

/// Parameters of a view's `apply.sql`, as [`crate::views::view`] documents them.
#[derive(Default)]
struct Columns<'a> {
    topic: Vec<&'a str>,
    key: Vec<i64>,
    version: Vec<i64>,
    event_type: Vec<&'a str>,
    entity: Vec<Option<Json<'a>>>,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a Batch, view: &View, contracts: &'a Contracts) -> Self {
        let events = batch.latest(&view.topics);
        Self {
            topic: events.iter().map(|(place, _)| &*place.topic).collect(),
            key: events.iter().map(|(_, event)| event.key).collect(),
            version: events.iter().map(|(_, event)| event.version).collect(),
            event_type: events
                .iter()
                .map(|(place, event)| {
                    contracts
                        .get(&*place.topic)
                        .map_or("", |contract| contract.event_type(event.change))
                })
                .collect(),
            entity: events
                .iter()
                .map(|(_, event)| event.entity.as_deref().map(Json))
                .collect(),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.topic, &self.key, &self.version, &self.event_type, &self.entity]
    }
}

impl Session {
    /// Runs each view's statement without any event, and rolls back: a view that fails here fails whatever comes.
    ///
    /// # Errors
    /// One of them fails.
    pub(crate) async fn rehearse_nothing(&self) -> Result<(), Error> {
        let nothing = Columns::default();
        self.client.batch_execute("begin").await?;
        let mut done = Ok(());
        for statement in &self.apply {
            done = self.client.execute(statement, &nothing.parameters()).await.map(|_| ());
            if done.is_err() {
                break;
            }
        }
        self.client.batch_execute("rollback").await?;
        done
    }
}
