//! The checkpoint: the record that each Kafka transaction carries last, and that says up to where everything is published.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::planted;
use crate::continuity::format;
use crate::continuity::parking_note::ParkingNote;
use crate::continuity::progress::Published;
use crate::process::stop::{PARTITIONS_CURE, Stop};

/// Version of the format. A checkpoint of a later version is refused, since this program would understand only half of it.
pub const FORMAT: u32 = 1;

/// What the record's value holds, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    pub format: u32,
    /// Whether a relay may go on from this checkpoint, or which command has to.
    pub state: State,
    /// Where the positions come from, and where the records went.
    pub lineage: Lineage,
    #[serde(flatten)]
    pub published: Published,
    /// When the newest published row was committed, by the server's clock, in microseconds since 1970. Nothing rests on it: `status` tells by it how old
    /// the oldest unpublished row is. Absent where an operator's command set the position, and from checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_commit_us: Option<i64>,
    /// Which run of a relay wrote it.
    pub incarnation: String,
    /// How often an operator has set the position. Within one generation positions only ascend.
    #[serde(default)]
    pub generation: u64,
    /// Which of the existing rows are published. Present while `init` publishes them in several Kafka transactions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing_rows: Option<ExistingRowsProgress>,
    /// What a second `init` has to know to go on with the first one. Present while `init` is at work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<BegunInit>,
    /// How many rows are parked, and the row at which the relay stopped.
    #[serde(default, skip_serializing_if = "ParkingNote::is_empty")]
    pub parking: ParkingNote,
}

/// What an `init` was told, and what it found, when it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BegunInit {
    /// The operator does not want the existing rows to be published.
    pub skips_existing_rows: bool,
    /// The highest position that readers may have seen before it, see [`crate::continuity::positions`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub highest_position: Option<u64>,
}

/// Which of the rows that were there before the slot are published. It is committed in one Kafka transaction with them.
///
/// All rows of one snapshot are published up to a value of `created_at`. The snapshot itself is gone once its session has ended. What is written down here
/// is enough to know which rows a later snapshot may have in addition, see [`crate::commands::init::pieces`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExistingRowsProgress {
    /// When the first attempt began, in milliseconds since 1970.
    pub began_ms: i64,
    /// Every transaction id below this one (64 bits, with the epoch) had ended in the snapshot.
    pub snapshot_xmin: u64,
    /// `created_at` of the last row that is published, as text. `None` where the table has no such column, or the row no value.
    pub last_created_at: Option<String>,
    /// Whether every row of the snapshot with that `created_at` is published.
    pub is_whole: bool,
    /// How many rows are published, by all attempts.
    pub rows: u64,
}

/// Whether a relay may go on from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// `init` began to make the slot; it may be made anew as long as this is the last checkpoint.
    Initialising,
    Running,
    /// `recover` began to make the slot anew and to publish what is missing; only another `recover` may go on.
    Recovering,
    /// The server was found behind this checkpoint (exit code 18). It is written down because the server's WAL grows and passes the checkpoint's position
    /// one day. Then nobody could see any more that the rows before that position are new, and a relay would skip them as published.
    Behind,
}

/// Where the positions come from and where the records went. If one of these changes, the checkpoint's position may mean something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lineage {
    /// Postgres' system identifier, which names the database cluster.
    pub system_identifier: String,
    /// The timeline, which names a history of that cluster.
    pub timeline: u32,
    pub database: String,
    pub slot: String,
    /// Oid of the publication's entry for the outbox table. It changes when the publication or the table is made anew.
    pub publication_entry: u32,
    /// State of the publication, see [`crate::outbox::publication::Publication::version`]; absent from checkpoints of earlier versions of this program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publication_version: Option<String>,
    /// Which table the outbox was, see [`crate::outbox::publication::Publication::outbox`]; absent where there is no table, and from checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbox: Option<String>,
    /// When the server whose stream it speaks of started, in microseconds since 1970 by that server's clock; absent from checkpoints of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_started_us: Option<i64>,
    /// How many partitions each topic has that was written to. A key's partition depends on it.
    pub partitions: BTreeMap<String, i32>,
    /// How many partitions a topic had before an operator accepted the present number. An earlier record of a key may be in another partition.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub former_partitions: BTreeMap<String, BTreeSet<i32>>,
    /// Kafka's id of each topic that was written to, and of the checkpoint topic. A topic that was made anew has another id. Absent from
    /// checkpoints of earlier versions, and where the cluster does not tell its ids.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topic_ids: BTreeMap<String, String>,
    /// Bytes that are added to each commit LSN in the records' position header, so that positions ascend also where the server's went back,
    /// see [`crate::commands::recover`]. The checkpoint's own position is the server's.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub positions_raised_by: u64,
    /// The settings that decide which rows of a transaction count, in words. [`crate::continuity::progress::Partial::rows`] was counted with them. Absent
    /// from checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_rows: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// Key of the checkpoint's record: one relay is one slot of one database.
