//! Claims partitions in Postgres, and reads and writes what is stored beside their positions.

use bytes::Bytes;
use kafka_client::ReadUpTo;
use tokio_postgres::{Client, Error};

use crate::continuity::offsets::Bounds;
use crate::continuity::start;
use crate::continuity::topic_ids::TopicIds;
use crate::contract::place::TopicPartition;
use crate::contract::position::Reached;
use crate::letters::{Known, LettersOfKey, store};
use crate::process::faults;
use crate::views::catalog::KeptViews;
use crate::views::database::Database;

/// SQLSTATE of a lock that was not granted in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// A look counts so many dead letters, at most. The count must be cheap, since a look comes every two seconds.
pub const LETTERS_COUNTED: i64 = 100_000;

/// Where a claimed partition begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub place: TopicPartition,
    pub epoch: i64,
    pub next_offset: i64,
    /// The first offset that the view has never had. If the position was set back, this is above `next_offset`, and the events before it are a
    /// replay.
    pub new_from: i64,
    /// The group has committed at least this offset to Kafka. It can be above `next_offset`, since transaction markers count too.
    pub group_offset: Option<i64>,
    /// The partition's dead letters.
    pub known: Known,
}

/// A partition as it was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub place: TopicPartition,
    pub epoch: i64,
    pub next_offset: Option<i64>,
    /// The highest position that the partition has had, where it was set back.
    pub highest_offset: Option<i64>,
    pub group_offset: Option<i64>,
    /// The ids of the topics that the position was of.
    pub ids: TopicIds,
    /// An earlier holder had paused the partition.
    pub was_paused: bool,
    /// The lowest end that Kafka told while the partition was paused because of a low end. `None`: it was not paused for that, or the end was
    /// handled.
    pub paused_end: Option<i64>,
    /// An earlier holder has read the log at least up to here. `None`: the cluster does not tell epochs.
    pub read: Option<ReadUpTo>,
    /// The partition's dead letters.
    pub known: Known,
}

impl Claim {
    /// The facts by which [`start::start`] decides, from this claim and Kafka's answer.
    #[must_use]
    pub fn known_with(&self, bounds: &Bounds) -> start::Known {
        start::Known {
            topic: self.ids.compare(bounds.topic_id.as_deref()),
            position: self.next_offset,
            group_recorded: self.group_offset,
            group: bounds.group,
            beginning: bounds.beginning,
            end: bounds.end,
        }
    }
}

/// A partition as its holder knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub place: TopicPartition,
    pub epoch: i64,
}

/// What other processes and operators have done meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Somebody else has claimed one of the partitions, or set its position back.
    pub is_fenced: bool,
    /// How many dead letters wait, in all.
    pub letters: i64,
    /// What an operator has to know of the partitions, as kind and text.
    pub notices: Vec<(String, String)>,
}

/// Raises the epochs, so that no earlier holder can move the positions, and reads the positions. It is one statement, and it takes the rows in the
/// order of their keys. It waits for the row lock of a transaction that is under way.
const CLAIM: &str = "
    insert into view_positions as held (topic, partition, epoch, owner, claimed_at)
    select topic, partition, 1, $3, clock_timestamp()
    from unnest($1::text[], $2::integer[]) as wanted(topic, partition)
    order by topic, partition
    on conflict (topic, partition) do update set
        epoch = held.epoch + 1, owner = excluded.owner, claimed_at = excluded.claimed_at
    returning topic, partition, epoch, next_offset, group_offset, highest_offset, topic_id, former_topic_ids,
        paused is not null as was_paused, paused_end, read_to, read_epoch";

/// Ends transactions of builders and operators that have been open for more than 4 s, since a frozen process could hold a position's lock for ever. It ends
/// all of this role in this database, also those that hold other positions: nothing is lost by that. A builder that was only slow reconnects, finds
/// that its transaction is gone, and repeats it. An operator's command fails, and has changed nothing. Each table's oid may be that of another table in
/// another database, so `pg_locks` is asked for this database alone.
const END_FROZEN: &str = "
    select pg_terminate_backend(pid)
    from (
        select distinct activity.pid
        from pg_stat_activity as activity
        join pg_locks using (pid)
        where pg_locks.database = (select oid from pg_database where datname = current_database())
            and pg_locks.relation = 'view_positions'::regclass
            and pg_locks.mode = 'RowExclusiveLock'
            and activity.usename = current_user
            and activity.pid <> pg_backend_pid()
            and activity.xact_start < clock_timestamp() - interval '4 seconds'
    ) as frozen";

impl Claim {
    /// Where the partition begins: at `next_offset`.
    #[must_use]
    pub fn starting_at(self, next_offset: i64) -> Start {
        let is_replay = self.next_offset != Some(next_offset);
        Start {
            place: self.place,
            epoch: self.epoch,
            next_offset,
            // A partition that has never had a position has had no event.
            new_from: next_offset.max(self.next_offset.max(self.highest_offset).unwrap_or(0)),
            // The same as `begin` stores.
            group_offset: self
                .group_offset
                .map(|offset| if is_replay { offset.min(next_offset) } else { offset }),
            known: self.known,
        }
    }
}

impl Database {
    /// Claims these partitions for `owner`, and keeps the views that the catalog has under this claim. Waits for as long as Postgres is away.
    pub async fn claim(&mut self, places: &[TopicPartition], owner: &str) -> Vec<Claim> {
        owner.clone_into(&mut self.owner);
        loop {
            let client = &self.session().await.client;
            let attempt = async {
                let claims = faults::around("claim.before", claim(client, places, owner), "claim.made").await?;
                // Read under the epochs just claimed, which every change of the catalog raises.
                Ok((claims, KeptViews::load(client).await?))
            };
            match attempt.await {
                Ok((claims, kept)) => {
                    if self.keep(kept) {
                        // The session has prepared the statements of the former views.
                        self.session = None;
                    }
                    return claims;
                }
                Err(err) => self.wait(&err).await,
            }
        }
    }

