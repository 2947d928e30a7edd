//! `init --accept-…`: an operator takes responsibility for what the relay cannot prove.
//!
//! Each flag stands for one thing. All that is broken has to be accepted and nothing else may be, so that no flag is given for good
//! measure. Then the slot is owned, earlier producers are fenced, and only then is the checkpoint read and a new one written, in a Kafka
//! transaction: nobody can publish or confirm in between. The new checkpoint is of the next generation, see [`Checkpoint::generation`].

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use service::Shutdown;
use tokio::time::{Instant, sleep};

use crate::commands::init::{self, Initialised, OtherPartitions};
use crate::continuity::checkpoint::{Checkpoint, FORMAT, Lineage, State};
use crate::continuity::lineage::{Source, breaks, written_for_this_server};
use crate::continuity::positions::{highest_position, raise_above};
use crate::continuity::progress::Published;
use crate::kafka::{CheckpointLog, NewTopic, Reading, topic_facts};
use crate::outbox::slot::take_over_slot;
use crate::outbox::source::{self, Publication};
use crate::parking::log::{counted, missing};
use crate::process::faults::{self, Bug};
use crate::process::stop::{RelayError, Stop};
use crate::relay::startup::names;
use crate::settings::{AcceptOptions, Config, InitOptions};
use crate::topics::destination;
use crate::topics::identity::{self, Topics};
use pg_replication::Lsn;
use pg_replication::{Connection, Mode, PgError, quote_literal};

/// How long the server may take to set a slot free whose session has ended.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
/// How often a relay of a former cluster may begin again while it is fenced.
const FENCE_TRIES: u32 = 10;

/// One thing that an operator can accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    SlotGap,
    NewSlot,
    CheckpointLoss,
    GarbledCheckpoint,
    Timeline,
    OlderDatabase,
    Cluster,
    Server,
    Partitions,
    Publication,
    TopicRecreated,
    ParkedLoss,
    UnfinishedRecovery,
}

impl Acceptance {
    /// The flag of `init`.
    #[must_use]
    pub fn flag(self) -> &'static str {
        match self {
            Self::SlotGap => "--accept-slot-gap",
            Self::NewSlot => "--accept-new-slot",
            Self::CheckpointLoss => "--accept-checkpoint-loss",
            Self::GarbledCheckpoint => "--accept-garbled-checkpoint",
            Self::Timeline => "--accept-timeline",
            Self::OlderDatabase => "--accept-older-database",
            Self::Cluster => "--accept-cluster",
            Self::Server => "--accept-server",
            Self::Partitions => "--accept-partitions",
            Self::Publication => "--accept-publication",
            Self::TopicRecreated => "--accept-topic-recreated",
            Self::ParkedLoss => "--accept-parked-loss",
            Self::UnfinishedRecovery => "--accept-unfinished-recovery",
        }
    }

    /// What a stop takes to go on; `None` where nothing but mending its cause helps.
    #[must_use]
    pub fn of(stop: &Stop) -> Option<Self> {
        Some(match stop {
            Stop::SlotAhead { .. } => Self::SlotGap,
            Stop::SlotGone { .. } | Stop::SlotInvalidated { .. } => Self::NewSlot,
            Stop::CheckpointMissing { .. } => Self::CheckpointLoss,
            Stop::CheckpointGarbled { .. } | Stop::CheckpointWentBack { .. } => Self::GarbledCheckpoint,
            Stop::OtherTimeline { .. } => Self::Timeline,
            Stop::ServerBehind { .. } => Self::OlderDatabase,
            Stop::OtherCluster { .. } => Self::Cluster,
            Stop::PublishedFromAnotherServer { .. } => Self::Server,
            Stop::PartitionsChanged { .. } => Self::Partitions,
            Stop::PublicationChanged { .. } => Self::Publication,
            Stop::TopicRecreated { .. } | Stop::TopicGone { .. } => Self::TopicRecreated,
            Stop::ParkedRowsMissing { .. } => Self::ParkedLoss,
            Stop::RecoveryUnfinished { .. } => Self::UnfinishedRecovery,
            _ => return None,
        })
    }
}

