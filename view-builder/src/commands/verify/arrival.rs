//! Waits until a view has every event that was committed up to now. [`crate::commands::verify`] argues why the steps here prove that.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kafka_client::Reader;
use tokio_postgres::Client;

use crate::commands::verify::side::failed;
use crate::commands::verify::tail::{Place, Tails};
use crate::continuity::offsets;
use crate::contract::place;
use crate::kafka::Observer;
use crate::process::failure::Failure;

/// Pause between two looks at a position.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The end of the write-ahead log. If the log ends exactly where a page begins, the function of Postgres already counts the page's header (24 or 40
/// bytes). Nothing follows the header yet, so a relay would never confirm a position behind it. Therefore the header is taken off.
const LOG_END: &str = "
    select (case when (lsn - '0/0') % block in (24, 40) then lsn - (lsn - '0/0') % block else lsn end)::text
    from (select pg_current_wal_insert_lsn() as lsn, current_setting('wal_block_size')::numeric as block) as log";

/// The slots of this database that a relay can have, and how many bytes of the log up to `$1` each has not confirmed.
const SLOTS: &str = "
    select slot_name::text, greatest($1::text::pg_lsn - confirmed_flush_lsn, 0)::bigint
    from pg_replication_slots
    where database = current_database() and slot_type = 'logical' and plugin = 'pgoutput' and confirmed_flush_lsn is not null
    order by slot_name";

/// By partition: the offset before which everything is applied. While an operator has a whole topic replayed, the position is null, and nothing
/// counts as applied.
const POSITIONS: &str = "
    select topic, partition, coalesce(next_offset, 0) as position, topic_id from view_positions where topic = any($1::text[])";

/// Where events may still be on their way.
pub trait Arrival {
    /// Waits, until `deadline` at most, for everything that was committed before this call to be in the view.
    ///
    /// # Errors
    /// Postgres or Kafka does not answer, or the relay's slot cannot be told.
    fn arrived(&mut self, deadline: Instant) -> impl Future<Output = Result<Arrived, Failure>> + Send;
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// The view has everything that was committed before the wait.
    All,
    /// The time was up.
    Behind(Behind),
}

/// What the view had not taken up when the time was up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Offsets between the view's positions and the topics' ends.
    pub events: u64,
    /// Write-ahead log of the source that its relay had not confirmed, in bytes; tables beside the outbox count as well.
    pub unconfirmed_bytes: u64,
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "behind by {} events", self.events)?;
        if self.unconfirmed_bytes > 0 {
            write!(
                f,
                ", and the relay has not confirmed {} bytes of write-ahead log",
                self.unconfirmed_bytes
            )?;
        }
        Ok(())
    }
}

/// A relay's slot, the topics and the builder's positions.
pub struct Pipeline {
    /// The source's database.
    pub(crate) source: Client,
    pub(crate) source_topic: String,
    /// The slot of the source's relay. `None`: the only slot that there is.
    pub(crate) slot: Option<String>,
    /// The views' database.
    pub(crate) views: Client,
    pub(crate) observer: Arc<Observer>,
    pub(crate) tails: Tails,
    /// All topics of the view.
    pub(crate) topics: Vec<String>,
}

