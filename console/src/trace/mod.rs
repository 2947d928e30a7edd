//! One event's way: the outbox row, the commit, the record in its topic, and what each view has made of it.
//!
//! No index is kept for this. Each step leads to the next one by what is indexed already:
//! - an id leads to its outbox row by the table's primary key, as long as the row is kept;
//! - the row's time and key lead to the record by Kafka's index of times: the relay gives each record the time of its commit, and all records of a key are in one
//!   partition;
//! - a record's topic, partition and offset lead to the views' positions and letters by their primary keys;
//! - a key leads to its latest event by the view's row, which has the version and the time of the newest event applied, and by the position behind which newer ones lie.

mod find;
mod outbox;
mod views;

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use self::find::{Found, Hint};
pub use self::outbox::OutboxRow;
pub use self::views::{State, ViewRowNow, ViewState};
use crate::postgres::{Databases, SqlError};
use crate::search::reader::Reader;
use crate::search::record::Record;
use crate::search::{Readers, parked};
use crate::settings::{Outbox, Pipeline};
use crate::snapshot::{Part, Snapshot};

/// A trace is over after so long, whatever it does not know then. With all parts there it needs some milliseconds.
const TIME_LIMIT: Duration = Duration::from_millis(1_500);

/// What a trace begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// An event's id.
    Id(String),
    /// A record.
    Place { topic: String, partition: i32, offset: i64 },
    /// The latest event of a key.
    Key { topic: String, key: String },
}

/// One event's way, as far as it is known.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The outbox that the event is of.
    pub outbox: Option<String>,
    pub row: RowStep,
    pub record: RecordStep,
    /// What each view has made of the record; empty while there is no record.
    pub views: Result<Vec<ViewState>, String>,
}

/// What is known of the outbox row.
#[derive(Clone, Debug)]
pub enum RowStep {
    Found(OutboxRow),
    /// There is no row of this id in the outboxes with these names: it was removed, or never was.
    Gone(Vec<String>),
    /// Nobody could ask for it, for this reason.
    Unknown(String),
}

/// What is known of the record.
#[derive(Clone, Debug)]
pub enum RecordStep {
    Found(Box<Record>),
    /// The relay has put the row aside.
    Parked(parked::ParkedRow),
    /// It is not in the topic: the sentence says where was looked, and what that means.
    NotFound(String),
    /// Nothing was found out, for this reason.
    Unknown(String),
}

/// What a trace asks.
pub struct Sources<'s> {
    pub pipeline: &'s Pipeline,
    pub databases: &'s Databases,
    pub readers: &'s Readers,
    /// What is away is not asked.
    pub snapshot: &'s Snapshot,
}

/// The sources for one trace.
struct Tracer<'s> {
    sources: &'s Sources<'s>,
    deadline: Instant,
}

impl Sources<'_> {
    /// Follows one event. Answers within [`TIME_LIMIT`], also with parts away: what could not be learned says why.
    pub async fn trace(&self, ask: &Ask) -> Trace {
        let tracer = Tracer {
            sources: self,
            deadline: Instant::now() + TIME_LIMIT,
        };
        tracer.trace(ask).await
    }
}

