//! One look at Postgres, at Kafka, and at the relay's own process. It changes nothing: it takes no slot, fences no producer and joins no group.
//!
//! The position of the slot is read first, then the checkpoint, then the end of the WAL, as in [`crate::relay::survey`]: a relay may be publishing meanwhile.
//! The figures of the slot, which are for people, are read at the same time as the checkpoint. A server that is away keeps nobody from the rest.

use std::net::SocketAddr;
use std::time::Duration;

use service::clock::{now_us, rfc3339};
use service::health;
use tokio::join;
use tokio::time::Instant;

use super::figures::{self, Figures};
use super::judge::Found;
use super::kafka_look::KafkaLook;
use super::postgres_look::{PostgresLook, addresses};
use crate::findings::{lineage_check, sentences};
use crate::kafka::StoredCheckpoint;
use crate::outbox::source;
use crate::process::stop::Stop;
use crate::relay::pause::PauseRecord;
use crate::settings::Config;
use crate::topics::identity;

/// A server that has not answered its first question by then is away.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A client of Kafka tries for so long to connect. Then there is time to say why it could not.
const CONNECTS_WITHIN: Duration = Duration::from_millis(2_500);
/// The whole look takes no longer.
const LOOK_WITHIN: Duration = Duration::from_millis(4_500);
/// An open transaction that hides the checkpoint has so long to end. Then there is time for the other questions.
const CHECKPOINT_IS_SEEN_WITHIN: Duration = Duration::from_millis(3_500);

/// Looks once. `admin` is the address where the relay's process answers.
///
/// # Errors
/// A setting that Kafka's client does not take ([`Stop::Config`]).
pub(super) async fn look(config: &Config, admin: Option<SocketAddr>) -> Result<(Figures, Found), Stop> {
    let began = Instant::now();
    let (first_by, all_by) = (began + FIRST_ANSWER_WITHIN, began + LOOK_WITHIN);
    let patient_until = began + CHECKPOINT_IS_SEEN_WITHIN;
    let process = async {
        match admin {
            Some(listen) => Some(health::ask_for_status(listen).await),
            None => None,
        }
    };
    let (mut postgres, kafka, process) = join!(
        PostgresLook::open(config, first_by),
        KafkaLook::open(config, CONNECTS_WITHIN, first_by),
        process
    );
    let mut kafka = kafka?;
    join!(
        postgres.look_at_slot(config, all_by),
        kafka.read_checkpoint(config, patient_until, all_by)
    );
    let published_until_us = kafka.stored().and_then(published_until_us);
    join!(
        postgres.finish(config, published_until_us, all_by),
        kafka.read_topics(config, all_by)
    );
    let found = find(config, &postgres, &kafka);
    let figures = Figures {
        relay: process,
        ..describe(config, postgres, kafka)
    };
    Ok((figures, found))
}

/// Up to when everything that was committed is published, in microseconds since 1970. Where no row says it, it is the time of the checkpoint.
fn published_until_us(stored: &StoredCheckpoint) -> Option<i64> {
    let written_us = stored.written_ms.map(|ms| ms.saturating_mul(1_000));
    stored.checkpoint.newest_commit_us.or(written_us)
}

/// What is wrong, in the words of the stops, of `check` and of `/readyz`.
fn find(config: &Config, postgres: &PostgresLook, kafka: &KafkaLook) -> Found {
    let mut found = Found {
        hidden_checkpoint: kafka.hidden_because.clone(),
        takes_messages: config.outbox.message_prefix.is_some(),
        slot_dangers: postgres.slot_dangers.clone(),
        pause: kafka.pause.as_ref().map(PauseRecord::for_people),
        ..Found::default()
    };
    if let Some(Err(stop)) = &kafka.checkpoint {
        found.stops.push(("checkpoint", stop.clone()));
    }
    match &postgres.publication {
        Some(Err(stop)) => found.publication = Some(sentences::publication_is_unusable(config, stop)),
        Some(Ok(publication)) => {
            // Without the end of the WAL, or without the checkpoint, nothing can be compared.
            if let (Some(system), Some(Ok(stored))) = (&postgres.system, &kafka.checkpoint) {
                let source = source::describe_source(config, system, postgres.slot.clone(), publication);
                let continues = lineage_check::ensure_continues(config, &source, stored.as_ref());
                found.stops.extend(continues.err().map(|stop| ("slot", stop)));
            }
        }
        None => {}
    }
    if let Some(stored) = kafka.stored() {
        let lineage = &stored.checkpoint.lineage;
        if kafka.away_because.is_none() {
            let breaks = identity::find_breaks(lineage, &kafka.topics).into_iter();
            found.stops.extend(breaks.map(|stop| ("topics", stop)));
        }
        found.stopped_at.clone_from(&stored.checkpoint.parking.stopped);
    }
    found
}

