//! Parks rows of the outbox table behind a parked row of their key, while a command publishes the other rows.
//!
//! The table is read in the order of its rows. A row before the first parked row of its key is published: it may have been published before that row was
//! parked, and be lost now. The rows behind the first parked row are parked. If a parked row is not in the table any more, all rows of its key count as behind it.

use std::collections::{BTreeMap, HashMap};

use super::keys::{ParkedKeys, TopicKeyHash};
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
    /// The keys whose parked row was passed, or is not in the table.
    keys: ParkedKeys,
    /// The other parked rows, by their ids. Reading has not come to them yet.
    ahead: HashMap<String, (TopicKeyHash, RowPosition)>,
    entry_bytes_max: usize,
    /// How many rows were parked before.
    parked_before: u64,
    /// How many rows were parked since.
    parked: u64,
}

impl ParksBehind {
    /// `entries` are the parked rows, read after fencing. `in_table` says whether the row with an id is in the table that is read. Returns `None` if no row
    /// has to be parked.
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
            match (entry.topic_key, &entry.id) {
                (Some(topic_key), Some(id)) if in_table(id) => {
                    ahead.insert(id.clone(), (topic_key, entry.position));
                }
                (Some(topic_key), _) => keys.add(topic_key, entry.position),
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
            parked_before: entries.len() as u64,
            parked: 0,
        }))
    }

    /// How many rows were parked since.
    pub(crate) fn parked(&self) -> u64 {
        self.parked
    }

    /// Whether the row with this id is parked and was not passed yet.
    pub(crate) fn is_ahead(&self, id: &str) -> bool {
        self.ahead.contains_key(id)
    }

    /// Notes that reading has come to a parked row.
    pub(crate) fn pass(&mut self, id: &str) {
        if let Some((topic_key, position)) = self.ahead.remove(id) {
            self.keys.add(topic_key, position);
        }
    }

    /// If an earlier row of its key is parked, sends the row to the parking topic, in the open Kafka transaction. Returns whether it did. `position` is the
    /// position that readers would see.
    ///
    /// # Errors
    /// [`Stop::TooManyParked`]; anything else is worth another try.
    pub(crate) async fn park_if_behind(
        &mut self,
        config: &Config,
        publisher: &mut Publisher,
        plan: &Plan,
        tuple: &Tuple<'_>,
        position: RowPosition,
    ) -> Result<bool, RelayError> {
        let (topic, key) = plan.topic_and_key_of(tuple);
        let topic_key = topic.as_deref().zip(key.as_deref());
        let topic_key = topic_key.map(|(topic, key)| TopicKeyHash::of(topic, key));
        let Some(first) = topic_key.and_then(|topic_key| self.keys.first_parked_before(topic_key, position)) else {
            return Ok(false);
        };
        if self.parked_before + self.parked >= rows_max() {
            // Nothing else makes room here. `parked retry` and `parked discard` cannot run before `recover` has finished. And after a discard the next
            // comparison would find the row missing, and park it again.
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
            topic_key,
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
