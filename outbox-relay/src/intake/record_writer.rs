//! Turns routed rows into Kafka records.

use events::Position;
use rdkafka::message::OwnedHeaders;

use super::planted;
use crate::intake::poison::{Judge, RowsFrom};
use crate::kafka::{HeaderText, KnownRoutes, Outgoing, Publisher, Sent, batch_bytes, with_header};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use outbox_router::{Plan, RowScratch, partition_of_key};
use pg_replication::pgoutput::Tuple;

/// Name of the header of a record whose row was parked. Such a record stands behind records with higher positions.
const PARKED_HEADER: &str = "parked";

/// Name of the record header that carries a replay's id.
pub const REPLAY_HEADER: &str = "replay";

/// Turns routed rows into Kafka records. The rows need not be from the stream.
#[derive(Debug)]
pub struct RecordWriter {
    position_header: Option<String>,
    /// See [`crate::continuity::checkpoint::Lineage::positions_raised_by`].
    positions_raised_by: u64,
    position: HeaderText,
    /// Id of the replay that publishes the records.
    replay: Option<String>,
    judge: Judge,
    /// The rows were parked, and a header of their records says so.
    is_retry: bool,
}

/// What became of a row.
#[derive(Debug)]
pub enum Written {
    Sent,
    QueueFull,
    UnknownTopic { route: String, topic: String },
}

impl RecordWriter {
    /// For the rows of the stream.
    #[must_use]
    pub fn new(config: &Config, positions_raised_by: u64) -> Self {
        Self {
            positions_raised_by,
            ..Self::with_judge(config, Judge::new(config, RowsFrom::Stream))
        }
    }

    /// For the rows of the outbox table.
    #[must_use]
    pub fn for_table_rows(config: &Config, positions_raised_by: u64) -> Self {
        Self {
            positions_raised_by,
            ..Self::with_judge(config, Judge::new(config, RowsFrom::Table))
        }
    }

    /// For records that are published again: without a position, with the replay's id as the header `replay`.
    #[must_use]
    pub fn for_replay(config: &Config, replay: &str) -> Self {
        Self {
            position_header: None,
            replay: Some(replay.to_owned()),
            ..Self::with_judge(config, Judge::new(config, RowsFrom::Table))
        }
    }

    fn with_judge(config: &Config, judge: Judge) -> Self {
        Self {
            position_header: config.sink.position_header.clone(),
            positions_raised_by: 0,
            position: HeaderText::default(),
            replay: None,
            judge,
            is_retry: false,
        }
    }

    /// For parked rows, at the positions that they had in the stream.
    #[must_use]
    pub fn for_parked_rows(config: &Config) -> Self {
        Self {
            is_retry: true,
            ..Self::new(config, 0)
        }
    }

    /// Routes one row and hands it to the publisher.
    ///
    /// # Errors
    /// The row cannot be a record ([`Stop::Row`], [`Stop::RecordTooLarge`]), or Kafka's client refused it.
    pub fn write(
        &mut self,
        plan: &Plan,
        tuple: &Tuple<'_>,
        scratch: &mut RowScratch,
        position: Position,
        known_routes: &KnownRoutes,
        publisher: &mut Publisher,
    ) -> Result<Written, RelayError> {
        let Self {
            position_header,
            positions_raised_by,
            position: text,
            replay,
            judge,
            is_retry,
        } = self;
        let published_position = Position {
            commit_lsn: position.commit_lsn.saturating_add(*positions_raised_by),
            ..position
        };
        let routed = plan.route(tuple, scratch, |routed, additional| {
            let destination = match known_routes.get(routed.route) {
                Some(Ok(destination)) => destination,
                Some(Err(why)) => return Err(judge.stop_of_no_destination(why, position, routed.id).into()),
                None => {
                    return Ok(Written::UnknownTopic {
                        route: routed.route.to_owned(),
                        topic: plan.topic(routed.route),
                    });
                }
            };
            let partitions = destination.partitions;
            let partition = match (routed.partition, &routed.key) {
                (Some(partition), _) if (0..partitions).contains(&partition) => partition,
                (Some(partition), _) => {
                    let topic = &destination.topic;
                    return Err(Stop::Row {
                        row: judge.name(position, Some(routed.id)),
                        what: format!("partition {partition} is not one of the {partitions} of topic `{topic}`"),
                    }
                    .into());
                }
                (None, Some(key)) => partition_of_key(key, partitions),
                // A row without a key may go to any partition. The id spreads such rows evenly.
                (None, None) => partition_of_key(routed.id.as_bytes(), partitions),
            };
            let mut headers = with_header(OwnedHeaders::new_with_capacity(4), "id", Some(routed.id.as_bytes()));
            for (name, value) in additional {
                headers = with_header(headers, name, value.as_deref());
            }
            if let Some(name) = position_header {
                headers = with_header(headers, name, Some(text.write(&published_position)));
            }
            if let Some(replay) = replay {
                headers = with_header(headers, REPLAY_HEADER, Some(replay.as_str()));
            }
            if *is_retry {
                headers = with_header(headers, PARKED_HEADER, Some("retry"));
            }
            let bytes = routed.key.as_deref().map_or(0, <[u8]>::len) + routed.value.as_deref().map_or(0, <[u8]>::len);
            let too_large = |judge: &Judge, limit: String| Stop::RecordTooLarge {
                row: judge.name(position, Some(routed.id)),
                topic: destination.topic.clone(),
                size: bytes,
                limit,
            };
            let batch_bytes_max = destination.batch_bytes_max;
            // Counted exactly only if it may matter, since the headers have to be read back from C.
            if bytes as u64 > batch_bytes_max / 2
                && batch_bytes(routed.key.as_deref(), routed.value.as_deref(), &headers) > batch_bytes_max
                && !planted::ignores_batch_limit()
            {
                let limit =
                    format!("{batch_bytes_max} (max.message.bytes of the topic, which counts headers and framing too)");
                return Err(too_large(judge, limit).into());
            }
            judge.ensure_may_be_sent(&routed, destination, position)?;
            let outgoing = Outgoing {
                topic: &destination.topic,
                partition,
                key: routed.key.as_deref(),
                value: routed.value.as_deref(),
                timestamp_ms: position.commit_timestamp_us / 1_000,
            };
            match publisher.send(outgoing, headers)? {
                Sent::Queued => {
                    destination.count_sent(bytes);
                    Ok(Written::Sent)
                }
                Sent::QueueFull => Ok(Written::QueueFull),
                Sent::TooLarge => {
                    let limit = publisher.message_bytes_max();
                    Err(too_large(judge, format!("{limit} (message.max.bytes of --kafka-property)")).into())
                }
            }
        });
        match routed {
            Ok(outcome) => outcome,
            Err(err) => Err(Stop::Row {
                row: self.judge.name(position, plan.id_of(tuple)),
                what: err.to_string(),
            }
            .into()),
        }
    }
}
