//! `view-builder verify`: whether the views are what their sources say, while everything goes on.
//!
//! **What is compared** stands in each view's `verify.sql`, see [`crate::views::view`]. Each side is looked at in one REPEATABLE READ
//! snapshot of its own database: counted and hashed by bucket inside Postgres, so that only sums cross the wire; then, of the
//! buckets that differ, key, version and hash of each row, streamed in the order of the keys and merged ([`mod@compare`],
//! `merge.rs`). The merge takes all these buckets at once, so a row that is in another bucket on the other side comes once.
//!
//! **Lag or difference.** The two snapshots are of different moments, and an event takes a while from one to the other. So what
//! differs is only a candidate, and is looked at again:
//!
//! 1. read the candidates' rows in the source: `before`;
//! 2. note the end L of the source's write-ahead log. A commit that `before` sees is in the log before L;
//! 3. wait until the relay's slot has confirmed L. The relay confirms a position only after every outbox row below it is in
//!    a committed Kafka transaction: so an event of a row as `before` has it is in the topic, and no longer only in the outbox;
//! 4. note the ends of the view's topics, and wait until the view's positions have passed them. The ends are those of a reader
//!    who sees open transactions, since a committed record can stand behind another producer's open transaction.
//!    A transaction marker at the end has an offset and is no event: what stands between a position and the end is read from the
//!    topic (`tail.rs`, which says why the group's offset in `view_positions` is not to be relied on);
//! 5. read the candidates' rows in the view: `shown`. Positions commit with the rows, so `shown` has every event up to L;
//! 6. read the candidates' rows in the source again: `after`.
//!
//! `shown` equal to `before` or to `after`: it was lag. Otherwise, if `before` equals `after`, the row was at rest all the while,
//! since a version never comes back; the view had all its events, and shows something else: a difference. Otherwise the row has
//! changed, and the next round begins with `after` as `before`.
//!
//! A row that the source does not have has no version. It cannot have come and gone between `before` and `after`: a candidate
//! was in the source or in the view at the first look, so it was made before `before` was read, and an id is never given again.
//!
//! Where the relay or the view does not get there in time nothing is proven, and the rows are "behind", also those that
//! somebody edited by hand: start what is stopped, and verify again. A source in the views' own database (`-- source: views`)
//! needs none of this: both queries share one snapshot.

pub mod arrival;
pub mod compare;
pub mod file;
mod merge;
mod report;
pub mod side;
mod tail;

use std::sync::Arc;
use std::time::Duration;

use pg_replication::Target;
use tokio_postgres::Client;

use crate::commands::verify::arrival::Pipeline;
use crate::commands::verify::compare::compare;
use crate::commands::verify::file::{Comparison, Origin};
pub use crate::commands::verify::report::{Compared, Report};
use crate::commands::verify::side::Side;
use crate::commands::verify::tail::Tails;
use crate::kafka;
use crate::postgres::connection;
use crate::process::failure::Failure;
use crate::settings::VerifyConfig;
use crate::views::view::{SqlFile, View};
use crate::views::{pauses, view};

/// Compares all views that have a `verify.sql`.
///
/// # Errors
/// A file or a setting is wrong; Postgres or Kafka does not answer. What the views are is in the report.
pub async fn verify(config: &VerifyConfig) -> Result<Report, Failure> {
    let views = view::load_all(&config.folder.views)?;
    let mut plans = Vec::new();
    let mut report = Report::new(config.limit, config.json);
    for view in &views {
        match &view.verify {
            Some(file) => {
                let comparisons = file::parse(file, &view.topics)?;
                plans.extend(comparisons.into_iter().map(|comparison| (view, file, comparison)));
            }
            None => report.unverified.push(view.name.clone()),
        }
    }
    for (_, _, comparison) in &plans {
        if let Origin::Topic(topic) = &comparison.origin {
            source_url(config, topic)?;
        }
    }
    if !plans.is_empty() {
        let paused = pauses::load_paused(&connect(&views_database(config)).await?).await;
        let paused = paused.map_err(|err| side::failed("the paused views cannot be read", &err))?;
        report.paused = paused
            .iter()
            .map(|paused| (paused.view.clone(), paused.for_people()))
            .collect();
    }
    for (view, file, comparison) in plans {
        // It lacks what came since, which is no difference to look for.
        if report.paused.contains_key(&view.name) {
            continue;
        }
        report.compared.push(run(config, view, file, comparison).await?);
    }
    Ok(report)
}

async fn run(config: &VerifyConfig, view: &View, file: &SqlFile, comparison: Comparison) -> Result<Compared, Failure> {
    let (name, table) = (&view.name, &comparison.table);
    let views_url = views_database(config);
    let (source_name, source_url) = match &comparison.origin {
        Origin::Topic(topic) => (format!("the source of {topic}"), source_url(config, topic)?),
        Origin::Views => ("the recomputation".to_owned(), views_url.clone()),
    };
    tracing::info!(view = name, table, "counting and hashing {source_name} and the view");
    let source = Side::new(connect(&source_url).await?, &comparison.source, file, &source_name).await?;
    let shown = Side::new(connect(&views_url).await?, &comparison.view, file, "the view").await?;
    let wait = Duration::from_secs(config.wait.into());
    let mut pipeline = match &comparison.origin {
        Origin::Views => None,
        Origin::Topic(topic) => Some(Pipeline {
            source: connect(&source_url).await?,
            source_topic: topic.clone(),
            slot: config.sources.slot_of(topic).map(str::to_owned),
            views: connect(&views_url).await?,
            observer: Arc::new(kafka::uncommitted_observer(&config.servers.kafka)?),
            tails: Tails::new(&config.servers.kafka)?,
            topics: view.topics.clone(),
        }),
    };
    let outcome = compare(&source, &shown, pipeline.as_mut(), wait, config.all).await?;
    Ok(Compared {
        view: name.clone(),
        comparison,
        outcome,
    })
}

/// A database, with the name of the setting that says where it is.
type Place = (String, Target);

fn views_database(config: &VerifyConfig) -> Place {
    ("DATABASE_URL".to_owned(), config.servers.database.0.clone())
}

fn source_url(config: &VerifyConfig, topic: &str) -> Result<Place, Failure> {
    let url = config.sources.url_of(topic).ok_or_else(|| {
        Failure::Setting(format!(
            "a view is compared with the tables that {topic} comes from: name their database as --source \
             {topic}=postgres://view_verifier@HOST:PORT/DATABASE (SOURCES)"
        ))
    })?;
    let name = format!("the source of {topic} (SOURCES)");
    let target = connection::target_of(&name, url)?;
    Ok((name, target))
}

async fn connect((name, target): &Place) -> Result<Client, Failure> {
    let client = connection::connect(target).await;
    client.map_err(|err| side::failed(&format!("{name}: postgres does not answer"), &err))
}