impl Tracer<'_> {
    /// Reads from Kafka, if it is there, up to the deadline.
    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Reader) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        if_there(&self.sources.snapshot.kafka)?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let read = self.in_time(Box::pin(self.sources.readers.run(left, job))).await?;
        read.map_err(|err| err.to_string())
    }

    /// Asks the views' database, if it is there, up to the deadline.
    async fn ask_views<T>(&self, question: impl Future<Output = Result<T, SqlError>>) -> Result<T, String> {
        if_there(&self.sources.snapshot.views)?;
        self.in_time(question).await?.map_err(|err| err.to_string())
    }

    /// The outbox row of this id. `None`: there is none.
    async fn row_of(&self, outbox: &Outbox, id: &str) -> Result<Option<OutboxRow>, String> {
        let mut parts = self.sources.snapshot.outboxes.iter();
        if let Some(parts) = parts.find(|parts| parts.name == outbox.name) {
            if_there(&parts.database)?;
        }
        let row = self
            .in_time(Box::pin(outbox::row_of(self.sources.databases, outbox, id)))
            .await?;
        row.map_err(|err| err.to_string())
    }

    /// The answers that come here are large, so they are boxed.
    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, String> {
        let in_time = tokio::time::timeout_at(self.deadline, answer).await;
        in_time.map_err(|_| "there was no time left to ask".to_owned())
    }

    async fn trace(&self, ask: &Ask) -> Trace {
        match ask {
            Ask::Id(id) => self.trace_id(id).await,
            Ask::Place {
                topic,
                partition,
                offset,
            } => {
                let (name, partition, offset) = (topic.clone(), *partition, *offset);
                let read = self.read(move |reader| reader.record_at(&name, partition, offset));
                let record = match read.await {
                    Ok(Some(record)) if record.offset == offset => RecordStep::Found(Box::new(record)),
                    Ok(_) => RecordStep::NotFound(format!(
                        "{topic} has nothing to read at {partition}/{offset}: it is the end of a transaction, the record was removed, or the partition does not reach so far."
                    )),
                    Err(reason) => RecordStep::Unknown(reason),
                };
                self.trace_record(topic, record).await
            }
            Ask::Key { topic, key } => {
                let record = match self.latest_of_key(topic, key).await {
                    Ok(Found::Record(record)) => RecordStep::Found(record),
                    Ok(Found::Nothing(where_looked)) => RecordStep::NotFound(where_looked),
                    Err(reason) => RecordStep::Unknown(reason),
                };
                self.trace_record(topic, record).await
            }
        }
    }

    async fn trace_id(&self, id: &str) -> Trace {
        let outboxes = self.sources.pipeline.outboxes.iter();
        let rows = outboxes.map(|outbox| async move { (outbox, self.row_of(outbox, id).await) });
        let (mut names, mut failures) = (Vec::new(), Vec::new());
        for (outbox, row) in join_all(rows).await {
            match row {
                Ok(Some(row)) => return self.trace_row(outbox, row).await,
                Ok(None) => names.push(outbox.name.clone()),
                Err(err) => failures.push(format!("outbox {}: {err}", outbox.name)),
            }
        }
        let row = if failures.is_empty() {
            RowStep::Gone(names)
        } else {
            RowStep::Unknown(failures.join("; "))
        };
        Trace {
            outbox: None,
            row,
            record: RecordStep::NotFound(
                "Without the outbox row nothing says when the event was written or of which key it is, so Kafka's index of times does not help. A search of the \
                 topic by the id looks at each record; with the key it looks at one partition, and with a time it begins there."
                    .to_owned(),
            ),
            views: Ok(Vec::new()),
        }
    }

    async fn trace_row(&self, outbox: &Outbox, row: OutboxRow) -> Trace {
        let hint = Hint::of_row(outbox, &row);
        let found = self.read(move |reader| find::by_row(reader, &hint)).await;
        let record = match found {
            Ok(Found::Record(record)) => RecordStep::Found(record),
            Ok(Found::Nothing(where_looked)) => self.parked_or(&row, where_looked).await,
            Err(reason) => RecordStep::Unknown(reason),
        };
        let views = self.views_of(&record).await;
        Trace {
            outbox: Some(outbox.name.clone()),
            row: RowStep::Found(row),
            record,
            views,
        }
    }

    /// A row without a record may be one that the relay has put aside.
    async fn parked_or(&self, row: &OutboxRow, where_looked: String) -> RecordStep {
        let parked = match self.read(parked::read).await {
            Ok(parked) => parked,
            Err(reason) => {
                return RecordStep::NotFound(format!(
                    "{where_looked} Whether the relay has parked the row is not known: {reason}."
                ));
            }
        };
        let mut rows = parked.rows.into_iter();
        match rows.find(|parked| parked.id.as_deref() == Some(row.id.as_str())) {
            Some(parked) => RecordStep::Parked(parked),
            None if parked.is_cut_short || parked.not_understood > 0 => RecordStep::NotFound(format!(
                "{where_looked} Whether the relay has parked the row is not known: not all of the parking topic could be read."
            )),
            None => RecordStep::NotFound(where_looked),
        }
    }

    async fn trace_record(&self, topic: &str, record: RecordStep) -> Trace {
        let outbox = self.sources.pipeline.outbox_of(topic);
        let id = match &record {
            RecordStep::Found(record) => record.event_id().map(str::to_owned),
            _ => None,
        };
        let row = async {
            match (outbox, id) {
                (None, _) => RowStep::Unknown(format!("no outbox of the settings has the topic {topic}")),
                (Some(_), None) => RowStep::Unknown("there is no record with an id to look for".to_owned()),
                (Some(outbox), Some(id)) => match self.row_of(outbox, &id).await {
                    Ok(Some(row)) => RowStep::Found(row),
                    Ok(None) => RowStep::Gone(vec![outbox.name.clone()]),
                    Err(reason) => RowStep::Unknown(reason),
                },
            }
        };
        let (row, views) = tokio::join!(row, self.views_of(&record));
        Trace {
            outbox: outbox.map(|outbox| outbox.name.clone()),
            row,
            record,
            views,
        }
    }

    async fn views_of(&self, record: &RecordStep) -> Result<Vec<ViewState>, String> {
        let RecordStep::Found(record) = record else {
            return Ok(Vec::new());
        };
        let (database, rows) = (self.sources.databases.views(), &self.sources.pipeline.views.rows);
        self.ask_views(Box::pin(views::states_of(database, rows, record))).await
    }

    async fn latest_of_key(&self, topic: &str, key: &str) -> Result<Found, String> {
        let count_of = topic.to_owned();
        let (database, rows) = (self.sources.databases.views(), &self.sources.pipeline.views.rows);
        let count = self.read(move |reader| reader.partition_count(&count_of));
        let row = self.ask_views(Box::pin(views::row_of_key(database, rows, topic, key)));
        let (count, row) = tokio::join!(count, row);
        let Some(count) = count? else {
            return Ok(Found::Nothing(format!("Kafka has no topic {topic}.")));
        };
        let partition = outbox_router::partition_of_key(key.as_bytes(), count);
        let known = views::known_of_key(database, topic, partition, key.as_bytes());
        let known = self.ask_views(Box::pin(known)).await;
        // Without the views' database the partition is looked through from its end.
        let latest = find::LatestOfKey {
            topic: topic.to_owned(),
            partition,
            key: key.as_bytes().to_vec(),
            known: known.ok(),
            row: row.ok().flatten(),
        };
        self.read(move |reader| find::latest_of_key(reader, &latest)).await
    }
}

/// # Errors
/// Says why the part did not answer when it was last asked.
fn if_there<T>(part: &Part<T>) -> Result<(), String> {
    match &part.away {
        None => Ok(()),
        Some(away) => Err(format!("{} is away: {}", part.name, away.why)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, if_there};

    #[test]
    fn a_part_that_is_away_is_not_asked() {
        let mut part = Part::new("kafka".to_owned());
        assert_eq!(if_there(&part), Ok(()), "nobody has asked it yet");
        part.take(Err("silent".to_owned()));
        assert_eq!(if_there(&part), Err("kafka is away: silent".to_owned()));
        part.take(Ok(1));
        assert_eq!(if_there(&part), Ok(()));
    }
}
