//! What an operator does about poison rows: `park`, `parked list`, `parked retry`, `parked discard`.
//!
//! A command that changes something begins as the relay does: see [`Session::open`]. So no relay runs meanwhile, and a relay that was held up cannot write
//! any more. Its changes and a checkpoint are in one Kafka transaction. The checkpoint's position stays as it is.

mod parked_row;
pub mod retry;

use std::collections::BTreeMap;

use anyhow::Context as _;
use service::Shutdown;

use self::retry::Which;
use crate::commands::confirm::ask_for_yes;
use crate::commands::fence::fence_relays_of_cluster;
use crate::continuity::checkpoint::Checkpoint;
use crate::continuity::lineage::verify;
use crate::continuity::other_relays::ensure_written_for_this_server;
use crate::kafka::{Publisher, topic_facts};
use crate::outbox::publication::require_usable_publication;
use crate::outbox::slot::take_over_slot;
use crate::outbox::source::{self, System};
use crate::parking::log::{find_missing_parked_rows, read_entries_off_thread};
use crate::parking::record::Entry;
use crate::parking::send::send_entry;
use crate::parking::table::format_table;
use crate::process::row_name::RowPosition;
use crate::process::stop::{RelayError, Stop};
use crate::relay::survey::read_last_checkpoint;
use crate::settings::Config;
use crate::settings::parking::{DiscardArgs, ParkArgs, ParkedCommand};
use crate::topics::checkpoint_topic::commit_checkpoint;
use crate::topics::hanging_transaction::wait_until_nothing_is_open;
use crate::topics::identity;
use pg_replication::{Connection, Mode, ReplicationStream};

/// What a command needs that changes something.
pub(super) struct Session {
    /// Owns the slot.
    pub(super) stream: ReplicationStream,
    /// Has fenced all earlier producers of this relay.
    pub(super) publisher: Publisher,
    pub(super) checkpoint: Checkpoint,
    pub(super) system: System,
}

impl Session {
    /// 1. Own the slot. If a relay runs, the command ends here, before it has changed anything.
    /// 2. Fence earlier producers. A relay that was held up can write no checkpoint from here on.
    /// 3. Read the checkpoint, the slot and the server, and prove that they fit, as a start does. Before the fence, the checkpoint might not be the last one.
    /// 4. Check that the topics and the parked rows are as the checkpoint says.
    ///
    /// # Errors
    /// A relay runs, or the relay could not go on from the checkpoint either.
    pub(super) async fn open(config: &Config, shutdown: &Shutdown) -> Result<Self, RelayError> {
        let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
        let config = &config.pinned_to(&mut connection).await?;
        let publication = require_usable_publication(&mut connection, config).await?;
        // Step 1.
        let owned = match source::find_slot(&mut connection, &config.source.slot).await? {
            Some(_) => Some(take_over_slot(config).await.map_err(|err| match err {
                RelayError::Transient(err) => RelayError::Transient(
                    err.context("nothing was changed: stop the relay, and its standbys, while this command runs"),
                ),
                stop => stop,
            })?),
            None => None,
        };
        let system = source::identify_server(&mut connection).await?;
        // Step 2.
        let publisher = match &owned {
            Some(_) => Some(fence_relays_of_cluster(config, &system.identifier, shutdown).await?),
            None => None,
        };
        // Step 3.
        let found = read_last_checkpoint(config.clone()).await?;
        let slot = source::find_slot(&mut connection, &config.source.slot).await?;
        let system = source::identify_server(&mut connection).await?;
        let source = source::describe_source(config, &system, slot, &publication);
        let written_ms = found.as_ref().and_then(|found| found.written_ms);
        let checkpoint = verify(
            &source,
            found.as_ref().map(|found| &found.checkpoint),
            config.names_for_messages(),
        )?;
        ensure_written_for_this_server(&source, checkpoint, written_ms)?;
        let mut checkpoint = checkpoint.clone();
        // Step 4.
        let topics = topic_facts(
            &config.sink.kafka,
            identity::names_of_topics(&checkpoint.lineage, &config.sink.checkpoint_topic),
        )
        .await?;
        if let Some(stop) = identity::find_breaks(&checkpoint.lineage, &topics).into_iter().next() {
            return Err(stop.into());
        }
        wait_until_nothing_is_open(config, topics.keys(), shutdown).await?;
        if let Some(stop) = find_missing_parked_rows(config, &checkpoint).await? {
            return Err(stop.into());
        }
        checkpoint.lineage.server_started_us = system.started_us;
        Ok(Self {
            stream: owned.context("there is no slot")?.into_stream(),
            publisher: publisher.context("there is no slot")?,
            checkpoint,
            system,
        })
    }
}

