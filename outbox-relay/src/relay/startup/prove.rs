//! Step 4 of a start: proves that slot, server and topics continue the checkpoint.

use std::time::Duration;

use service::{Readiness, Shutdown};
use tokio::time::timeout;

use super::fence::Fenced;
use super::own::Owned;
use super::planted;
use crate::continuity::checkpoint::{Checkpoint, Lineage, State};
use crate::continuity::lineage::verify;
use crate::continuity::other_relays::ensure_written_for_this_server;
use crate::continuity::source::Source;
use crate::guard::{Guard, Pinned};
use crate::intake::server_error;
use crate::kafka::Publisher;
use crate::outbox::publication::{Publication, require_usable_publication};
use crate::outbox::source::{self, System};
use crate::parking::{self, log::Parked};
use crate::process::stop::{RelayError, Stop};
use crate::relay::keepalive::{UntilShutdown, keep_stream_alive_during};
use crate::relay::topic_watch::TopicWatch;
use crate::settings::Config;
use crate::topics::checkpoint_topic::commit_checkpoint;
use crate::topics::identity;
use pg_replication::{Connection, Frame, Frames, Mode, ReplicationStream};

/// How long we read what is left of a stream that has ended.
const LAST_FRAMES_PATIENCE: Duration = Duration::from_secs(1);

/// Everything that a running stream needs. Whoever has one knows: streaming from `checkpoint` on loses and repeats nothing.
pub struct Proven {
    pub stream: ReplicationStream,
    pub publisher: Publisher,
    pub checkpoint: Checkpoint,
    pub guard: Guard,
    /// The settings for further sessions. They lead to the server that streams.
    pub config_of_server: Config,
    pub topics: TopicWatch,
    pub parked: Parked,
    catalog_xmin: Option<u32>,
}

/// What a second session with the server that streams has read, after the fence.
struct ServerAfterFence {
    source: Source,
    system: System,
    publication: Publication,
    /// Whether our own walsender reads the slot that this session sees.
    reader_is_ours: anyhow::Result<()>,
}

impl Proven {
    /// Compares the checkpoint with the server, then with the topics. The numbers say what breaks when a step is moved.
    ///
    /// # Errors
    /// The [`Stop`] that says what cannot be proven; anything else is worth another try.
    pub(super) async fn prove_continuity(
        fenced: Fenced,
        config: &Config,
        readiness: &Readiness,
        shutdown: &mut Shutdown,
    ) -> Result<UntilShutdown<Self>, RelayError> {
        let Fenced {
            owned,
            mut publisher,
            stored,
            topics,
            parked,
            ..
        } = fenced;
        let Owned {
            mut stream,
            walsender_pid,
            config_of_server,
            system_at_connect,
            ..
        } = owned;

        // 4.1 Ask the server, in another session. Nobody else can move the slot any more. If we asked before we read the checkpoint, an earlier
        // relay could commit one more checkpoint in between. It would lie above the end of the WAL that we know, and a healthy server would look as if it
        // had lost its end.
        let server = ServerAfterFence::ask(&config_of_server, &system_at_connect, walsender_pid).await?;
        let written_ms = stored.as_ref().and_then(|stored| stored.written_ms);
        let stored_checkpoint = stored.map(|stored| stored.checkpoint);
        let verified = verify(&server.source, stored_checkpoint.as_ref(), config.names_for_messages());

        // 4.2 Only what our own stream's server says counts. Without this, an address that moved to another server would have one server
        // verified and another one streamed from, and a lost stream would be reported as a broken lineage.
        if let Err(not_ours) = server.reader_is_ours {
            return Err(explain_lost_stream(verified.err(), not_ours, &mut stream, config).await);
        }

        // 4.3 Write down that the server is behind, before the stop is returned. Its WAL grows and passes the checkpoint one day, and then nobody could
        // see that it was behind.
        if let (Err(Stop::ServerBehind { .. }), Some(checkpoint)) = (&verified, &stored_checkpoint) {
            // If this server is a copy, nothing is written: the relay of the original server reads the same checkpoint, and would stop.
            ensure_written_for_this_server(&server.source, checkpoint, written_ms)?;
            if checkpoint.state != State::Behind {
                remember_server_behind(config, &mut publisher, checkpoint.clone(), &server.system).await?;
            }
        }
        let mut checkpoint = verified?.clone();
        ensure_written_for_this_server(&server.source, &checkpoint, written_ms)?;

        // 4.4 Start the guard. It compares the server with what is pinned, so the pins come first. Nothing is confirmed before its first look, so it
        // starts as early as it can.
        let publication_version = pin_server_and_publication(&mut checkpoint.lineage, &server);
        let pinned = Pinned {
            publication: publication_version,
            outbox: checkpoint.lineage.outbox.clone(),
            timeline: server.system.timeline,
            walsender_pid,
        };
        let guard = Guard::start(&config_of_server, pinned, readiness);

        // 4.5 Compare the topics and the parked rows. Ids that an earlier version did not write down are pinned only after everything else was right.
        if let Some(stop) = identity::find_breaks(&checkpoint.lineage, &topics).into_iter().next() {
            return Err(stop.into());
        }
        parking::log::ensure_all_parked_rows_are_there(config, &checkpoint.parking, parked.rows)?;
        identity::pin_ids(&mut checkpoint.lineage, &topics);

        // 4.6 Commit the new timeline, last. As long as something is not proven, it may be the former primary's relay that has to go on.
        if checkpoint.lineage.timeline != server.system.timeline {
            let followed = follow_promotion(config, &mut publisher, &mut checkpoint, &server.system);
            match keep_stream_alive_during(&mut stream, followed, shutdown).await? {
                UntilShutdown::Done(committed) => committed?,
                UntilShutdown::ShuttingDown => return Ok(UntilShutdown::ShuttingDown),
            }
        }
        readiness.ready("kafka");
        planted::believe_in_another_position(&mut checkpoint, &server.source);
        Ok(UntilShutdown::Done(Self {
            catalog_xmin: server.source.slot.and_then(|slot| slot.catalog_xmin),
            topics: TopicWatch::start(config, &checkpoint.lineage),
            stream,
            publisher,
            checkpoint,
            guard,
            config_of_server,
            parked,
        }))
    }

