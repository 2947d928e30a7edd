//! One look at Postgres, at Kafka, and at a builder's own process. It changes nothing and joins no group. A server that is away keeps nobody from the
//! rest.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use service::{clock, health};
use tokio::join;
use tokio::time::{Instant, timeout_at};

use super::ahead::{Ahead, Oldest};
use super::figures::{self, Figures, Group, Partition, PartitionState, Total};
use super::judge::Found;
use super::kafka_look;
use super::postgres_look::{self, Position, PostgresLook};
use crate::kafka::{self, Observer};
use crate::process::failure::Failure;
use crate::process::measure;
use crate::settings::StatusConfig;
use crate::views::pauses::Paused;

/// A server that has not answered its first question by then is away.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// The whole look takes no longer.
const LOOK_WITHIN: Duration = Duration::from_millis(4_500);
/// A topic that a client may ask for to find out whether Kafka answers. It need not exist.
const ANY_TOPIC: &str = "__consumer_offsets";

/// Looks once.
///
/// # Errors
/// A setting or a token that Kafka's client does not take.
pub(super) async fn look(config: &StatusConfig) -> Result<(Figures, Found), Failure> {
    let (first_by, all_by) = (Instant::now() + FIRST_ANSWER_WITHIN, Instant::now() + LOOK_WITHIN);
    let observer = Arc::new(kafka::observer(&config.servers.kafka)?);
    let process = async {
        match config.options.admin_listen {
            Some(listen) => Some(health::ask_for_status(listen).await),
            None => None,
        }
    };
    let (postgres, group, builder) = join!(
        by(
            first_by,
            "postgres does not answer in time",
            postgres_look::look(config)
        ),
        reach_kafka(first_by, &observer, &config.servers.kafka.group_id),
        process
    );
    let (postgres, postgres_away) = told(postgres);
    let (group, group_away) = told(group);
    let positions = postgres.positions.clone().unwrap_or_default();
    let (ahead, ahead_away) = match &group_away {
        Some(_) => (None, None),
        None => match look_ahead(all_by, &observer, positions.clone()).await {
            Ok(ahead) => (Some(ahead), None),
            Err(err) => (None, Some(format!("{err:#}"))),
        },
    };
    let kafka_away = group_away.or(ahead_away);
    let found = find(&postgres, &positions, ahead.as_deref());
    let target = &config.servers.database.0;
    let partitions = partitions(&positions, ahead.as_deref());
    let is_postgres_away = postgres_away.is_some();
    let figures = Figures {
        postgres: figures::Postgres {
            address: addresses(target),
            database: target.database.clone(),
            away_because: postgres_away,
        },
        kafka: figures::Kafka {
            address: config.servers.kafka.client.bootstrap_servers.clone(),
            away_because: kafka_away,
        },
        group: Group {
            name: config.servers.kafka.group_id.to_string(),
            ..group
        },
        builder,
        total: if is_postgres_away {
            Total::default()
        } else {
            total(&partitions)
        },
        partitions,
        views: postgres.views,
    };
    Ok((figures, found))
}

/// Waits for an answer until `deadline`.
async fn by<T>(
    deadline: Instant,
    silence: &'static str,
    answer: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    timeout_at(deadline, answer)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!(silence)))
}

/// The answer, or nothing and the reason.
fn told<T: Default>(answer: anyhow::Result<T>) -> (T, Option<String>) {
    match answer {
        Ok(answer) => (answer, None),
        Err(err) => (T::default(), Some(format!("{err:#}"))),
    }
}

/// On threads of their own: if Kafka takes too long, they are left to end by themselves.
async fn reach_kafka(deadline: Instant, observer: &Arc<Observer>, group: &str) -> anyhow::Result<Group> {
    let (observer, group) = (Arc::clone(observer), group.to_owned());
    let asking = tokio::task::spawn_blocking(move || {
        kafka_look::reach(&observer, ANY_TOPIC)?;
        Ok(kafka_look::group(&observer, &group))
    });
    let asked = async { asking.await.context("asking kafka failed")? };
    by(deadline, "kafka does not answer in time", asked).await
}

async fn look_ahead(
    deadline: Instant,
    observer: &Arc<Observer>,
    positions: Vec<Position>,
) -> anyhow::Result<Vec<Ahead>> {
    let observer = Arc::clone(observer);
    let asking = tokio::task::spawn_blocking(move || super::ahead::look_ahead(&observer, &positions));
    let asked = async { asking.await.context("asking kafka failed")? };
    by(deadline, "kafka does not tell in time where the partitions end", asked).await
}

fn addresses(target: &pg_replication::Target) -> String {
    let addresses: Vec<String> = target.addresses.iter().map(ToString::to_string).collect();
    addresses.join(",")
}

