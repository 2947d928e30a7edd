//! Goes through the rows in their order, if a topic may have removed records: then a row without a record may have been published all the same.

use std::collections::BTreeMap;

use anyhow::Context;

use crate::continuity::comparison::{Comparison, Memory, Row, Verdicts};
use crate::continuity::event_ids::EventIds;
use crate::intake::outbox_snapshot::{OutboxSnapshot, RowOrder, columns_of};
use crate::outbox::rows::named_rows;
use crate::process::row_name::{RowName, RowPlace};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use outbox_router::{Plan, RowScratch, partition_of_key};
use pg_replication::Answer;
use pg_replication::pgoutput::Tuple;

/// Name of a column that is added to those of the table: `created_at` in milliseconds since 1970.
const CREATED_MS: &str = "relay_created_ms";

/// The rows that matter to [`decide_row_by_row`], by their ids.
#[derive(Clone, Copy)]
pub(super) struct RowsToDecide<'a> {
    /// The rows without a record.
    pub(super) absent: &'a EventIds,
    /// The parked rows. Nothing is decided about them, and they may be impossible to route.
    pub(super) parked: &'a EventIds,
}

/// Decides for each row in `rows.absent` whether it was published: see [`crate::continuity::comparison`].
///
/// # Errors
/// A row cannot be routed; anything else is worth another try.
pub(super) async fn decide_row_by_row(
    config: &Config,
    snapshot: &mut OutboxSnapshot,
    rows: RowsToDecide<'_>,
    topic_of_route: &BTreeMap<String, String>,
    index_of_topic: &BTreeMap<String, (usize, Vec<i32>)>,
    mut memories: Vec<Memory>,
) -> Result<Verdicts, RelayError> {
    // For rows whose topic does not exist yet: it cannot have removed a record.
    let no_topic = memories.len();
    memories.push(Memory::default());
    let created_ms = if snapshot.has_created_at() {
        "coalesce(floor(extract(epoch from created_at) * 1000)::bigint, 0)"
    } else {
        "0::bigint"
    };
    let rows_of_a_key = snapshot.rows_of_a_key(config).await?;
    snapshot
        .begin_reading(&format!("*, {created_ms} as {CREATED_MS}"), RowOrder::OldestFirst)
        .await?;
    let mut comparison = Comparison::new(&memories, rows_of_a_key);
    let mut scratch = RowScratch::default();
    loop {
        let answer = snapshot.fetch().await?;
        if answer.rows.is_empty() {
            return Ok(comparison.decide());
        }
        let plan = plan_of_columns(config, &answer)?;
        let column_count = u16::try_from(answer.columns.len()).context("too many columns")?;
        for (row, named) in answer.rows.iter().zip(named_rows(&answer)) {
            let created_ms: i64 = named.parse(CREATED_MS)?;
            let values: Vec<Option<&[u8]>> = row.iter().map(|value| value.as_deref().map(str::as_bytes)).collect();
            let bytes = Tuple::encode(&values).context("a row of the outbox table")?;
            let tuple = Tuple::from_encoded(column_count, &bytes);
            let is_parked = plan.id_of(&tuple).is_some_and(|id| rows.parked.contains(id));
            let routed = plan.route(&tuple, &mut scratch, |routed, _| {
                let topic = topic_of_route
                    .get(routed.route)
                    .and_then(|topic| index_of_topic.get(topic));
                let (topic, counts) = topic.map_or((no_topic, [1].as_slice()), |(topic, counts)| (*topic, counts));
                let key_or_id = routed.key.as_deref().unwrap_or(routed.id.as_bytes());
                let partitions: Vec<i32> = match routed.partition {
                    Some(partition) => vec![partition],
                    None => counts.iter().map(|count| partition_of_key(key_or_id, *count)).collect(),
                };
                comparison.add_row(
                    Row {
                        id: routed.id,
                        topic,
                        partitions: &partitions,
                        key: routed.key.as_deref(),
                        created_ms,
                        is_tombstone: routed.value.is_none(),
                    },
                    rows.absent,
                );
            });
            match routed {
                Err(err) if !is_parked => {
                    return Err(Stop::Row {
                        row: name_of_table_row(plan.id_of(&tuple)),
                        what: err.to_string(),
                    }
                    .into());
                }
                _ => {}
            }
        }
    }
}

/// The router's plan for a table with these columns.
pub(super) fn plan_of_columns(config: &Config, answer: &Answer) -> Result<Plan, Stop> {
    Plan::new(&config.outbox.router, columns_of(answer)).map_err(|err| Stop::Config { what: err.to_string() })
}

/// How a [`Stop`] names a row of the table.
pub(super) fn name_of_table_row(id: Option<&str>) -> RowName {
    RowName {
        place: RowPlace::Table,
        id: id.map(str::to_owned),
    }
}
