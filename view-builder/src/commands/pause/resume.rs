//! Ending a pause with a replay: positions go back to what the view has.

use crate::views::epochs;
use std::collections::BTreeMap;

use anyhow::Context as _;
use tokio_postgres::{Client, Error};

use crate::continuity::offsets::{Bounds, Untold, gone, offsets};
use crate::continuity::start::{Topic, TopicIds};
use crate::contract::place::TopicPartition;
use crate::contract::place::place;
use crate::kafka;
use crate::kafka::servers::Kafka;
use crate::postgres::connection;
use crate::postgres::connection::unanswered;
use crate::postgres::refusal;
use crate::process::failure::Failure;
use crate::process::faults::{self, Bug};
use crate::views::database::Session;
use crate::views::view::View;
use crate::views::{catalog, pauses};

/// A partition of a paused view's topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pause {
    /// The live position; none: nothing was applied yet.
    live: Option<i64>,
    /// The highest live position that there was.
    reached: Option<i64>,
    /// The ids of the topics that the live position was of.
    ids: TopicIds,
    /// What the paused view has; none: nothing.
    paused: Option<i64>,
    /// Events of a former topic are missing in it.
    lacks: bool,
}

impl Pause {
    /// Whether events that were applied to the other views are missing in this one. As a builder counts it that begins a topic made anew.
    fn has_missed_any(&self) -> bool {
        self.paused != self.reached
    }
}

/// Ends the view's pause: its events since then are applied again to all views, which changes nothing in the others.
///
/// # Errors
/// The view still fails, or its topics do not have all of these events any more; Postgres or Kafka does not answer.
pub(super) async fn resume(client: Client, servers: &Kafka, view: &View) -> Result<String, Failure> {
    let client = check(client, view).await?;
    let pauses = load(&client, &view.name).await.map_err(unanswered)?;
    let observer = kafka::observer(servers)?;
    let places: Vec<TopicPartition> = pauses.keys().cloned().collect();
    let told = tokio::task::spawn_blocking(move || offsets(&observer, &places))
        .await
        .context("asking kafka failed")?
        .with_context(|| format!("{} stays paused: kafka does not tell of its topics", view.name))?;
    for (place, pause) in &pauses {
        let bounds = told.at(place);
        if let Some(untold) = unknown(pause, bounds) {
            return Err(anyhow::anyhow!("{} stays paused: {place} {untold}; try again", view.name).into());
        }
        if let Some(reason) = lost(pause, bounds) {
            return Err(Failure::Setting(format!(
                "{} stays paused: {place} {reason}; make the view anew: view-builder rebuild {}",
                view.name, view.name
            )));
        }
    }
    let name = &view.name;
    match write(&client, name).await.map_err(unanswered)? {
        Written::Resumed { partitions } => {
            tracing::warn!(view = name, partitions, "the view is resumed");
            Ok(format!(
                "{name} is resumed; {partitions} partitions are read again from where it was paused\n"
            ))
        }
        Written::ByOthers => Ok(format!(
            "{name} is not paused any more: somebody else has ended that meanwhile\n"
        )),
        Written::Lacks => Err(Failure::Setting(format!(
            "{name} stays paused: a topic was made anew meanwhile, and the view lacks events of the topic of before; make the view anew: \
             view-builder rebuild {name}"
        ))),
    }
}

/// What has become of a pause.
enum Written {
    /// It is over, and so many partitions are read again.
    Resumed { partitions: u64 },
    /// Somebody else has ended it since it was looked at.
    ByOthers,
    /// It stays: a topic was made anew since Kafka was asked, and the view lacks events.
    Lacks,
}

/// The view's statement has to work, as a batch without events tells.
async fn check(client: Client, view: &View) -> Result<Client, Failure> {
    let still = |err: Error| {
        Failure::Setting(format!(
            "{} stays paused, as Postgres still refuses what it does: {}",
            view.name,
            refusal::line(&err)
        ))
    };
    let session = Session::prepare(client, std::slice::from_ref(view))
        .await
        .map_err(still)?;
    session.rehearse_nothing().await.map_err(still)?;
    Ok(session.client)
}