/// What is wrong, in the words of `/readyz`.
fn find(postgres: &PostgresLook, positions: &[Position], ahead: Option<&[Ahead]>) -> Found {
    let ahead_of = |index: usize| ahead.and_then(|ahead| ahead.get(index));
    let with_ahead = || {
        positions
            .iter()
            .enumerate()
            .map(|(index, position)| (position, ahead_of(index)))
    };
    Found {
        no_positions_because: postgres.no_positions_because.clone(),
        // A partition that is gone cannot go on, so its pause is not shown.
        paused_partitions: with_ahead()
            .filter(|(_, ahead)| !matches!(ahead, Some(Ahead::Gone { .. })))
            .filter_map(|(position, _)| position.paused.clone())
            .collect(),
        gone: with_ahead()
            .filter_map(|(position, ahead)| {
                ahead
                    .filter(|ahead| matches!(ahead, Ahead::Gone { .. }))?
                    .absence(&position.place)
            })
            .collect(),
        untold: with_ahead()
            .filter_map(|(position, ahead)| {
                ahead
                    .filter(|ahead| matches!(ahead, Ahead::Untold(_)))?
                    .absence(&position.place)
            })
            .collect(),
        notices: postgres.notices.clone(),
        paused_views: postgres.paused.iter().map(Paused::for_people).collect(),
        stuck: postgres.stuck.clone(),
    }
}

fn partitions(positions: &[Position], ahead: Option<&[Ahead]>) -> Vec<Partition> {
    let now_us = clock::now_us();
    let one =
        |(index, position): (usize, &Position)| partition(position, ahead.and_then(|ahead| ahead.get(index)), now_us);
    positions.iter().enumerate().map(one).collect()
}

fn partition(position: &Position, ahead: Option<&Ahead>, now_us: i64) -> Partition {
    let (end_offset, lag_events, lag_seconds) = match ahead {
        Some(Ahead::Exists { end, oldest }) => {
            let events = (end - position.applied_up_to).max(0);
            match oldest {
                // Where no event is left, only transaction markers can lie ahead.
                Oldest::None => (Some(*end), Some(0), Some(0.0)),
                Oldest::CommittedUs(us) => (Some(*end), Some(events), Some(measure::seconds(*us, now_us))),
                Oldest::NotSent => (Some(*end), Some(events), None),
            }
        }
        // For a partition that is gone nothing will come.
        Some(Ahead::Gone { .. }) => (None, Some(0), Some(0.0)),
        Some(Ahead::Untold(_)) | None => (None, None, None),
    };
    let paused = position.paused.clone();
    let (state, state_because) = match (ahead, paused) {
        (Some(gone @ Ahead::Gone { .. }), _) => (PartitionState::Gone, gone.absence(&position.place)),
        (_, Some(why)) => (PartitionState::Paused, Some(why)),
        (Some(untold @ Ahead::Untold(_)), None) => (PartitionState::Waiting, untold.absence(&position.place)),
        (Some(Ahead::Exists { .. }), None) => (PartitionState::Read, None),
        (None, None) => (PartitionState::Unknown, None),
    };
    Partition {
        topic: position.place.topic.to_string(),
        partition: position.place.partition,
        position_offset: position.next_offset,
        end_offset,
        lag_events,
        lag_seconds,
        state,
        state_because,
        owner: position.owner.clone(),
        epoch: position.epoch,
        dead_letters: position.dead_letters,
    }
}

fn total(partitions: &[Partition]) -> Total {
    Total {
        partitions: partitions.len() as u64,
        lag_events: partitions.iter().map(|partition| partition.lag_events).sum(),
        lag_seconds: largest_known_age(partitions),
        dead_letters: Some(partitions.iter().map(|partition| partition.dead_letters).sum()),
    }
}

/// The largest age that is known, in seconds. `None`: where an age is not known, and no other event waits.
fn largest_known_age(partitions: &[Partition]) -> Option<f64> {
    let known = partitions.iter().filter_map(|partition| partition.lag_seconds);
    let largest = known.fold(0.0, f64::max);
    let are_all_known = partitions.iter().all(|partition| partition.lag_seconds.is_some());
    (largest > 0.0 || are_all_known).then_some(largest)
}

#[cfg(test)]
mod tests {
    use super::{Partition, largest_known_age};

    #[test]
    fn an_age_that_is_not_known_does_not_hide_the_others() {
        let of = |ages: &[Option<f64>]| {
            let one = |age: &Option<f64>| Partition {
                lag_seconds: *age,
                ..Partition::default()
            };
            largest_known_age(&ages.iter().map(one).collect::<Vec<_>>())
        };
        assert_eq!(of(&[Some(1.0), Some(3.0)]), Some(3.0));
        assert_eq!(of(&[Some(1.0), None]), Some(1.0));
        assert_eq!(of(&[Some(0.0), None]), None);
        assert_eq!(of(&[]), Some(0.0));
    }
}