#[must_use]
pub fn checkpoint_key(database: &str, slot: &str) -> String {
    format!("{database}/{slot}")
}

impl Lineage {
    /// Pins the partition count of a topic, if none is pinned yet.
    ///
    /// # Errors
    /// [`Stop::PartitionsChanged`] where it had another one before.
    pub fn pin(&mut self, topic: &str, partitions: i32) -> Result<(), Stop> {
        match self.partitions.get(topic) {
            Some(expected) if *expected != partitions => Err(Stop::PartitionsChanged {
                topic: topic.to_owned(),
                expected: *expected,
                found: partitions,
                cure: PARTITIONS_CURE,
            }),
            Some(_) => Ok(()),
            None => {
                self.partitions.insert(topic.to_owned(), partitions);
                Ok(())
            }
        }
    }

    /// Pins the partition count that a topic has now, whatever it had before. 0 means that the topic is gone, and unpins it.
    pub fn repin(&mut self, topic: &str, partitions: i32) {
        if partitions == 0 {
            return self.unpin(topic);
        }
        let former = self.partitions.insert(topic.to_owned(), partitions);
        if let Some(former) = former.filter(|former| *former != partitions) {
            self.former_partitions
                .entry(topic.to_owned())
                .or_default()
                .insert(former);
        }
    }

    /// Forgets everything about a topic.
    pub fn unpin(&mut self, topic: &str) {
        self.partitions.remove(topic);
        self.former_partitions.remove(topic);
        self.topic_ids.remove(topic);
    }

    /// For each topic, every number of partitions that it has or had. It becomes [`Lineage::former_partitions`] of a later lineage.
    #[must_use]
    pub fn all_partition_counts(&self) -> BTreeMap<String, BTreeSet<i32>> {
        let topics = self.partitions.keys().chain(self.former_partitions.keys());
        topics
            .map(|topic| (topic.clone(), self.partition_counts(topic).into_iter().collect()))
            .collect()
    }

    /// Every number of partitions that the topic has or had, the present number first.
    #[must_use]
    pub fn partition_counts(&self, topic: &str) -> Vec<i32> {
        let present = self.partitions.get(topic).copied();
        if planted::forgets_former_partitions() {
            return present.into_iter().collect();
        }
        let former = self.former_partitions.get(topic).into_iter().flatten().copied();
        present
            .into_iter()
            .chain(former.filter(|former| Some(*former) != present))
            .collect()
    }
}

