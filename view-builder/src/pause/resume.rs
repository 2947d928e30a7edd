//! Ending a pause with a replay: positions go back to what the view has.

use std::collections::BTreeMap;

use anyhow::Context as _;
use rdkafka::consumer::Consumer;
use tokio_postgres::{Client, Error};

use crate::batch::TopicPartition;
use crate::config::Kafka;
use crate::database::{self, Session, unanswered};
use crate::failure::Failure;
use crate::faults::{self, Bug};
use crate::kafka::{self, REQUEST_TIMEOUT, place};
use crate::view::View;
use crate::{catalog, pause, refusal};

/// A partition of a paused view's topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pause {
    /// The live position; none: nothing was applied yet.
    live: Option<i64>,
    /// What the paused view has; none: nothing.
    paused: Option<i64>,
    /// Events of a former topic are missing in it.
    lacks: bool,
}

/// First and last offset that a topic has of a partition, the last one excluded.
type Bounds = BTreeMap<TopicPartition, (i64, i64)>;

/// Ends the view's pause: its events since then are applied again to all views, which changes nothing in the others.
///
/// # Errors
/// The view still fails, or its topics do not have all of these events any more; Postgres or Kafka does not answer.
pub(super) async fn resume(client: Client, servers: &Kafka, view: &View) -> Result<String, Failure> {
    let client = check(client, view).await?;
    let pauses = load(&client, &view.name).await.map_err(unanswered)?;
    let (asked, servers) = (pauses.clone(), servers.clone());
    let bounds = tokio::task::spawn_blocking(move || bounds(&servers, asked.keys()))
        .await
        .context("asking kafka failed")??;
    for (place, pause) in &pauses {
        let Some((beginning, end)) = bounds.get(place) else {
            continue;
        };
        if let Some(reason) = lost(*pause, *beginning, *end) {
            return Err(Failure::Setting(format!(
                "{} stays paused: {place} {reason}; make the view anew: view-builder rebuild {}",
                view.name, view.name
            )));
        }
    }
    write(&client, &view.name).await.map_err(unanswered)
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
            "select live.topic, live.partition, live.next_offset, paused.next_offset, coalesce(paused.lacks, false)
             from view_positions as live
             join view_sources as source on source.topic = live.topic and source.view = $1
             left join view_pause_positions as paused
                on paused.view = $1 and paused.topic = live.topic and paused.partition = live.partition",
            &[&view],
        )
        .await?;
    let pause = |row: &tokio_postgres::Row| Pause {
        live: row.get(2),
        paused: row.get(3),
        lacks: row.get(4),
    };
    Ok(rows
        .iter()
        .map(|row| (place(row.get(0), row.get(1)), pause(row)))
        .collect())
}

fn bounds<'a>(servers: &Kafka, places: impl Iterator<Item = &'a TopicPartition>) -> anyhow::Result<Bounds> {
    let observer = kafka::observer(servers)?;
    let bounds = places.map(|place| {
        let (beginning, end) = observer
            .fetch_watermarks(&place.topic, place.partition, REQUEST_TIMEOUT)
            .with_context(|| format!("kafka does not tell where {place} begins and ends"))?;
        Ok((place.clone(), (beginning, end)))
    });
    bounds.collect()
}

/// Why the events that the view lacks cannot be had.
fn lost(pause: Pause, beginning: i64, end: i64) -> Option<String> {
    if pause.lacks {
        return Some("was made anew, and the view lacks events of the topic of before".to_owned());
    }
    let from = pause.paused.unwrap_or(0);
    let live = pause.live?;
    if live <= from {
        return None;
    }
    if end < from {
        return Some(format!(
            "ends at {end}, and the view has events up to {from}: it was made anew"
        ));
    }
    (beginning > from).then(|| {
        format!("begins at {beginning}, and the view has events up to {from}: those between have been removed")
    })
}

async fn write(client: &Client, view: &str) -> Result<String, Error> {
    client.batch_execute("begin").await?;
    client.batch_execute(catalog::LOCK).await?;
    let mut back = 0;
    if !faults::is_planted(Bug::ResumeWithoutReplay) {
        back = client
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
            .await?;
    }
    pause::end(client, view).await?;
    faults::point("resume.made").await?;
    client.batch_execute("commit").await?;
    tracing::warn!(view, partitions = back, "the view is resumed");
    Ok(format!(
        "{view} is resumed; {back} partitions are read again from where it was paused\n"
    ))
}

/// Resumes the views whose pause Postgres was the reason of and whose SQL has changed since: that may have mended them. One that cannot be
/// resumed stays paused, which is said.
pub(crate) async fn resume_changed(servers: &crate::config::Servers) {
    let attempt = async {
        let settings = database::config(&servers.database_url)?;
        let client = database::connect(&settings).await.map_err(unanswered)?;
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
            let client = database::connect(&settings).await.map_err(unanswered)?;
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
    use super::{Pause, lost};

    #[test]
    fn what_the_view_lacks_must_be_in_the_topic() {
        let pause = Pause {
            live: Some(50),
            paused: Some(20),
            lacks: false,
        };
        assert_eq!(lost(pause, 20, 60), None);
        assert!(lost(pause, 21, 60).is_some_and(|reason| reason.contains("begins at 21")));
        assert!(lost(pause, 0, 19).is_some_and(|reason| reason.contains("ends at 19")));
        let lacking = Pause { lacks: true, ..pause };
        assert!(lost(lacking, 0, 60).is_some_and(|reason| reason.contains("made anew")));
    }

    #[test]
    fn a_partition_that_has_not_moved_lacks_nothing() {
        for live in [None, Some(20), Some(3)] {
            let pause = Pause {
                live,
                paused: Some(20),
                lacks: false,
            };
            assert_eq!(lost(pause, 40, 60), None, "{live:?}");
        }
    }

    #[test]
    fn a_view_that_has_nothing_of_a_partition_needs_it_from_its_beginning() {
        let pause = Pause {
            live: Some(5),
            paused: None,
            lacks: false,
        };
        assert_eq!(lost(pause, 0, 9), None);
        assert!(lost(pause, 1, 9).is_some());
    }
}