fn describe(config: &Config, postgres: PostgresLook, kafka: KafkaLook) -> Figures {
    let system = postgres.system.as_ref();
    let (age, unknown_because) = match oldest_unpublished_age(&postgres, &kafka) {
        Ok(age) => (Some(age), None),
        Err(why) => (None, Some(why)),
    };
    let has_table = !config.outbox.table.is_empty();
    Figures {
        postgres: figures::Postgres {
            address: addresses(config),
            database: config.source.target.database.clone(),
            server_version: postgres.server_version,
            cluster: system.map(|system| system.identifier.clone()),
            timeline: system.map(|system| system.timeline),
            wal_end_lsn: system.map(|system| system.wal_end.to_string()),
            away_because: postgres.away_because,
        },
        slot: postgres.slot_figures,
        outbox: figures::Outbox {
            table: has_table.then(|| format!("{}.{}", config.outbox.schema, config.outbox.table)),
            publication: config.source.publication.to_string(),
            oldest_unpublished_age_seconds: age,
            unknown_because,
        },
        checkpoint: kafka.stored().map(|stored| figures::Checkpoint {
            unpublished_bytes: system.map(|system| system.wal_end.bytes_since(stored.checkpoint.published.lsn)),
            ..describe_checkpoint(config, stored)
        }),
        parking: kafka.stored().map(|stored| describe_parking(config, stored)),
        topics: describe_topics(config, &kafka),
        pause: kafka.pause.as_ref().map(|pause| figures::Pause {
            since: rfc3339(pause.since_ms.saturating_mul(1_000)),
            paused_seconds: seconds_since(pause.since_ms),
            reason: pause.reason.clone(),
        }),
        kafka: figures::Kafka {
            address: config.sink.kafka.client.bootstrap_servers.clone(),
            away_because: kafka.away_because,
        },
        relay: None,
    }
}

/// The age of the oldest row that is not published, in seconds; 0 if there is none. An error is the reason why it is not known.
fn oldest_unpublished_age(postgres: &PostgresLook, kafka: &KafkaLook) -> Result<f64, String> {
    let checkpoint = kafka.stored().map(|stored| &stored.checkpoint);
    let partial = checkpoint.filter(|checkpoint| checkpoint.published.partial.is_some());
    // The rest of that transaction was committed together with the rows that are published. Its rows were inserted before that.
    let partial_us = partial.and_then(|checkpoint| checkpoint.newest_commit_us);
    let partial_age = partial_us.map(|us| seconds_since(us / 1_000));
    match (&postgres.oldest_unpublished, partial_age) {
        (Some(Ok(age)), partial_age) => Ok(age.max(partial_age.unwrap_or(0.0))),
        (_, Some(partial_age)) => Ok(partial_age),
        (Some(Err(why)), None) => Err(why.clone()),
        (None, None) if postgres.away_because.is_some() => Err("Postgres is away".to_owned()),
        (None, None) if kafka.away_because.is_some() => Err("Kafka is away, and has the checkpoint".to_owned()),
        (None, None) if kafka.hidden_because.is_some() => Err("an open transaction hides the checkpoint".to_owned()),
        (None, None) => Err("there is no checkpoint that says what is published".to_owned()),
    }
}