impl Checkpoint {
    /// The record's value.
    ///
    /// # Panics
    /// Never: the keys of all maps are strings. An empty value in its place would be a checkpoint that nobody can read.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("the keys of all maps are strings")
    }

    /// Reads a record's value.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(value: &[u8]) -> Result<Self, String> {
        format::read_json(value, FORMAT)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::{Checkpoint, FORMAT, Lineage, State};
    use crate::continuity::parking_note::{ParkingNote, StoppedAt};
    use crate::continuity::progress::{Partial, Published};
    use pg_replication::Lsn;

    pub(crate) fn example() -> Checkpoint {
        Checkpoint {
            format: FORMAT,
            state: State::Running,
            lineage: Lineage {
                system_identifier: "7391547183048592837".to_owned(),
                timeline: 1,
                database: "users_db".to_owned(),
                slot: "users_relay".to_owned(),
                publication_entry: 16_402,
                publication_version: Some("16400:740:16402:740".to_owned()),
                outbox: Some("public.outbox 16390 r p".to_owned()),
                server_started_us: Some(1_795_344_833_000_000),
                partitions: [("user-events".to_owned(), 8)].into(),
                former_partitions: BTreeMap::new(),
                topic_ids: [("user-events".to_owned(), "vGuc7jKlTiyJvbXyzhhPUg".to_owned())].into(),
                positions_raised_by: 0,
                counted_rows: Some("--publication outbox --table public.outbox (oid 16390)".to_owned()),
            },
            published: Published {
                lsn: Lsn(0x152_8C20),
                partial: Some(Partial {
                    commit_lsn: Lsn(0x152_9000),
                    rows: 3,
                }),
            },
            newest_commit_us: Some(1_795_344_833_217_210),
            incarnation: "a".to_owned(),
            generation: 0,
            existing_rows: None,
            begun: None,
            parking: ParkingNote::default(),
        }
    }

    #[test]
    fn a_checkpoint_survives_its_record() {
        let text = example().to_json();
        assert!(text.contains(r#""lsn":"0/1528C20""#), "{text}");
        assert_eq!(Checkpoint::from_json(text.as_bytes()), Ok(example()));
    }

    #[test]
    fn what_is_parked_is_in_the_checkpoint_and_nothing_where_nothing_is() {
        assert!(!example().to_json().contains("parking"));
        let mut checkpoint = example();
        checkpoint.parking = ParkingNote {
            rows: 2,
            stopped: Some(StoppedAt {
                position: "0/152A000:1".parse().unwrap(),
                reason: "column `id` is null".to_owned(),
                park: true,
                exit_code: Some(30),
            }),
        };
        let text = checkpoint.to_json();
        assert!(
            text.contains(r#""parking":{"rows":2,"stopped":{"position":"0/152A000:1""#),
            "{text}"
        );
        assert_eq!(Checkpoint::from_json(text.as_bytes()), Ok(checkpoint));
    }

    #[test]
    fn a_checkpoint_of_an_earlier_version_is_read() {
        let text = r#"{"format":1,"state":"running","lineage":{"systemIdentifier":"7","timeline":1,"database":"d","slot":"s",
            "publicationEntry":5,"partitions":{}},"lsn":"0/1528C20","partial":null,"incarnation":"a"}"#;
        let checkpoint = Checkpoint::from_json(text.as_bytes()).unwrap();
        assert_eq!(
            (checkpoint.lineage.publication_version, checkpoint.generation),
            (None, 0)
        );
    }

    #[test]
    fn a_topic_remembers_the_numbers_of_partitions_that_its_records_were_sent_by() {
        let mut lineage = example().lineage;
        assert!(!example().to_json().contains("formerPartitions"));
        lineage.repin("user-events", 8);
        assert_eq!(lineage.partition_counts("user-events"), [8]);
        lineage.repin("user-events", 12);
        lineage.repin("user-events", 16);
        assert_eq!(lineage.partition_counts("user-events"), [16, 8, 12]);
        let checkpoint = Checkpoint { lineage, ..example() };
        let mut lineage = Checkpoint::from_json(checkpoint.to_json().as_bytes()).unwrap().lineage;
        assert_eq!(lineage.partition_counts("user-events"), [16, 8, 12]);
        lineage.repin("user-events", 0);
        lineage.repin("user-events", 8);
        assert_eq!(
            lineage.partition_counts("user-events"),
            [8],
            "another topic of the name"
        );
    }

    #[test]
    fn garbage_and_later_formats_are_refused() {
        assert!(Checkpoint::from_json(b"{").is_err());
        assert!(Checkpoint::from_json(b"{\"format\":1}").is_err());
        let later = Checkpoint { format: 2, ..example() }.to_json();
        assert_eq!(
            Checkpoint::from_json(later.as_bytes()),
            Err("format 2, this program knows format 1".to_owned())
        );
    }
}
