//! Compares the rows of the outbox with the records of the topics, by event id.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use service::Shutdown;

use super::decide::{RowsToDecide, decide_row_by_row, name_of_table_row, plan_of_columns};
use super::scope::Scope;
use super::situation::Situation;
use crate::continuity::checkpoint::Lineage;
use crate::continuity::comparison::{Memory, Verdicts};
use crate::continuity::event_ids::EventIds;
use crate::continuity::positions::highest_position;
use crate::intake::outbox_snapshot::{OutboxSnapshot, RowOrder};
use crate::kafka::{TopicRead, TopicToRead, cleanup, partition_counts, read_ids};
use crate::outbox::rows::named_rows;
use crate::parking::{log::read_entries_off_thread, record::Entry};
use crate::process::row_name::RowPosition;
use crate::process::stop::{RECOVER_PARTITIONS_CURE, RelayError, Stop};
use crate::settings::Config;
use crate::topics::destination;
use crate::topics::identity;
use pg_replication::quote_identifier;

/// The result of the comparison.
pub(super) struct ComparedOutbox {
    /// Rows that were compared.
    pub(super) rows: u64,
    /// Records that were read of each topic.
    pub(super) records: BTreeMap<String, u64>,
    pub(super) verdicts: Verdicts,
    /// The highest commit LSN in any record's position header, as readers see it.
    pub(super) highest_position: Option<u64>,
    /// The parked rows that are in no topic.
    pub(super) parked: BTreeMap<RowPosition, Entry>,
    /// Ids of those parked rows that are also among the compared rows.
    pub(super) parked_in_table: EventIds,
    /// Positions of parked rows that a topic has already: a retry has published them, and then the removal of their entries was lost.
    pub(super) parked_and_published: BTreeSet<RowPosition>,
}

impl ComparedOutbox {
    /// The highest position that is known to be published, as readers see it.
    pub(super) fn highest_published(&self, situation: &Situation) -> Option<u64> {
        self.highest_position.max(situation.checkpoint().map(highest_position))
    }
}

/// Compares the rows of `snapshot` with the topics that they route to and that the lineage knows, which are read to their ends.
///
/// # Errors
/// A topic of the lineage has another number of partitions or is gone, a row cannot be routed; anything else is worth another try.
pub(super) async fn compare_outbox_with_topics(
    config: &Config,
    lineage: &mut Lineage,
    recreated: &[Stop],
    snapshot: &mut OutboxSnapshot,
    scope: Scope,
    shutdown: &Shutdown,
) -> Result<ComparedOutbox, RelayError> {
    identity::release_recreated(lineage, recreated);
    snapshot.only_since(scope.rows_since_ms);
    // A parked row does not count as missing: a retry publishes it, in its order.
    let mut parked = read_entries_off_thread(config).await?;
    let mut parked_ids = EventIds::default();
    for id in parked.values().filter_map(|entry| entry.id.as_deref()) {
        parked_ids.insert(id);
    }
    let RowIds {
        ids: mut absent,
        routes,
        routes_of_parked,
        rows,
    } = read_row_ids(config, snapshot, &parked_ids, shutdown).await?;
    let mut parked_in_table = EventIds::default();
    for id in parked.values().filter_map(|entry| entry.id.as_deref()) {
        if absent.contains(id) {
            parked_in_table.insert(id);
        }
        absent.insert(id);
    }
    let all_routes = routes.union(&routes_of_parked);
    let mut topic_of_route = topics_of_routes(config, snapshot, all_routes).await?;
    // Checked before the topic is read: no row of such a route can have been published. Parked rows may have one: it may be why they are parked.
    for route in &routes {
        if let Some(what) = destination::why_no_row_may_go_there(config, route, &topic_of_route[route]) {
            return Err(Stop::Row {
                row: name_of_table_row(None),
                what,
            }
            .into());
        }
    }
    topic_of_route.retain(|route, topic| destination::why_no_row_may_go_there(config, route, topic).is_none());
    let names: BTreeSet<String> = lineage
        .partitions
        .keys()
        .cloned()
        .chain(topic_of_route.values().cloned())
        .collect();
    let mut records = BTreeMap::new();
    let mut memories = Vec::new();
    let mut index_of_topic = BTreeMap::new();
    let mut highest_position = None;
    for (topic, partitions) in pin_existing_topics(config, lineage, &names).await? {
        let to_read = TopicToRead {
            cleanup: cleanup(&config.sink.kafka, &topic).await?,
            topic: topic.clone(),
            partitions,
            since_ms: scope.records_since_ms,
            position_header: config.sink.position_header.clone(),
        };
        let read;
        (read, absent) = remove_published(config, to_read, absent, shutdown).await?;
        records.insert(topic.clone(), read.records);
        index_of_topic.insert(topic.clone(), (memories.len(), lineage.partition_counts(&topic)));
        // A topic that was made anew has removed nothing itself. Its missing records were in the former topic.
        memories.push(if identity::is_recreated(recreated, &topic) {
            Memory::default()
        } else {
            read.memory
        });
        highest_position = highest_position.max(read.highest_position);
    }
    // Several parked rows may have one event id, so each is looked up before any is taken out.
    let parked_and_published: BTreeSet<RowPosition> = parked
        .iter()
        .filter(|(_, entry)| entry.id.as_deref().is_some_and(|id| !absent.contains(id)))
        .map(|(position, _)| *position)
        .collect();
    for id in parked.values().filter_map(|entry| entry.id.as_deref()) {
        absent.remove(id);
    }
    parked.retain(|position, _| !parked_and_published.contains(position));
    let verdicts = if absent.is_empty() || memories.iter().all(|memory| !memory.forgets()) {
        Verdicts {
            missing: absent,
            ..Verdicts::default()
        }
    } else {
        let rows = RowsToDecide {
            absent: &absent,
            parked: &parked_ids,
        };
        decide_row_by_row(config, snapshot, rows, &topic_of_route, &index_of_topic, memories).await?
    };
    Ok(ComparedOutbox {
        rows,
        records,
        verdicts,
        highest_position,
        parked,
        parked_in_table,
        parked_and_published,
    })
}