impl Arrival for Pipeline {
    async fn arrived(&mut self, deadline: Instant) -> Result<Arrived, Failure> {
        let log_end = self.source.query_one(LOG_END, &[]).await;
        let log_end: String = log_end.map_err(|err| self.source_failed(&err))?.get(0);
        let mut behind = Behind::default();
        loop {
            behind.unconfirmed_bytes = self.unconfirmed_bytes(&log_end).await?;
            if behind.unconfirmed_bytes == 0 || Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let Ends { ends, ids } = self.load_ends().await?;
        loop {
            let positions = self.load_positions(&ids).await?;
            behind.events = offsets_between(&ends, &self.tails.passed(&ends, positions).await?);
            if behind == Behind::default() {
                return Ok(Arrived::All);
            }
            if behind.events == 0 || Instant::now() >= deadline {
                return Ok(Arrived::Behind(behind));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Pipeline {
    async fn unconfirmed_bytes(&self, log_end: &str) -> Result<u64, Failure> {
        let rows = self.source.query(SLOTS, &[&log_end]).await;
        let rows = rows.map_err(|err| self.source_failed(&err))?;
        let slots: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        unconfirmed_bytes_of(&slots, self.slot.as_deref(), &self.source_topic)
    }

    async fn load_ends(&self) -> Result<Ends, Failure> {
        let (observer, topics) = (Arc::clone(&self.observer), self.topics.clone());
        let answer = tokio::task::spawn_blocking(move || ask_for_ends(&observer, &topics)).await;
        Ok(answer.context("asking kafka failed")??)
    }

    /// Loads the positions. `ids`: the ids of the present topics. A position that belongs to a former topic of the same name counts as 0.
    async fn load_positions(&self, ids: &BTreeMap<String, String>) -> Result<BTreeMap<Place, i64>, Failure> {
        let rows = self.views.query(planted::positions(), &[&self.topics]).await;
        let rows = rows.map_err(|err| failed("the views' positions", &err))?;
        Ok(rows
            .iter()
            .map(|row| {
                let (topic, known): (String, Option<String>) = (row.get("topic"), row.get("topic_id"));
                let is_other = known.is_some_and(|known| is_other_topic(ids.get(&topic), &known));
                let position = if is_other { 0 } else { row.get("position") };
                ((topic, row.get("partition")), position)
            })
            .collect())
    }

    fn source_failed(&self, err: &tokio_postgres::Error) -> Failure {
        failed(&format!("the source of {}", self.source_topic), err)
    }
}

/// How many bytes the relay's slot has not confirmed. `wanted`: the slot's name, which may be left out if there is only one.
fn unconfirmed_bytes_of(slots: &[(String, i64)], wanted: Option<&str>, topic: &str) -> Result<u64, Failure> {
    let found = match (wanted, slots) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(wanted), _) => slots.iter().find(|(name, _)| name == wanted),
    };
    found.map(|(_, bytes)| bytes.unsigned_abs()).ok_or_else(|| {
        let names: Vec<&str> = slots.iter().map(|(name, _)| &**name).collect();
        Failure::Setting(format!(
            "which slot in the source of {topic} is its relay's cannot be told: name it as --slot {topic}=NAME (SLOTS); its \
             pgoutput slots are [{}]",
            names.join(", ")
        ))
    })
}

/// Where the topics end.
struct Ends {
    ends: BTreeMap<Place, i64>,
    /// The topics' ids. Empty if the cluster does not tell any.
    ids: BTreeMap<String, String>,
}

/// Asks Kafka for the partitions that have records, and their ends. The ends are those for a reader who also sees open transactions, since a
/// committed record can come after the first record of another transaction that is still open.
fn ask_for_ends(observer: &Observer, topics: &[String]) -> anyhow::Result<Ends> {
    let facts = kafka_client::facts_by(observer, topics)?;
    let mut places = Vec::new();
    for topic in topics {
        let facts = facts
            .get(topic)
            .with_context(|| format!("there is no topic {topic} in kafka"))?;
        places.extend((0..facts.partitions).map(|partition| place::place(topic, partition)));
    }
    let bounds = offsets::bounds(observer, &places, Reader::All)?;
    let mut ends = BTreeMap::new();
    for place in &places {
        let (beginning, end) = offsets::known(&bounds, place)?;
        if end > beginning {
            ends.insert((place.topic.to_string(), place.partition), end);
        }
    }
    let ids = facts.into_iter().filter_map(|(topic, facts)| Some((topic, facts.id?)));
    Ok(Ends {
        ends,
        ids: ids.collect(),
    })
}

/// How many offsets are between the positions and the ends, over all partitions.
fn offsets_between(ends: &BTreeMap<Place, i64>, positions: &BTreeMap<Place, i64>) -> u64 {
    let behind = |(place, end): (&Place, &i64)| (end - positions.get(place).unwrap_or(&0)).max(0).unsigned_abs();
    ends.iter().map(behind).sum()
}

/// Whether the topic has another id than the one that the position is of.
fn is_other_topic(told: Option<&String>, known: &str) -> bool {
    told.is_some_and(|told| told != known) && !planted::knows_topics_by_name()
}

/// The planted bugs of the wait. Without the feature `faults` none of them is there.
mod planted {
    use super::POSITIONS;
    use crate::process::faults::{self, Bug};

    /// [`POSITIONS`] as a builder has told the group, which is wrong: see [`crate::commands::verify::tail`].
    const GROUP_OFFSETS: &str = "
        select topic, partition, case when next_offset is null then 0 else greatest(next_offset, group_offset) end as position, topic_id
        from view_positions where topic = any($1::text[])";

    pub(super) fn positions() -> &'static str {
        if faults::is_planted(Bug::TrustGroupOffset) {
            GROUP_OFFSETS
        } else {
            POSITIONS
        }
    }

    pub(super) fn knows_topics_by_name() -> bool {
        faults::is_planted(Bug::KnowTopicsByName)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{offsets_between, unconfirmed_bytes_of};

    #[test]
    fn a_partition_without_position_is_behind_by_all_of_it() {
        let place = |partition| ("user-events".to_owned(), partition);
        let ends = BTreeMap::from([(place(0), 10), (place(1), 4), (place(2), 7)]);
        let positions = BTreeMap::from([(place(0), 8), (place(2), 9), (place(5), 1)]);
        assert_eq!(offsets_between(&ends, &positions), 2 + 4);
    }

    #[test]
    fn the_relays_slot_is_the_only_one_or_the_named_one() {
        let (one, two) = ([("a".to_owned(), 3)], [("a".to_owned(), 3), ("b".to_owned(), 0)]);
        assert_eq!(unconfirmed_bytes_of(&one, None, "user-events").unwrap(), 3);
        assert_eq!(unconfirmed_bytes_of(&two, Some("b"), "user-events").unwrap(), 0);
        for (slots, wanted) in [(&two[..], None), (&two, Some("c")), (&[], None)] {
            let told = unconfirmed_bytes_of(slots, wanted, "user-events")
                .unwrap_err()
                .to_string();
            assert!(told.contains("--slot user-events=NAME"), "{told}");
        }
    }
}