/// Where the view and the positions stand.
async fn load(client: &Client, view: &str) -> Result<BTreeMap<TopicPartition, Pause>, Error> {
    let rows = client
        .query(
            "select live.topic, live.partition, live.next_offset as live, greatest(live.next_offset, live.highest_offset) as reached,
                live.topic_id, live.former_topic_ids, paused.next_offset as paused, coalesce(paused.lacks, false) as lacks
             from view_positions as live
             join view_sources as source on source.topic = live.topic and source.view = $1
             left join view_pause_positions as paused
                on paused.view = $1 and paused.topic = live.topic and paused.partition = live.partition",
            &[&view],
        )
        .await?;
    let pause = |row: &tokio_postgres::Row| Pause {
        live: row.get("live"),
        reached: row.get("reached"),
        ids: TopicIds {
            now: row.get("topic_id"),
            former: row.get("former_topic_ids"),
        },
        paused: row.get("paused"),
        lacks: row.get("lacks"),
    };
    Ok(rows
        .iter()
        .map(|row| (place(row.get("topic"), row.get("partition")), pause(row)))
        .collect())
}

/// Why it cannot be told now whether the events that the view lacks can be had.
fn unknown(pause: &Pause, bounds: Result<&Bounds, Untold>) -> Option<String> {
    if pause.lacks || !pause.has_missed_any() {
        return None;
    }
    match bounds {
        Err(Untold::NoPartition { .. }) => None,
        Err(untold) => Some(untold.to_string()),
        Ok(bounds) => (pause.ids.compare(bounds.topic_id.as_deref()) == Topic::Former)
            .then(|| "is told to be of a topic that another one has replaced: a broker lags behind".to_owned()),
    }
}

/// Why the events that the view lacks cannot be had.
fn lost(pause: &Pause, bounds: Result<&Bounds, Untold>) -> Option<String> {
    if pause.lacks {
        return Some("was made anew, and the view lacks events of the topic of before".to_owned());
    }
    let bounds = match bounds {
        Ok(bounds) => bounds,
        Err(Untold::NoPartition { partitions }) if pause.has_missed_any() => {
            return Some(format!("is {}, and the view lacks events of it", gone(partitions)));
        }
        // The view has all of it.
        Err(_) => return None,
    };
    if pause.ids.compare(bounds.topic_id.as_deref()) == Topic::MadeAnew {
        // Where the view has all of the former topic, a builder reads the new one from its beginning for it as for the others.
        return pause
            .has_missed_any()
            .then(|| "was made anew, and the view lacks events of the topic of before".to_owned());
    }
    // The paused view has none of a partition without a pause position, so it needs all from the beginning.
    let from = pause.paused.unwrap_or(0);
    let live = pause.live?;
    if live <= from {
        return None;
    }
    let Bounds { beginning, end, .. } = *bounds;
    if end < from {
        return Some(format!(
            "ends at {end}, and the view has events up to {from}: it was made anew"
        ));
    }
    (beginning > from).then(|| {
        format!("begins at {beginning}, and the view has events up to {from}: those between have been removed")
    })
}

/// Writes that the pause is over, and sets positions back to where it began.
async fn write(client: &Client, view: &str) -> Result<Written, Error> {
    client.batch_execute("begin").await?;
    client.batch_execute(epochs::LOCK).await?;
    let pause = client
        .query_one(
            "select exists (select from view_pauses where view = $1) as is_there,
                exists (select from view_pause_positions where view = $1 and lacks) as lacks",
            &[&view],
        )
        .await?;
    let (is_there, lacks): (bool, bool) = (pause.get("is_there"), pause.get("lacks"));
    // Without the pause there is nothing that says how far to set back, and the whole topics would be read again.
    if !is_there || lacks {
        client.batch_execute("rollback").await?;
        return Ok(if is_there { Written::Lacks } else { Written::ByOthers });
    }
    let partitions = set_positions_back(client, view).await?;
    pauses::end(client, view).await?;
    faults::point("resume.made").await?;
    client.batch_execute("commit").await?;
    Ok(Written::Resumed { partitions })
}

/// Sets the positions back to where the view was paused; gives how many. The planted bug sets none back.
async fn set_positions_back(client: &Client, view: &str) -> Result<u64, Error> {
    if faults::is_planted(Bug::ResumeWithoutReplay) {
        return Ok(0);
    }
    client
        .execute(
            "update view_positions as live
             set next_offset = paused.next_offset,
                group_offset = case when paused.next_offset is not null then live.group_offset end
             from view_positions as place
             join view_sources as source on source.topic = place.topic and source.view = $1
             left join view_pause_positions as paused
                on paused.view = $1 and paused.topic = place.topic and paused.partition = place.partition
             where live.topic = place.topic and live.partition = place.partition
                and live.next_offset > coalesce(paused.next_offset, 0)",
            &[&view],
        )
        .await
}