/// The ids of all rows, and what they route by.
#[derive(Default)]
struct RowIds {
    ids: EventIds,
    routes: BTreeSet<String>,
    /// The routes of parked rows, which need not lead to any topic.
    routes_of_parked: BTreeSet<String>,
    rows: u64,
}

async fn read_row_ids(
    config: &Config,
    snapshot: &mut OutboxSnapshot,
    parked_ids: &EventIds,
    shutdown: &Shutdown,
) -> Result<RowIds, RelayError> {
    let id = quote_identifier(&config.outbox.router.id_column);
    let route = quote_identifier(&config.outbox.router.route_column);
    let mut read = RowIds::default();
    snapshot
        .begin_reading(&format!("{id}::text as id, {route}::text as route"), RowOrder::Any)
        .await?;
    loop {
        let answer = snapshot.fetch().await?;
        if answer.rows.is_empty() {
            return Ok(read);
        }
        for row in named_rows(&answer) {
            let id = require_value(row.nullable("id")?, &config.outbox.router.id_column, None)?;
            read.ids.insert(id);
            let is_parked = parked_ids.contains(id);
            let route = match row.nullable("route")? {
                // It is parked since it cannot be routed. Nothing of it is published here.
                None if is_parked => continue,
                route => require_value(route, &config.outbox.router.route_column, Some(id))?,
            };
            let routes = if is_parked {
                &mut read.routes_of_parked
            } else {
                &mut read.routes
            };
            if !routes.contains(route) {
                routes.insert(route.to_owned());
            }
        }
        read.rows += answer.rows.len() as u64;
        if shutdown.is_triggered() {
            return Err(anyhow::anyhow!("told to stop").into());
        }
    }
}

/// The value of `column`. Without it a row cannot be looked up. `id` names the row in the error.
fn require_value<'v>(value: Option<&'v str>, column: &str, id: Option<&str>) -> Result<&'v str, Stop> {
    value.ok_or_else(|| Stop::Row {
        row: name_of_table_row(id),
        what: format!("column `{column}` is null"),
    })
}

/// The topic of each value of `route.by.field`.
async fn topics_of_routes(
    config: &Config,
    snapshot: &mut OutboxSnapshot,
    routes: impl Iterator<Item = &String>,
) -> Result<BTreeMap<String, String>, RelayError> {
    snapshot.begin_reading("*", RowOrder::Any).await?;
    let answer = snapshot.fetch().await?;
    let plan = plan_of_columns(config, &answer)?;
    Ok(routes.map(|route| (route.clone(), plan.topic(route))).collect())
}

/// How many partitions each existing topic has. The topics of the lineage must exist, and must have the number that it pins.
async fn pin_existing_topics(
    config: &Config,
    lineage: &mut Lineage,
    topics: &BTreeSet<String>,
) -> Result<BTreeMap<String, i32>, RelayError> {
    let settings = config.sink.kafka.clone();
    let names: Vec<String> = topics.iter().cloned().collect();
    let counts = tokio::task::spawn_blocking(move || partition_counts(&settings, &names))
        .await
        .context("metadata task")??;
    for (topic, expected) in &lineage.partitions {
        if !counts.contains_key(topic) {
            return Err(Stop::PartitionsChanged {
                topic: topic.clone(),
                expected: *expected,
                found: 0,
                cure: RECOVER_PARTITIONS_CURE,
            }
            .into());
        }
    }
    for (topic, partitions) in &counts {
        lineage.pin(topic, *partitions)?;
    }
    Ok(counts)
}

/// Reads a topic, and returns those of the ids that it does not have.
async fn remove_published(
    config: &Config,
    to_read: TopicToRead,
    mut absent: EventIds,
    shutdown: &Shutdown,
) -> Result<(TopicRead, EventIds), RelayError> {
    let (settings, shutdown) = (config.sink.kafka.clone(), shutdown.clone());
    let (read, absent) = tokio::task::spawn_blocking(move || {
        let read = read_ids(&settings, &to_read, &mut absent, &|| shutdown.is_triggered());
        (read, absent)
    })
    .await
    .context("reading a topic")?;
    Ok((read?, absent))
}
