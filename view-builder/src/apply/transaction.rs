//! The statements of a batch's transaction, all sent at once, and the question afterwards whether they were committed.

use futures_util::future::{OptionFuture, join, join_all, join3};
use service::clock::now_us;
use tokio_postgres::Error;
use tokio_postgres::types::ToSql;

use super::{Ended, GivenUp, Stumble, planted};
use crate::contract::Contracts;
use crate::contract::batch::Batch;
use crate::letters::store;
use crate::process::json::Json;
use crate::views::database::Session;
use crate::views::view::View;

/// Sends the whole transaction and waits for all answers; the first error is the cause of the others.
pub(super) async fn send(
    session: &Session,
    views: &[View],
    contracts: &Contracts,
    batch: &Batch,
) -> Result<(), Stumble> {
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
    let (move_first, move_last) = planted::first_or_last(client.execute(&session.move_positions, &move_parameters));
    let has_letters = keep.is_some();
    // A future is sent when it is polled first, and all are polled in this order.
    let ((begun, moved), rest) = join(
        join(
            client.batch_execute("begin isolation level read committed"),
            OptionFuture::from(move_first),
        ),
        async {
            planted::between_positions_and_views(client, has_letters).await?;
            let commit = planted::around_commit(client.batch_execute("commit"));
            Ok::<_, Error>(join3(OptionFuture::from(keep), join_all(applies), commit).await)
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
    Ok(planted::after_commit(move_last).await?)
}

/// How an earlier attempt ended, by the positions; none: it changed nothing.
pub(super) async fn settle(session: &Session, batch: &Batch) -> Result<Option<Ended>, Error> {
    if let Some(believed) = planted::believe_in_an_outcome().await? {
        return Ok(believed);
    }
    let moves = Moves::of(batch);
    let row = session
        .client
        .query_one(
            "select count(*) filter (where held.next_offset = wanted.new_offset) as at_its_end,
                    count(*) filter (where held.next_offset = wanted.old_offset) as at_its_beginning
             from view_positions as held
             join unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[])
                 as wanted(topic, partition, epoch, old_offset, new_offset)
                 using (topic, partition, epoch)",
            &[&moves.topic, &moves.partition, &moves.epoch, &moves.from, &moves.to],
        )
        .await?;
    let (at_its_end, at_its_beginning): (i64, i64) = (row.get("at_its_end"), row.get("at_its_beginning"));
    let is_all = |count: i64| usize::try_from(count) == Ok(batch.parts.len());
    Ok(if is_all(at_its_end) {
        tracing::info!("the connection was lost, and the batch has been committed, as its positions say");
        Some(Ended::Committed)
    } else if is_all(at_its_beginning) {
        tracing::info!("the connection was lost, and nothing of the batch has been committed, as its positions say");
        None
    } else {
        Some(Ended::GivenUp(GivenUp::Fenced))
    })
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

/// Parameters of `advance_view_positions`.
struct Moves<'a> {
    topic: Vec<&'a str>,
    partition: Vec<i32>,
    epoch: Vec<i64>,
    from: Vec<i64>,
    to: Vec<i64>,
    read_to: Vec<Option<i64>>,
    read_epoch: Vec<Option<i32>>,
    newest_event_us: Vec<Option<i64>>,
}

impl<'a> Moves<'a> {
    fn of(batch: &'a Batch) -> Self {
        let (parts, now_us) = (&batch.parts, now_us());
        Self {
            topic: parts.iter().map(|part| &*part.place.topic).collect(),
            partition: parts.iter().map(|part| part.place.partition).collect(),
            epoch: parts.iter().map(|part| part.epoch).collect(),
            from: parts.iter().map(|part| part.from).collect(),
            to: parts.iter().map(|part| part.to).collect(),
            read_to: parts.iter().map(|part| Some(part.read?.offset)).collect(),
            read_epoch: parts.iter().map(|part| Some(part.read?.epoch)).collect(),
            // A record can claim any time, and no event was committed later than now.
            newest_event_us: parts
                .iter()
                .map(|part| Some(part.newest_event_us()?.clamp(0, now_us)))
                .collect(),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 8] {
        [
            &self.topic,
            &self.partition,
            &self.epoch,
            &self.from,
            &self.to,
            &self.read_to,
            &self.read_epoch,
            &self.newest_event_us,
        ]
    }
}

/// Parameters of a view's `apply.sql`, as [`crate::views::view`] documents them.
#[derive(Default)]
pub(super) struct Columns<'a> {
    topic: Vec<&'a str>,
    pub(super) key: Vec<i64>,
    version: Vec<i64>,
    event_type: Vec<&'a str>,
    entity: Vec<Option<Json<'a>>>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(batch: &'a Batch, view: &View, contracts: &'a Contracts) -> Self {
        let events = batch.latest_events(&view.topics);
        Self {
            topic: events.iter().map(|(place, _)| &*place.topic).collect(),
            key: events.iter().map(|(_, event)| event.key).collect(),
            version: events.iter().map(|(_, event)| event.version).collect(),
            event_type: events
                .iter()
                // Each topic of a view has a contract, or the view would not have been loaded.
                .map(|(place, event)| contracts[&*place.topic].event_type(event.change))
                .collect(),
            entity: events
                .iter()
                .map(|(_, event)| event.entity.as_deref().map(Json))
                .collect(),
        }
    }

    pub(super) fn parameters(&self) -> [&(dyn ToSql + Sync); 5] {
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
