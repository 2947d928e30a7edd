//! Rows of the outbox table that park behind a parked row of their key, while a command publishes the others.
//!
//! The table is read in the order of its rows. A row that stands before the first parked one of its key was published before that was parked, where it
//! is missing now, and is published again; those behind it park. A parked row that is in the table no more stands before all of its key.

use std::collections::{BTreeMap, HashMap};

use super::keys::{Lane, ParkedKeys};
use super::log::rows_max;
use super::planted;
use super::record::{Because, Entry, FORMAT, ParkedRow};
use super::send::send_entry;
use super::topic::entry_bytes_max;
use crate::kafka::Publisher;
use crate::process::row_name::RowPosition;
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use crate::settings::poison::PoisonOrder;
use outbox_router::Plan;
use pg_replication::pgoutput::Tuple;
use service::clock::now_us;

/// The keys of which rows are parked, and how many rows were parked behind them.
pub(crate) struct ParksBehind {
    /// Those whose parked rows were passed, or are not in the table.
    keys: ParkedKeys,
    /// Those of the other parked rows, by the rows' ids.
    ahead: HashMap<String, (Lane, RowPosition)>,
    entry_bytes_max: usize,
    /// Rows that were parked before.
    known: u64,
    parked: u64,
}

impl ParksBehind {
    /// `entries` are the parked rows, read after fencing, and `in_table` tells by its id whether one is in the table that is read. `None` where no row
    /// has to park.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub(crate) async fn new(
        config: &Config,
        entries: &BTreeMap<RowPosition, Entry>,
        in_table: impl Fn(&str) -> bool,
    ) -> Result<Option<Self>, RelayError> {
        let (mut keys, mut ahead) = (ParkedKeys::default(), HashMap::new());
        for entry in entries.values() {
            match (entry.lane, &entry.id) {
                (Some(lane), Some(id)) if in_table(id) => {
                    ahead.insert(id.clone(), (lane, entry.position));
                }
                (Some(lane), _) => keys.add(lane, entry.position),
                (None, _) => {}
            }
        }
        let has_none = keys.is_empty() && ahead.is_empty();
        let skips = config.poison.poison_order == PoisonOrder::Skip;
        if has_none || skips || planted::forgets_parked_keys() {
            return Ok(None);
        }
        Ok(Some(Self {
            keys,
            ahead,
            entry_bytes_max: entry_bytes_max(config).await?,
            known: entries.len() as u64,
            parked: 0,
        }))
    }

    /// How many rows were parked.
    pub(crate) fn parked(&self) -> u64 {
        self.parked
    }

    /// Whether the row with this id is parked and was not passed yet.
    pub(crate) fn is_ahead(&self, id: &str) -> bool {
        self.ahead.contains_key(id)
    }

    /// Takes note that reading has come to a parked row.
    pub(crate) fn pass(&mut self, id: &str) {
        if let Some((lane, position)) = self.ahead.remove(id) {
            self.keys.add(lane, position);
        }
    }

    /// Sends the row to the parking topic, in the open Kafka transaction, where an earlier one of its key is there; whether it did. `position` is as
    /// readers would see it.
    ///
    /// # Errors
    /// [`Stop::TooManyParked`]; anything else is worth another try.
    pub(crate) async fn park(
        &mut self,
        config: &Config,
        publisher: &mut Publisher,
        plan: &Plan,
        tuple: &Tuple<'_>,
        position: RowPosition,
    ) -> Result<bool, RelayError> {
        let (topic, key) = plan.topic_and_key_of(tuple);
        let lane = topic.as_deref().zip(key.as_deref());
        let lane = lane.map(|(topic, key)| Lane::of(topic, key));
        let Some(first) = lane.and_then(|lane| self.keys.before(lane, position)) else {
            return Ok(false);
        };
        if self.known + self.parked >= rows_max() {
            // Nothing else makes room here. `parked retry` needs what `recover` is to mend, and so does `parked discard`, of which the next comparison would
            // find the row missing and park it again.
            let what = format!(
                "{} rows are parked, as many as may be, and what is parked can be published or given up only once this is done; `outbox-relay recover --poison-order skip` publishes the rows behind parked ones before those",
                rows_max()
            );
            return Err(Stop::TooManyParked { position, what }.into());
        }
        let now_us = now_us();
        let mut entry = Entry {
            format: FORMAT,
            position,
            committed_us: now_us,
            parked_us: now_us,
            parked_because: Because::Behind,
            reason: format!("the row at {first} of its key is parked"),
            id: plan.id_of(tuple).map(str::to_owned),
            topic,
            key: key.map(|key| String::from_utf8_lossy(&key).into_owned()),
            lane,
            row: ParkedRow::of_table(plan.columns(), tuple).map_err(anyhow::Error::from)?,
        };
        let key_bytes = Entry::record_key(&config.checkpoint_key(), &position).len();
        let Some(value) = entry.fit(self.entry_bytes_max.saturating_sub(key_bytes)) else {
            let what = format!(
                "it does not fit into topic `{}` even without its values; raise that topic's max.message.bytes and run the command again",
                config.sink.parking_topic
            );
            return Err(Stop::TooManyParked { position, what }.into());
        };
        send_entry(publisher, config, position, Some(&value)).await?;
        self.parked += 1;
        Ok(true)
    }
}