impl AcceptOptions {
    /// What the flags say.
    #[must_use]
    pub fn accepted(&self) -> Vec<Acceptance> {
        let all = [
            (self.accept_slot_gap, Acceptance::SlotGap),
            (self.accept_new_slot, Acceptance::NewSlot),
            (self.accept_checkpoint_loss, Acceptance::CheckpointLoss),
            (self.accept_garbled_checkpoint, Acceptance::GarbledCheckpoint),
            (self.accept_timeline, Acceptance::Timeline),
            (self.accept_older_database, Acceptance::OlderDatabase),
            (self.accept_cluster, Acceptance::Cluster),
            (self.accept_server, Acceptance::Server),
            (self.accept_partitions, Acceptance::Partitions),
            (self.accept_publication, Acceptance::Publication),
            (self.accept_topic_recreated, Acceptance::TopicRecreated),
            (self.accept_parked_loss, Acceptance::ParkedLoss),
            (self.accept_unfinished_recovery, Acceptance::UnfinishedRecovery),
        ];
        all.into_iter()
            .filter(|(is_given, _)| *is_given)
            .map(|(_, what)| what)
            .collect()
    }
}

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GoOn {
    /// Where the checkpoint says.
    Checkpoint(Published),
    /// At the slot's confirmed position.
    Slot(Lsn),
    /// At the end of the WAL: the slot is moved there.
    WalEnd(Lsn),
    /// With a new slot.
    NewSlot,
}

/// Sets a new checkpoint over everything that is broken, where exactly that is accepted.
///
/// # Errors
/// The [`Stop`] that is not accepted, [`Stop::Config`] for a flag with nothing to accept; anything else is worth another try.
pub async fn accept(
    config: &Config,
    options: &InitOptions,
    accepted: &[Acceptance],
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    let mut connection = Connection::open(&config.target, Mode::Replication).await?;
    let config = &config.pinned_to(&mut connection).await?;
    if accepted.contains(&Acceptance::Publication) {
        init::create_publication(&mut connection, config).await?;
    }
    let publication = source::usable_publication(&mut connection, config).await?;
    let system = source::identify(&mut connection).await?;
    destination::create(config, &[NewTopic::compacted(&config.checkpoint_topic)]).await?;
    let slot = source::slot(&mut connection, &config.slot).await?;
    let can_be_owned = slot.as_ref().is_some_and(|slot| {
        slot.plugin == "pgoutput" && slot.database == config.target.database && slot.wal_status != "lost"
    });
    let mut owner = if can_be_owned {
        Some(take_over_slot(config).await?)
    } else {
        None
    };
    let mut publisher = init::fence(config, &system, shutdown).await?;
    let (reading, former) = read_fenced(config, accepted, &system.identifier, shutdown).await?;
    faults::point("accept.fenced")?;
    let system = source::identify(&mut connection).await?;
    let slot = source::slot(&mut connection, &config.slot).await?;
    let source = source::source(&system, &config.target.database, slot, &publication);
    let (base, mut found) = look(&source, &reading, config);
    let topics = topics_now(config, base.as_ref()).await?;
    if let Some(base) = &base {
        found.extend(identity::breaks(&base.lineage, &topics));
        let written_ms = reading.last.as_ref().and_then(|last| last.written_ms);
        found.extend(written_for_this_server(&source, base, written_ms).err());
    }
    if let Some(unfinished) = unfinished_init(&found) {
        // Topics that were made anew, and all the rest, are for that init.
        let partitions = found
            .iter()
            .filter(|stop| matches!(stop, Stop::PartitionsChanged { .. }));
        let partitions: Vec<Stop> = partitions.cloned().collect();
        if partitions.is_empty() {
            return Err(unfinished.into());
        }
        exactly(accepted, &partitions)?;
        tell(config, accepted, base.as_ref().map(|base| base.published.lsn), None);
        drop((owner, publisher));
        return init::init_with(config, options, OtherPartitions::Accepted, shutdown).await;
    }
    if let Some(base) = &base {
        found.extend(missing(config, base).await?);
    }
    exactly(accepted, &found)?;

    let generation = [&reading.last, &reading.furthest].into_iter().flatten();
    let generation = generation.map(|found| found.checkpoint.generation).max().unwrap_or(0) + 1;
    let mut lineage = source::lineage(config, &system, &publication, BTreeMap::new());
    pin_partitions(&mut lineage, base.as_ref(), &topics);
    identity::pin_ids(&mut lineage, &topics);
    let earlier = [&reading.last, &reading.furthest].into_iter().flatten();
    let raised = earlier.map(|found| found.checkpoint.lineage.positions_raised_by);
    lineage.positions_raised_by = raised.max().unwrap_or(0);
    let highest_position = base.as_ref().map(highest_position);
    let old = base.as_ref().map(|checkpoint| checkpoint.published.lsn);
    let parking = counted(config, base.as_ref()).await?;
    let go_on = go_on(&source, base.as_ref(), accepted, &publication);
    let published = match go_on {
        GoOn::Checkpoint(published) => published,
        GoOn::Slot(lsn) => at(lsn),
        GoOn::WalEnd(lsn) => {
            if let Some(owner) = owner.take() {
                owner.into_stream().close().await;
            }
            advance(&mut connection, config, lsn).await?;
            owner = Some(take_over_slot(config).await?);
            at(lsn)
        }
        GoOn::NewSlot => {
            if source.slot.is_some() {
                init::drop_slot(&mut connection, config).await?;
            }
            tell(config, accepted, old, None);
            let begun = init::Begun {
                connection,
                publisher,
                system,
                lineage,
                generation,
                highest_position,
                parking,
            };
            let initialised = init::create(config, options, begun, None, shutdown).await?;
            end_former_relays(config, &former, generation, shutdown).await?;
            return Ok(initialised);
        }
    };
    if !matches!(go_on, GoOn::Checkpoint(_)) {
        lineage.positions_raised_by = raise_above(highest_position, lineage.positions_raised_by, published.lsn);
    }
    let checkpoint = Checkpoint {
        format: FORMAT,
        state: State::Running,
        lineage,
        published,
        incarnation: uuid::Uuid::new_v4().to_string(),
        generation,
        existing_rows: None,
        begun: None,
        parking,
    };
    init::commit(&mut publisher, config, &checkpoint).await?;
    end_former_relays(config, &former, generation, shutdown).await?;
    tell(config, accepted, old, Some(published.lsn));
    if let Some(owner) = owner {
        owner.into_stream().close().await;
    }
    Ok(Initialised::Accepted {
        checkpoint: published.lsn,
        what: flags(accepted),
    })
}

