//! Finds rows that Kafka would refuse before they are sent: by the settings of their topic, and by what the broker has refused before.

use std::collections::HashMap;

use events::Position;
use service::clock::now_us;

use crate::kafka::{Breach, Destination, NoDestination, RefusedRecord};
use crate::process::row_name::{RowName, RowPlace, RowPosition};
use crate::process::stop::Stop;
use crate::settings::Config;
use crate::topics::destination;
use outbox_router::Routed;
use pg_replication::Lsn;

/// Where a writer's rows come from. Messages name rows of the stream by their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowsFrom {
    Stream,
    Table,
}

/// Decides whether a row may be sent.
#[derive(Debug)]
pub(crate) struct Judge {
    rows_from: RowsFrom,
    key_column: String,
    route_column: String,
    /// The records that the broker has refused since the process began, by the event's id.
    refused: HashMap<String, RefusedRecord>,
}

impl Judge {
    #[must_use]
    pub(crate) fn new(config: &Config, rows_from: RowsFrom) -> Self {
        let refused = config.sink.kafka.refused_records.list().into_iter();
        Self {
            rows_from,
            key_column: config.outbox.router.key_column.clone(),
            route_column: config.outbox.router.route_column.clone(),
            refused: refused.map(|record| (record.id.clone(), record)).collect(),
        }
    }

    #[must_use]
    pub(crate) fn name(&self, position: Position, id: Option<&str>) -> RowName {
        let place = match self.rows_from {
            RowsFrom::Table => RowPlace::Table,
            RowsFrom::Stream => RowPlace::Stream(RowPosition {
                commit_lsn: Lsn(position.commit_lsn),
                index: position.index,
            }),
        };
        RowName {
            place,
            id: id.map(str::to_owned),
        }
    }

    /// The stop of a row whose route leads to no topic.
    #[must_use]
    pub(crate) fn stop_of_no_destination(&self, why: &NoDestination, position: Position, id: &str) -> Stop {
        destination::stop_of_no_destination(why, self.name(position, Some(id)), &self.route_column)
    }

    /// Fails if the topic's settings, or an earlier refusal, say that Kafka would refuse the row. Its size is checked elsewhere.
    ///
    /// # Errors
    /// The [`Stop`] that names it.
    pub(crate) fn ensure_may_be_sent(
        &self,
        routed: &Routed<'_>,
        destination: &Destination,
        position: Position,
    ) -> Result<(), Stop> {
        let timestamp_ms = position.commit_timestamp_us / 1_000;
        let (rules, has_key) = (&destination.rules, routed.key.is_some());
        if let Some(breach) = rules.breach(has_key, timestamp_ms, || now_us() / 1_000) {
            return Err(Stop::Row {
                row: self.name(position, Some(routed.id)),
                what: self.describe_breach(breach, &destination.topic),
            });
        }
        if self.refused.is_empty() {
            return Ok(());
        }
        self.ensure_not_refused_before(routed, destination, position)
    }

    #[cold]
    fn describe_breach(&self, breach: Breach, topic: &str) -> String {
        match breach {
            Breach::NoKey => format!(
                "it has no key (column `{}` is null), and topic `{topic}` is compacted and takes no record without one; set the topic's cleanup.policy to delete, or name a column that is never null by --set table.field.event.key=COLUMN, and start again; else",
                self.key_column
            ),
            Breach::TooOld { age_ms, allowed_ms } => format!(
                "its commit is {} s old, and topic `{topic}` takes no record older than {} s (message.timestamp.before.max.ms={allowed_ms}); raise the topic's message.timestamp.before.max.ms above {age_ms} and start again; else",
                age_ms / 1_000,
                allowed_ms / 1_000
            ),
            Breach::TooNew { ahead_ms, allowed_ms } => format!(
                "its commit is {} s ahead of this machine's clock, and topic `{topic}` takes no record that is more than {} s ahead (message.timestamp.after.max.ms={allowed_ms}); set the clocks right and start again, or raise the topic's message.timestamp.after.max.ms above {ahead_ms}; else",
                ahead_ms / 1_000,
                allowed_ms / 1_000
            ),
        }
    }

    #[cold]
    fn ensure_not_refused_before(
        &self,
        routed: &Routed<'_>,
        destination: &Destination,
        position: Position,
    ) -> Result<(), Stop> {
        let Some(record) = self.refused.get(routed.id) else {
            return Ok(());
        };
        let is_same_record = record.topic == destination.topic
            // If the topic's limit is known, the row's size was compared with it before.
            && !(record.is_too_large && destination.batch_bytes_max < u64::MAX);
        if !is_same_record {
            return Ok(());
        }
        let row = self.name(position, Some(routed.id));
        let (timestamp_ms, now_ms) = (position.commit_timestamp_us / 1_000, now_us() / 1_000);
        Err(match destination.rules.too_new(timestamp_ms, now_ms) {
            Some(breach) => Stop::Row {
                row,
                what: self.describe_breach(breach, &destination.topic),
            },
            None => refusal(record, row),
        })
    }
}

/// The stop of a row that the broker refused.
#[must_use]
pub(crate) fn refusal(record: &RefusedRecord, row: RowName) -> Stop {
    if record.is_too_large {
        return Stop::RecordTooLarge {
            row,
            topic: record.topic.clone(),
            size: record.size,
            limit: format!(
                "max.message.bytes of the topic, after compression, by the broker's answer: {}",
                record.reason
            ),
        };
    }
    Stop::Row {
        row,
        what: format!(
            "the broker refused it for topic `{}`: {}; mend the topic's settings where they are the reason and start again; else",
            record.topic, record.reason
        ),
    }
}