    /// [`crate::continuity::source::Slot::catalog_xmin`], as it was before this relay confirmed anything.
    #[must_use]
    pub fn catalog_xmin(&self) -> Option<u32> {
        self.catalog_xmin
    }
}

impl ServerAfterFence {
    /// Asks in a session of its own, since the one that owns the slot streams.
    async fn ask(
        config_of_server: &Config,
        system_at_connect: &System,
        walsender_pid: i32,
    ) -> Result<Self, RelayError> {
        let config = config_of_server;
        let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
        let system = source::identify_same_server(&mut connection, system_at_connect).await?;
        let slot = source::find_slot(&mut connection, &config.source.slot).await?;
        let reader_is_ours = if planted::trusts_any_reader() {
            Ok(())
        } else {
            source::ensure_slot_is_read_by(slot.as_ref(), walsender_pid)
        };
        let publication = require_usable_publication(&mut connection, config).await?;
        Ok(Self {
            source: source::describe_source(config, &system, slot, &publication),
            system,
            publication,
            reader_is_ours,
        })
    }
}

/// Pins when the server started, by which settings rows are counted from now on, and what an earlier version of this program did not write down. Returns the publication's pinned version.
fn pin_server_and_publication(lineage: &mut Lineage, server: &ServerAfterFence) -> String {
    lineage.server_started_us = server.system.started_us;
    lineage.counted_rows = Some(server.source.counted_rows.clone());
    if lineage.outbox.is_none() {
        lineage.outbox.clone_from(&server.publication.outbox);
    }
    let version = lineage
        .publication_version
        .get_or_insert_with(|| server.publication.version.clone());
    version.clone()
}

/// Explains why our walsender does not read the slot. `not_ours` says who reads it.
async fn explain_lost_stream(
    verified: Option<Stop>,
    not_ours: anyhow::Error,
    stream: &mut ReplicationStream,
    config: &Config,
) -> RelayError {
    match verified {
        // A changed publication ends the stream, and this says more than the server's error. Any other stop may be another relay's doing.
        Some(stop @ Stop::PublicationChanged { .. }) => stop.into(),
        _ => match read_servers_last_error(stream, config).await {
            Some(error) => error,
            None => not_ours.into(),
        },
    }
}

/// Reads the error with which the server has ended the stream. `None`: it gave none.
async fn read_servers_last_error(stream: &mut ReplicationStream, config: &Config) -> Option<RelayError> {
    let reading = async {
        loop {
            let length = match Frames::new(stream.buffer()).peek().ok()? {
                Some((Frame::Error { code, message }, _)) => {
                    return Some(server_error(&config.source.publication, code, message));
                }
                Some((_, length)) => length,
                None => {
                    stream.reserve_for_next_frame().ok()?;
                    stream.read().await.ok()?;
                    continue;
                }
            };
            stream.consume(length);
        }
    };
    timeout(LAST_FRAMES_PATIENCE, reading).await.ok().flatten()
}

/// Goes over to a promoted server. Its history was proven to continue the checkpoint's. Its timeline is committed before anything is published. From then
/// on the former primary is refused if it comes back.
async fn follow_promotion(
    config: &Config,
    publisher: &mut Publisher,
    checkpoint: &mut Checkpoint,
    system: &System,
) -> Result<(), RelayError> {
    tracing::warn!(
        slot = config.source.slot.as_str(),
        timeline.from = checkpoint.lineage.timeline,
        timeline.to = system.timeline,
        checkpoint.lsn = %checkpoint.published.lsn,
        "a standby was promoted: it has all that is published and a copy of the slot, so the stream goes on there"
    );
    checkpoint.lineage.timeline = system.timeline;
    commit_checkpoint(publisher, config, checkpoint).await
}

/// Writes down that the server was found behind the checkpoint: see [`State::Behind`].
async fn remember_server_behind(
    config: &Config,
    publisher: &mut Publisher,
    checkpoint: Checkpoint,
    system: &System,
) -> Result<(), RelayError> {
    let mut behind = Checkpoint {
        state: State::Behind,
        ..checkpoint
    };
    behind.lineage.server_started_us = system.started_us;
    commit_checkpoint(publisher, config, &behind).await
}