/// What to go on from, and all that is broken.
fn look(source: &Source, reading: &Reading, config: &Config) -> (Option<Checkpoint>, Vec<Stop>) {
    let Some(trouble) = &reading.trouble else {
        let mut base = reading.last.as_ref().map(|found| found.checkpoint.clone());
        let Some(recovering) = base.as_mut().filter(|base| base.state == State::Recovering) else {
            let found = breaks(source, base.as_ref(), names(config));
            return (base, found);
        };
        // It has the position that was known; what is broken besides has to be accepted as well.
        recovering.state = State::Running;
        let mut found = vec![Stop::RecoveryUnfinished {
            slot: config.slot.clone(),
        }];
        found.extend(breaks(source, base.as_ref(), names(config)));
        return (base, found);
    };
    // What was confirmed was published. A checkpoint that is older is not the last one, but a copy of which nothing later is left.
    let confirmed = source.slot.as_ref().map_or(Lsn::INVALID, |slot| slot.confirmed);
    let furthest = reading.furthest.as_ref().map(|found| &found.checkpoint);
    let base = furthest
        .filter(|checkpoint| checkpoint.published.lsn >= confirmed)
        .cloned();
    let mut found = vec![trouble.clone()];
    found.extend(
        breaks(source, base.as_ref(), names(config))
            .into_iter()
            .filter_map(|stop| match stop {
                Stop::CheckpointMissing { .. } => None,
                Stop::NotInitialised { slot, topic, .. } => Some(Stop::SlotGone {
                    slot,
                    topic,
                    key: config.checkpoint_key(),
                    checkpoint: Lsn::INVALID,
                }),
                other => Some(other),
            }),
    );
    (base, found)
}

/// The stop of an init that did not finish, where that is what the checkpoint is of.
fn unfinished_init(found: &[Stop]) -> Option<Stop> {
    let unfinished = found.iter().find(|stop| matches!(stop, Stop::InitUnfinished { .. }));
    unfinished.cloned()
}

/// Everything that is broken must be accepted, and nothing else.
fn exactly(accepted: &[Acceptance], found: &[Stop]) -> Result<(), Stop> {
    if let Some(stop) = found
        .iter()
        .find(|stop| Acceptance::of(stop).is_none_or(|needed| !accepted.contains(&needed)))
    {
        return Err(stop.clone());
    }
    for flag in accepted {
        if !found.iter().any(|stop| Acceptance::of(stop) == Some(*flag)) {
            return Err(Stop::Config {
                what: format!("{}: there is nothing of the kind to accept; leave it out", flag.flag()),
            });
        }
    }
    Ok(())
}