/// `park`: orders that the next `run` parks the row at which the relay stopped.
///
/// # Errors
/// [`Stop::Config`] for any other row; else as [`Session::open`].
pub async fn park(config: &Config, args: &ParkArgs, shutdown: &Shutdown) -> Result<String, RelayError> {
    let mut session = Session::open(config, shutdown).await?;
    let position = args.position;
    let published = session.checkpoint.published;
    let refusal = |what: String| Stop::Config {
        what: format!("nothing was changed: {what}"),
    };
    if position.is_passed_by(&published) {
        let what = format!(
            "the row at {position} lies before the checkpoint {}, so it is published or parked already",
            published.lsn
        );
        return Err(refusal(what).into());
    }
    let Some(stopped) = session
        .checkpoint
        .parking
        .stopped
        .as_mut()
        .filter(|stopped| stopped.position == position)
    else {
        let known = session.checkpoint.parking.stopped.as_ref();
        let what = match known {
            Some(stopped) => format!(
                "the relay has stopped at the row at {}, not at {position}",
                stopped.position
            ),
            None => format!(
                "the checkpoint names no row at which the relay has stopped; start it, and park the row that its last line names, if {position} is still the one"
            ),
        };
        return Err(refusal(what).into());
    };
    stopped.park = true;
    let reason = stopped.reason.clone();
    session.checkpoint.incarnation = uuid::Uuid::new_v4().to_string();
    commit_checkpoint(&mut session.publisher, config, &session.checkpoint).await?;
    session.stream.close().await;
    tracing::warn!(position = %position, reason, "an operator has a row parked by the next run");
    Ok(format!(
        "the next `outbox-relay run` parks the row at {position} and goes on behind it ({reason})\n"
    ))
}

/// The commands below `parked`.
///
/// # Errors
/// A [`Stop`], or an error that only reports.
pub async fn parked(command: ParkedCommand, shutdown: &Shutdown) -> Result<String, RelayError> {
    match command {
        ParkedCommand::List(args) => list(&args.settings.check()?, args.json).await,
        ParkedCommand::Retry(args) => {
            let which = args.position.map_or(Which::All, Which::One);
            retry::retry(&args.settings.check()?, which, shutdown).await
        }
        ParkedCommand::Discard(args) => discard(&args.settings.check()?, &args, shutdown).await,
    }
}

async fn list(config: &Config, as_json: bool) -> Result<String, RelayError> {
    let entries = read_entries_off_thread(config).await?;
    if as_json {
        let all: Vec<&Entry> = entries.values().collect();
        let text = serde_json::to_string_pretty(&all).context("parked rows as JSON")?;
        return Ok(format!("{text}\n"));
    }
    if entries.is_empty() {
        return Ok(format!("no rows of slot {} are parked\n", config.source.slot));
    }
    Ok(format_table(entries.values()))
}

async fn discard(config: &Config, args: &DiscardArgs, shutdown: &Shutdown) -> Result<String, RelayError> {
    let position = args.position;
    let entries = read_entries_off_thread(config).await?;
    let entry = find_parked_row(&entries, position)?;
    if !args.yes {
        let shown = format_table([entry].into_iter());
        ask_for_yes(
            &format!("{shown}this row will be published nowhere; discard it? [yes/no] "),
            "there is no terminal to ask on; add --yes to carry this out",
            "the answer was not `yes`",
        )
        .await?;
    }
    let mut session = Session::open(config, shutdown).await?;
    let entries = read_entries_off_thread(config).await?;
    let entry = find_parked_row(&entries, position)?;
    send_entry(&mut session.publisher, config, position, None).await?;
    session.checkpoint.parking.rows = entries.len() as u64 - 1;
    session.checkpoint.incarnation = uuid::Uuid::new_v4().to_string();
    commit_checkpoint(&mut session.publisher, config, &session.checkpoint).await?;
    session.stream.close().await;
    tracing::warn!(
        position = %position,
        id = entry.id.as_deref().unwrap_or("none"),
        reason = entry.reason,
        "an operator has discarded a parked row: it is published nowhere"
    );
    let behind = entries
        .values()
        .filter(|other| other.topic_key.is_some() && other.topic_key == entry.topic_key && other.position > position)
        .count();
    Ok(format!(
        "the row at {position} (id {}) is discarded; {behind} parked rows of its key stand behind it, and `outbox-relay parked retry` publishes them\n",
        entry.id.as_deref().unwrap_or("none")
    ))
}

/// Finds the entry of the row at `position`.
///
/// # Errors
/// [`Stop::Config`]: no such row is parked.
pub(super) fn find_parked_row(entries: &BTreeMap<RowPosition, Entry>, position: RowPosition) -> Result<&Entry, Stop> {
    entries.get(&position).ok_or_else(|| Stop::Config {
        what: format!(
            "nothing was changed: no row at {position} is parked; `outbox-relay parked list` shows those that are"
        ),
    })
}