/// Resumes the views whose pause Postgres was the reason of and whose SQL has changed since: that may have mended them. One that cannot be
/// resumed stays paused, which is said.
pub(crate) async fn resume_changed(servers: &crate::settings::Servers) {
    let attempt = async {
        let target = &servers.database.0;
        let client = connection::connect(target).await.map_err(unanswered)?;
        let rows = client
            .query(
                "select view from view_pauses join view_definitions using (view)
                 where sqlstate is not null and sql_md5 <> md5(table_sql || apply_sql)",
                &[],
            )
            .await
            .map_err(unanswered)?;
        let changed: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let views = catalog::load(&client).await.map_err(unanswered)?;
        for view in views.iter().filter(|view| changed.contains(&view.name)) {
            let client = connection::connect(target).await.map_err(unanswered)?;
            if let Err(failure) = resume(client, &servers.kafka, view).await {
                tracing::error!(view = view.name, error = %failure, "its SQL has changed, and it stays paused all the same");
            }
        }
        Ok::<(), Failure>(())
    };
    if let Err(failure) = attempt.await {
        tracing::warn!(error = %failure, "whether a paused view goes on by its changed SQL is not looked at");
    }
}

#[cfg(test)]
mod tests {
    use super::{Pause, lost, unknown};
    use crate::continuity::offsets::{Bounds, Untold};
    use crate::continuity::start::TopicIds;

    fn bounds(beginning: i64, end: i64) -> Bounds {
        of_topic("b", beginning, end)
    }

    fn of_topic(id: &str, beginning: i64, end: i64) -> Bounds {
        Bounds {
            beginning,
            end,
            group: None,
            epoch: None,
            topic_id: Some(id.to_owned()),
        }
    }

    fn pause(live: Option<i64>, paused: Option<i64>) -> Pause {
        let ids = TopicIds {
            now: Some("b".to_owned()),
            former: vec!["a".to_owned()],
        };
        Pause {
            live,
            reached: live,
            paused,
            lacks: false,
            ids,
        }
    }

    #[test]
    fn what_the_view_lacks_must_be_in_the_topic() {
        let pause = pause(Some(50), Some(20));
        assert_eq!(lost(&pause, Ok(&bounds(20, 60))), None);
        assert!(lost(&pause, Ok(&bounds(21, 60))).is_some_and(|reason| reason.contains("begins at 21")));
        assert!(lost(&pause, Ok(&bounds(0, 19))).is_some_and(|reason| reason.contains("ends at 19")));
        let lacking = Pause { lacks: true, ..pause };
        assert!(lost(&lacking, Ok(&bounds(0, 60))).is_some_and(|reason| reason.contains("made anew")));
    }

    #[test]
    fn a_partition_that_has_not_moved_lacks_nothing() {
        for live in [None, Some(20), Some(3)] {
            assert_eq!(lost(&pause(live, Some(20)), Ok(&bounds(40, 60))), None, "{live:?}");
        }
    }

    #[test]
    fn a_view_that_has_nothing_of_a_partition_needs_it_from_its_beginning() {
        let pause = pause(Some(5), None);
        assert_eq!(lost(&pause, Ok(&bounds(0, 9))), None);
        assert!(lost(&pause, Ok(&bounds(1, 9))).is_some());
    }

    #[test]
    fn a_topic_that_was_made_anew_cannot_give_what_the_view_lacks_of_the_former_one() {
        let anew = of_topic("c", 0, 60);
        let moved = pause(Some(50), Some(20));
        assert!(lost(&moved, Ok(&anew)).is_some_and(|reason| reason.contains("made anew")));
        assert_eq!(lost(&pause(Some(20), Some(20)), Ok(&anew)), None);
        // A replay was under way when the view was paused: it lacks nothing, which nobody can tell.
        let set_back = Pause {
            reached: Some(30),
            ..pause(Some(20), Some(20))
        };
        assert!(lost(&set_back, Ok(&anew)).is_some());
        assert!(unknown(&moved, Ok(&of_topic("a", 0, 60))).is_some());
    }

    #[test]
    fn a_partition_that_is_gone_or_has_no_leader_matters_only_to_a_view_that_lacks_events_of_it() {
        let (moved, unmoved) = (pause(Some(50), Some(20)), pause(Some(20), Some(20)));
        let gone = Err(Untold::NoPartition { partitions: 4 });
        assert!(lost(&moved, gone).is_some_and(|reason| reason.contains("the topic has 4 partitions now")));
        assert_eq!((lost(&unmoved, gone), unknown(&moved, gone)), (None, None));
        let no_leader = Err(Untold::NoLeader);
        assert!(unknown(&moved, no_leader).is_some_and(|reason| reason.contains("no leader")));
        assert_eq!((lost(&unmoved, no_leader), unknown(&unmoved, no_leader)), (None, None));
    }
}