fn go_on(source: &Source, base: Option<&Checkpoint>, accepted: &[Acceptance], publication: &Publication) -> GoOn {
    let accepts = |what| accepted.contains(&what);
    if accepts(Acceptance::NewSlot) {
        return GoOn::NewSlot;
    }
    let confirmed = source.slot.as_ref().map_or(Lsn::INVALID, |slot| slot.confirmed);
    let Some(base) = base else {
        return GoOn::Slot(confirmed);
    };
    // A slot cannot be decoded from before its publication was made: the server refuses (up to 17) or skips in silence (18).
    if accepts(Acceptance::Publication) && !is_same_publication(&base.lineage, publication) {
        return GoOn::WalEnd(source.wal_end);
    }
    if accepts(Acceptance::SlotGap) || accepts(Acceptance::OlderDatabase) || accepts(Acceptance::Cluster) {
        return GoOn::Slot(confirmed);
    }
    GoOn::Checkpoint(base.published)
}

/// Whether it was at most altered, and not dropped and made again.
fn is_same_publication(lineage: &Lineage, publication: &Publication) -> bool {
    let oid = |version: &str| version.split(':').next().map(str::to_owned);
    lineage
        .publication_version
        .as_deref()
        .is_some_and(|pinned| oid(pinned) == oid(&publication.version))
}

fn at(lsn: Lsn) -> Published {
    Published { lsn, partial: None }
}

fn flags(accepted: &[Acceptance]) -> String {
    let flags: Vec<&str> = accepted.iter().map(|what| what.flag()).collect();
    flags.join(" ")
}

fn tell(config: &Config, accepted: &[Acceptance], old: Option<Lsn>, new: Option<Lsn>) {
    let text = |lsn: Option<Lsn>, none: &str| lsn.map_or_else(|| none.to_owned(), |lsn| lsn.to_string());
    tracing::warn!(
        slot = config.slot,
        accepted = flags(accepted),
        checkpoint.old_lsn = text(old, "none"),
        checkpoint.new_lsn = text(new, "of a new slot"),
        "an operator accepts what cannot be proven, and the relay goes on from a new position"
    );
}

/// The topics that the checkpoint pins, and that of the checkpoints, as they are now.
async fn topics_now(config: &Config, base: Option<&Checkpoint>) -> Result<Topics, RelayError> {
    let names = match base {
        Some(base) => identity::names(&base.lineage, &config.checkpoint_topic),
        None => vec![config.checkpoint_topic.clone()],
    };
    Ok(topic_facts(&config.kafka, names).await?)
}

/// Pins the topics that the checkpoint pins as they are now; one that is gone is pinned no more.
fn pin_partitions(lineage: &mut Lineage, base: Option<&Checkpoint>, topics: &Topics) {
    let Some(base) = base else { return };
    let mut known = base.lineage.clone();
    let recreated = identity::recreated(&base.lineage, topics);
    identity::forget(&mut known, &recreated);
    for topic in base.lineage.partitions.keys() {
        known.repin(topic, topics.get(topic).map_or(0, |facts| facts.partitions));
    }
    lineage.partitions = known.partitions;
    lineage.former_partitions = known.former_partitions;
}

/// Reads the checkpoints, and where another cluster is accepted, fences the relays of the clusters that wrote them before. What counts is what is read
/// after the last fence. Returns those clusters, too.
async fn read_fenced(
    config: &Config,
    accepted: &[Acceptance],
    system_identifier: &str,
    shutdown: &Shutdown,
) -> Result<(Reading, Vec<String>), RelayError> {
    let mut fenced = vec![system_identifier.to_owned()];
    loop {
        let reading = read_checkpoints(config.clone()).await?;
        let former = [&reading.last, &reading.furthest]
            .into_iter()
            .flatten()
            .map(|found| &found.checkpoint.lineage.system_identifier)
            .find(|identifier| !fenced.contains(identifier));
        match former {
            Some(former)
                if accepted.contains(&Acceptance::Cluster) && !faults::is_planted(Bug::LeaveFormerClusterUnfenced) =>
            {
                // The ids contain the cluster's identifier: fencing those of this cluster leaves a relay of the former one free to publish.
                drop(init::fence_cluster(config, former, shutdown).await?);
                fenced.push(former.clone());
            }
            _ => return Ok((reading, fenced.split_off(1))),
        }
    }
}