fn describe_checkpoint(config: &Config, stored: &StoredCheckpoint) -> figures::Checkpoint {
    let published = stored.checkpoint.published;
    figures::Checkpoint {
        topic: config.sink.checkpoint_topic.to_string(),
        offset: stored.offset,
        published_lsn: published.lsn.to_string(),
        partial: published.partial.map(|partial| figures::Partial {
            commit_lsn: partial.commit_lsn.to_string(),
            rows: partial.rows,
        }),
        written_at: stored.written_ms.map(|ms| rfc3339(ms.saturating_mul(1_000))),
        age_seconds: stored.written_ms.map(seconds_since),
        newest_row_at: stored.checkpoint.newest_commit_us.map(rfc3339),
        unpublished_bytes: None,
    }
}

fn describe_parking(config: &Config, stored: &StoredCheckpoint) -> figures::Parking {
    let parking = &stored.checkpoint.parking;
    figures::Parking {
        topic: config.sink.parking_topic.to_string(),
        rows: parking.rows,
        stopped_at: parking.stopped.as_ref().map(|stopped| figures::StoppedAt {
            position: stopped.position.to_string(),
            reason: stopped.reason.clone(),
            is_ordered_to_park: stopped.park,
        }),
    }
}

fn describe_topics(config: &Config, kafka: &KafkaLook) -> Vec<figures::Topic> {
    if kafka.away_because.is_some() {
        return Vec::new();
    }
    let checkpoint_topic = config.sink.checkpoint_topic.as_str();
    let lineage = kafka.stored().map(|stored| &stored.checkpoint.lineage);
    let names = lineage.map_or_else(
        || vec![checkpoint_topic.to_owned()],
        |lineage| identity::names_of_topics(lineage, checkpoint_topic),
    );
    let topic = |topic: String| {
        let facts = kafka.topics.get(&topic);
        figures::Topic {
            is_there: facts.is_some(),
            partitions: facts.map_or(0, |facts| facts.partitions),
            partitions_expected: lineage.and_then(|lineage| lineage.partitions.get(&topic).copied()),
            id: facts.and_then(|facts| facts.id.clone()),
            topic,
        }
    };
    names.into_iter().map(topic).collect()
}

/// Seconds since a time in milliseconds since 1970; 0 where the clocks disagree.
#[expect(clippy::cast_precision_loss, reason = "exact up to 285 years")]
fn seconds_since(ms: i64) -> f64 {
    (now_us() / 1_000 - ms).max(0) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::{KafkaLook, PostgresLook, oldest_unpublished_age};
    use crate::continuity::checkpoint::tests::example;
    use crate::kafka::StoredCheckpoint;
    use service::clock::now_us;

    /// The looks after a checkpoint whose newest row was committed a minute ago, and a table whose oldest row behind that is 5 s old.
    fn looks(is_partial: bool) -> (PostgresLook, KafkaLook) {
        let mut checkpoint = example();
        checkpoint.newest_commit_us = Some(now_us() - 60_000_000);
        checkpoint.published.partial.take_if(|_| !is_partial);
        let stored = StoredCheckpoint {
            checkpoint,
            offset: 1,
            written_ms: None,
        };
        let (mut postgres, mut kafka) = (PostgresLook::default(), KafkaLook::default());
        kafka.checkpoint = Some(Ok(Some(stored)));
        postgres.oldest_unpublished = Some(Ok(5.0));
        (postgres, kafka)
    }

    #[test]
    fn the_rest_of_a_transaction_is_as_old_as_its_first_rows() {
        let (mut postgres, kafka) = looks(false);
        assert_eq!(oldest_unpublished_age(&postgres, &kafka), Ok(5.0));
        postgres.oldest_unpublished = Some(Err("permission denied".to_owned()));
        assert_eq!(
            oldest_unpublished_age(&postgres, &kafka),
            Err("permission denied".to_owned())
        );
        let (mut postgres, kafka) = looks(true);
        assert!(oldest_unpublished_age(&postgres, &kafka).is_ok_and(|age| age >= 60.0));
        postgres.oldest_unpublished = None;
        assert!(oldest_unpublished_age(&postgres, &kafka).is_ok_and(|age| age >= 60.0));
    }
}
