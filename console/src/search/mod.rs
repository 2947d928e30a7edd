//! Looks for records in topics: by key, id, header or field, from a time, an offset or a position; and follows a topic as it grows.
//!
//! Committed records only. Nothing is written, and no group is joined. A search has a time limit, says how far it looked, and can go on from there.

pub mod filter;
pub mod parked;
pub mod pool;
mod position;
pub mod reader;
pub mod record;
pub mod request;
pub mod scan;
pub mod tail;
pub mod topic;

use std::time::Instant;

use outbox_router::partition_of_key;

pub use self::pool::{ReadError, Readers};
use self::reader::{Reader, Window};
pub use self::record::Record;
use self::request::{Cursor, Order, Request, Start};
use self::scan::{Found, Wanted};
use self::topic::Topic;

/// What became of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Searched {
    Found(Found),
    /// Kafka has no such topic.
    NoTopic,
    /// The topic has so many partitions, and not the one that was asked for.
    NoPartition(i32),
}

/// Carries out a search. Blocks for its time limit, and for as long as Kafka needs to say where partitions begin and end.
///
/// # Errors
/// Kafka does not answer, or refuses.
pub fn search(reader: &Reader, request: &Request) -> anyhow::Result<Searched> {
    let Some(count) = reader.partition_count(&request.topic)? else {
        return Ok(Searched::NoTopic);
    };
    // All records of a key are in one partition.
    let of_key = request.filter.key.as_deref().map(|key| partition_of_key(key, count));
    let partitions = match request.partition.or(of_key) {
        Some(partition) if partition >= count => return Ok(Searched::NoPartition(count)),
        Some(partition) => partition..partition + 1,
        None => 0..count,
    };
    let deadline = Instant::now() + request.time_limit;
    let mut windows = Vec::new();
    for partition in partitions {
        windows.push(reader.bounds(&request.topic, partition)?);
    }
    begin_at(reader, request, &mut windows, deadline)?;
    if let Some(cursor) = &request.cursor {
        go_on_at(cursor, request.order, &mut windows);
    }
    let wanted = Wanted {
        topic: &request.topic,
        filter: &request.filter,
        order: request.order,
        count: request.count,
        deadline,
    };
    let topic = Topic {
        reader,
        name: &request.topic,
    };
    scan::scan(&topic, &windows, &wanted).map(Searched::Found)
}

/// Leaves out what lies before the start.
fn begin_at(reader: &Reader, request: &Request, windows: &mut [Window], deadline: Instant) -> anyhow::Result<()> {
    match request.start {
        Start::Beginning => {}
        Start::Time(time_ms) => {
            let partitions: Vec<i32> = windows.iter().map(|window| window.partition).collect();
            let offsets = reader.offsets_at(&request.topic, &partitions, time_ms)?;
            for window in windows {
                // A partition that has nothing from then on is left out.
                let first = offsets.get(&window.partition).copied().unwrap_or(window.to);
                window.from = window.from.max(first);
            }
        }
        Start::Offset(offset) => {
            for window in windows {
                match request.order {
                    Order::OldestFirst => window.from = window.from.max(offset),
                    Order::NewestFirst => window.to = window.to.min(offset.saturating_add(1)),
                }
            }
        }
        Start::Position { commit_lsn, index } => {
            for window in windows {
                window.from =
                    position::first_at_or_above(reader, &request.topic, *window, (commit_lsn, index), deadline)?;
            }
        }
    }
    Ok(())
}

fn go_on_at(cursor: &Cursor, order: Order, windows: &mut [Window]) {
    for window in windows {
        match (order, cursor.0.get(&window.partition)) {
            (Order::NewestFirst, Some(offset)) => window.to = window.to.min(*offset),
            (Order::OldestFirst, Some(offset)) => window.from = window.from.max(*offset),
            (_, None) => {}
        }
    }
}