/// Keeps the relays of former clusters from going on behind the new checkpoint, which is of this generation.
///
/// A relay that is fenced begins again at once, by the checkpoint that is there then: that of its own cluster, where it is faster than this command. So
/// each is fenced once more, and what has fenced it writes the new checkpoint again: that fails where the relay has begun again meanwhile, and
/// once it has succeeded the relay finds another cluster's checkpoint at its next start, and stops.
async fn end_former_relays(
    config: &Config,
    former: &[String],
    generation: u64,
    shutdown: &Shutdown,
) -> Result<(), RelayError> {
    if former.is_empty() {
        return Ok(());
    }
    let reading = read_checkpoints(config.clone()).await?;
    let written = [reading.last, reading.furthest].into_iter().flatten();
    let mut written = written.map(|found| found.checkpoint);
    let written = written
        .find(|checkpoint| checkpoint.generation == generation)
        .context("the new checkpoint is not in its topic")?;
    for cluster in former {
        let mut tries = 1;
        loop {
            let mut publisher = init::fence_cluster(config, cluster, shutdown).await?;
            match init::commit(&mut publisher, config, &written).await {
                Ok(()) => break,
                Err(RelayError::Transient(_)) if tries < FENCE_TRIES => tries += 1,
                Err(err) => return Err(err),
            }
        }
    }
    Ok(())
}

/// All that the checkpoint topic holds for this relay.
pub(crate) async fn read_checkpoints(config: Config) -> Result<Reading, RelayError> {
    tokio::task::spawn_blocking(move || {
        let log = CheckpointLog {
            settings: &config.kafka,
            topic: &config.checkpoint_topic,
        };
        log.read(&config.checkpoint_key(), false, &|| false)
    })
    .await
    .context("checkpoint task")?
}

async fn advance(connection: &mut Connection, config: &Config, lsn: Lsn) -> Result<(), RelayError> {
    let slot = quote_literal(&config.slot);
    let sql = format!("select pg_replication_slot_advance({slot}, '{lsn}')");
    let started = Instant::now();
    loop {
        match connection.rows(&sql).await {
            Ok(_) => return Ok(()),
            Err(err) if PgError::code_of(&err) == Some("55006") && started.elapsed() < RELEASE_PATIENCE => {
                sleep(Duration::from_millis(100)).await;
            }
            Err(err) => return Err(err.context("cannot move the slot").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Acceptance, exactly};
    use crate::process::stop::Stop;
    use pg_replication::Lsn;

    fn behind() -> Stop {
        Stop::ServerBehind {
            server: Lsn(1),
            checkpoint: Lsn(2),
        }
    }

    fn timeline() -> Stop {
        Stop::OtherTimeline {
            expected: 1,
            found: 2,
            missing: String::new(),
        }
    }

    #[test]
    fn everything_that_is_broken_must_be_accepted_and_nothing_else() {
        let both = [Acceptance::Timeline, Acceptance::OlderDatabase];
        assert_eq!(exactly(&both, &[timeline(), behind()]), Ok(()));
        assert_eq!(exactly(&both[..1], &[timeline(), behind()]), Err(behind()));
        let needless = exactly(&both, &[timeline()]).unwrap_err();
        assert!(needless.to_string().contains("--accept-older-database"), "{needless}");
        assert_eq!(needless.exit_code(), 2);
    }

    #[test]
    fn what_no_flag_accepts_stays_a_stop() {
        let row = Stop::RowUpdated { commit_lsn: Lsn(1) };
        assert_eq!(exactly(&[], std::slice::from_ref(&row)), Err(row));
    }

    #[test]
    fn a_stop_that_can_be_accepted_names_its_flag() {
        let stops = [
            behind(),
            timeline(),
            Stop::SlotAhead {
                slot: String::new(),
                slot_lsn: Lsn(2),
                checkpoint: Lsn(1),
            },
            Stop::PublicationChanged {
                publication: String::new(),
                what: String::new(),
            },
        ];
        for stop in stops {
            let flag = Acceptance::of(&stop).unwrap().flag();
            assert!(stop.to_string().contains(flag), "{stop}");
        }
    }
}
