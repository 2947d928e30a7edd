//! Ends a pause by a replay: the positions go back to what the view has.

use std::collections::BTreeMap;

use anyhow::Context as _;
use tokio_postgres::{Client, Error};

use super::lacking::{Pause, why_lost, why_unknown};
use crate::continuity::offsets::offsets;
use crate::continuity::topic_ids::TopicIds;
use crate::contract::place::{TopicPartition, place};
use crate::kafka;
use crate::kafka::servers::Kafka;
use crate::postgres::connection;
use crate::postgres::connection::unanswered;
use crate::postgres::refusal;
use crate::process::failure::Failure;
use crate::process::faults::{self, Bug};
use crate::views::database::Session;
use crate::views::view::View;
use crate::views::{catalog, epochs, pauses};

/// Ends the view's pause. All events since the pause are applied again to all views. This changes nothing in the other views.
///
/// # Errors
/// The view still fails, or its topics do not have all of these events any more; Postgres or Kafka does not answer.
pub(super) async fn resume(client: Client, servers: &Kafka, view: &View) -> Result<String, Failure> {
    let client = ensure_statement_works(client, view).await?;
    let pauses = load_pause_positions(&client, &view.name).await.map_err(unanswered)?;
    let observer = kafka::observer(servers)?;
    let places: Vec<TopicPartition> = pauses.keys().cloned().collect();
    let offsets = tokio::task::spawn_blocking(move || offsets(&observer, &places))
        .await
        .context("asking kafka failed")?
        .with_context(|| format!("{} stays paused: kafka does not tell of its topics", view.name))?;
    for (place, pause) in &pauses {
        let bounds = offsets.at(place);
        if let Some(untold) = why_unknown(pause, bounds) {
            return Err(anyhow::anyhow!("{} stays paused: {place} {untold}; try again", view.name).into());
        }
        if let Some(reason) = why_lost(pause, bounds) {
            return Err(Failure::Setting(format!(
                "{} stays paused: {place} {reason}; make the view anew: view-builder rebuild {}",
                view.name, view.name
            )));
        }
    }
    let name = &view.name;
    match end_pause_by_replay(&client, name).await.map_err(unanswered)? {
        Ended::Resumed { partitions } => {
            tracing::warn!(view = name, partitions, "the view is resumed");
            Ok(format!(
                "{name} is resumed; {partitions} partitions are read again from where it was paused\n"
            ))
        }
        Ended::ByOthers => Ok(format!(
            "{name} is not paused any more: somebody else has ended that meanwhile\n"
        )),
        Ended::StaysPaused => Err(Failure::Setting(format!(
            "{name} stays paused: a topic was made anew meanwhile, and the view lacks events of the topic of before; make the view anew: \
             view-builder rebuild {name}"
        ))),
    }
}

/// How the end of a pause went.
enum Ended {
    /// The pause is over, and so many partitions are read again.
    Resumed { partitions: u64 },
    /// Somebody else has ended it since this command looked.
    ByOthers,
    /// A topic was made anew since Kafka was asked, and the view lacks events.
    StaysPaused,
}

/// Checks with a batch without events that the view's statement works.
async fn ensure_statement_works(client: Client, view: &View) -> Result<Client, Failure> {
    let stays_paused = |err: Error| match refusal::kind(&err) {
        // Postgres has said nothing about the view. Another try may tell.
        refusal::Kind::Away => unanswered(err),
        _ => Failure::Setting(format!(
            "{} stays paused, as Postgres still refuses what it does: {}",
            view.name,
            refusal::line(&err)
        )),
    };
    faults::point("resume.checks").await.map_err(stays_paused)?;
    let session = Session::prepare(client, std::slice::from_ref(view))
        .await
        .map_err(stays_paused)?;
    session.rehearse_nothing().await.map_err(stays_paused)?;
    Ok(session.client)
}

/// Loads the live position and the pause position of each partition that the view reads.
async fn load_pause_positions(client: &Client, view: &str) -> Result<BTreeMap<TopicPartition, Pause>, Error> {
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

/// Ends the pause and sets the positions back to where it began, in one transaction.
async fn end_pause_by_replay(client: &Client, view: &str) -> Result<Ended, Error> {
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
    // Without the pause, nothing would say how far to set the positions back, and the whole topics would be read again.
    if !is_there || lacks {
        client.batch_execute("rollback").await?;
        return Ok(if is_there { Ended::StaysPaused } else { Ended::ByOthers });
    }
    let partitions = set_positions_back(client, view).await?;
    pauses::end_pause(client, view).await?;
    faults::point("resume.made").await?;
    client.batch_execute("commit").await?;
    Ok(Ended::Resumed { partitions })
}

/// Sets the positions back to where the view was paused. Returns how many were set back. The planted bug sets none back.
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

/// Resumes the views that were paused since Postgres refused their SQL, if that SQL has changed since, which may have mended them. A view that
/// cannot be resumed stays paused, and the log says so.
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
        let views = catalog::load_views(&client).await.map_err(unanswered)?;
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