    /// Loads what the table of letters says of these keys now. Waits for as long as Postgres is away.
    pub async fn letters_of(&mut self, keys: &[(TopicPartition, Bytes)]) -> Vec<LettersOfKey> {
        loop {
            let client = &self.session().await.client;
            match store::load_letters_of_keys(client, keys).await {
                Ok(known) => return known,
                Err(err) => self.wait(&err).await,
            }
        }
    }

    /// Looks at what others may have changed. `None`: Postgres does not answer now.
    pub async fn look(&mut self, held: &[Held]) -> Option<Look> {
        let client = &self.session().await.client;
        let keys = Keys::of(held.iter().map(|held| (&held.place, held.epoch)));
        let row = client
            .query_one(
                "select count(*) filter (where held.epoch = wanted.epoch) as still_held,
                    (select count(*) from (
                        select from only view_dead_letters where discarded_at is null
                        union all select from view_former_dead_letters where discarded_at is null
                        limit $4) as counted) as letters
                 from view_positions as held
                 join unnest($1::text[], $2::integer[], $3::bigint[]) as wanted(topic, partition, epoch) using (topic, partition)",
                &[&keys.topic, &keys.partition, &keys.epoch, &LETTERS_COUNTED],
            )
            .await
            .ok()?;
        let notices = client
            .query(
                "select kind, notice from view_notices
                 join unnest($1::text[], $2::integer[]) as wanted(topic, partition) using (topic, partition)
                 order by topic, partition, kind",
                &[&keys.topic, &keys.partition],
            )
            .await
            .ok()?;
        let still_held: i64 = row.get("still_held");
        Some(Look {
            notices: notices.iter().map(|row| (row.get("kind"), row.get("notice"))).collect(),
            is_fenced: usize::try_from(still_held) != Ok(held.len()),
            letters: row.get("letters"),
        })
    }

    /// Stores the offsets that the group has committed to Kafka. Only people and the next claim need them, so an error is ignored here. The next
    /// batch will meet it too.
    pub async fn record_group_offsets(&mut self, group_offsets: &[Reached]) {
        let client = &self.session().await.client;
        let offset: Vec<i64> = group_offsets.iter().map(|start| start.next_offset).collect();
        let keys = Keys::of(group_offsets.iter().map(|start| (&start.place, start.epoch)));
        let recorded = client
            .execute(
                "update view_positions as held set group_offset = wanted.group_offset
             from unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[])
                 as wanted(topic, partition, epoch, group_offset)
             where held.topic = wanted.topic and held.partition = wanted.partition and held.epoch = wanted.epoch",
                &[&keys.topic, &keys.partition, &keys.epoch, &offset],
            )
            .await;
        if let Err(err) = recorded {
            tracing::debug!(error = %err, "group offsets are not written down");
        }
    }
}

async fn claim(client: &Client, places: &[TopicPartition], owner: &str) -> Result<Vec<Claim>, Error> {
    let topic: Vec<&str> = places.iter().map(|place| &*place.topic).collect();
    let partition: Vec<i32> = places.iter().map(|place| place.partition).collect();
    client.batch_execute("set lock_timeout = '5s'").await?;
    let claimed = client.query(CLAIM, &[&topic, &partition, &owner]).await;
    client.batch_execute("reset lock_timeout").await?;
    let rows = match claimed {
        Err(err) if err.code().is_some_and(|code| code.code() == LOCK_NOT_AVAILABLE) => {
            let ended = client.query(END_FROZEN, &[]).await?.len();
            tracing::warn!(
                connections.ended = ended,
                "a builder holds a position without moving it"
            );
            return Err(err);
        }
        claimed => claimed?,
    };
    // The letters are read under the epochs just claimed. From here on only an operator can change them, and that raises `letters_version`.
    let mut known = store::load_known(client, places).await?;
    let place = |topic: &str, partition: i32| {
        places
            .iter()
            .find(|place| *place.topic == *topic && place.partition == partition)
            .cloned()
    };
    Ok(rows
        .iter()
        .filter_map(|row| {
            let place = place(row.get("topic"), row.get("partition"))?;
            Some(Claim {
                known: known.remove(&place)?,
                place,
                epoch: row.get("epoch"),
                next_offset: row.get("next_offset"),
                group_offset: row.get("group_offset"),
                highest_offset: row.get("highest_offset"),
                ids: TopicIds {
                    now: row.get("topic_id"),
                    former: row.get("former_topic_ids"),
                },
                was_paused: row.get("was_paused"),
                paused_end: row.get("paused_end"),
                read: row
                    .get::<_, Option<i64>>("read_to")
                    .zip(row.get("read_epoch"))
                    .map(|(offset, epoch)| ReadUpTo { offset, epoch }),
            })
        })
        .collect())
}

/// Topics, partitions and epochs as arrays, for the parameters of a statement.
struct Keys<'a> {
    topic: Vec<&'a str>,
    partition: Vec<i32>,
    epoch: Vec<i64>,
}

impl<'a> Keys<'a> {
    fn of(places: impl Iterator<Item = (&'a TopicPartition, i64)>) -> Self {
        let mut keys = Self {
            topic: Vec::new(),
            partition: Vec::new(),
            epoch: Vec::new(),
        };
        for (place, epoch) in places {
            keys.topic.push(&place.topic);
            keys.partition.push(place.partition);
            keys.epoch.push(epoch);
        }
        keys
    }
}
