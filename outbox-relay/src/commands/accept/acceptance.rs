//! What an operator can accept, and the check that exactly what is broken was accepted.

use crate::process::stop::Stop;
use crate::settings::AcceptOptions;

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
    /// The flag of `init` that accepts it.
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

    /// What an operator has to accept so that the relay goes on after `stop`. `None`: only mending the cause helps.
    #[must_use]
    pub fn needed_after(stop: &Stop) -> Option<Self> {
        match stop {
            Stop::SlotAhead { .. } => Some(Self::SlotGap),
            Stop::SlotGone { .. } | Stop::SlotInvalidated { .. } => Some(Self::NewSlot),
            Stop::CheckpointMissing { .. } => Some(Self::CheckpointLoss),
            Stop::CheckpointGarbled { .. } | Stop::CheckpointWentBack { .. } => Some(Self::GarbledCheckpoint),
            Stop::OtherTimeline { .. } => Some(Self::Timeline),
            Stop::ServerBehind { .. } => Some(Self::OlderDatabase),
            Stop::OtherCluster { .. } => Some(Self::Cluster),
            Stop::PublishedFromAnotherServer { .. } => Some(Self::Server),
            Stop::PartitionsChanged { .. } => Some(Self::Partitions),
            Stop::PublicationChanged { .. } => Some(Self::Publication),
            Stop::TopicRecreated { .. } | Stop::TopicGone { .. } => Some(Self::TopicRecreated),
            Stop::ParkedRowsMissing { .. } => Some(Self::ParkedLoss),
            Stop::RecoveryUnfinished { .. } => Some(Self::UnfinishedRecovery),
            Stop::Config { .. }
            | Stop::RowsCountedOtherwise { .. }
            | Stop::NotInitialised { .. }
            | Stop::InitUnfinished { .. }
            | Stop::SlotUnusable { .. }
            | Stop::CheckpointTopicUnsafe { .. }
            | Stop::ParkingTopicUnsafe { .. }
            | Stop::Publication { .. }
            | Stop::OutboxRenamed { .. }
            | Stop::PublishedByAnotherSlot { .. }
            | Stop::Row { .. }
            | Stop::RowUpdated { .. }
            | Stop::RecordTooLarge { .. }
            | Stop::TopicMissing { .. }
            | Stop::TopicRefused { .. }
            | Stop::TransactionHangs { .. }
            | Stop::TooManyParked { .. }
            | Stop::NothingToRecover { .. }
            | Stop::NotConfirmed { .. } => None,
        }
    }
}

impl AcceptOptions {
    /// What the operator accepts with the given flags.
    #[must_use]
    pub fn accepted(&self) -> Vec<Acceptance> {
        // Every field is named here, so the compiler refuses a new flag that is forgotten.
        let Self {
            accept_slot_gap,
            accept_new_slot,
            accept_checkpoint_loss,
            accept_garbled_checkpoint,
            accept_timeline,
            accept_older_database,
            accept_cluster,
            accept_server,
            accept_partitions,
            accept_publication,
            accept_topic_recreated,
            accept_parked_loss,
            accept_unfinished_recovery,
        } = *self;
        let flags = [
            (accept_slot_gap, Acceptance::SlotGap),
            (accept_new_slot, Acceptance::NewSlot),
            (accept_checkpoint_loss, Acceptance::CheckpointLoss),
            (accept_garbled_checkpoint, Acceptance::GarbledCheckpoint),
            (accept_timeline, Acceptance::Timeline),
            (accept_older_database, Acceptance::OlderDatabase),
            (accept_cluster, Acceptance::Cluster),
            (accept_server, Acceptance::Server),
            (accept_partitions, Acceptance::Partitions),
            (accept_publication, Acceptance::Publication),
            (accept_topic_recreated, Acceptance::TopicRecreated),
            (accept_parked_loss, Acceptance::ParkedLoss),
            (accept_unfinished_recovery, Acceptance::UnfinishedRecovery),
        ];
        flags
            .into_iter()
            .filter(|(is_given, _)| *is_given)
            .map(|(_, acceptance)| acceptance)
            .collect()
    }
}

/// The flags as one text, for the operator.
pub(super) fn join_flags(accepted: &[Acceptance]) -> String {
    let flags: Vec<&str> = accepted.iter().map(|acceptance| acceptance.flag()).collect();
    flags.join(" ")
}

/// Fails if the operator did not accept something that is broken, or accepted something that is not broken.
///
/// # Errors
/// The first stop that is not accepted. [`Stop::Config`] for a flag with nothing to accept.
pub(super) fn ensure_operator_accepted_everything_found(accepted: &[Acceptance], broken: &[Stop]) -> Result<(), Stop> {
    for stop in broken {
        let is_accepted = Acceptance::needed_after(stop).is_some_and(|needed| accepted.contains(&needed));
        if !is_accepted {
            return Err(stop.clone());
        }
    }
    for flag in accepted {
        let is_needed = broken.iter().any(|stop| Acceptance::needed_after(stop) == Some(*flag));
        if !is_needed {
            return Err(Stop::Config {
                what: format!("{}: there is nothing of the kind to accept; leave it out", flag.flag()),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Acceptance, ensure_operator_accepted_everything_found as ensure_accepted};
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
        assert_eq!(ensure_accepted(&both, &[timeline(), behind()]), Ok(()));
        assert_eq!(ensure_accepted(&both[..1], &[timeline(), behind()]), Err(behind()));
        let needless = ensure_accepted(&both, &[timeline()]).unwrap_err();
        assert!(needless.to_string().contains("--accept-older-database"), "{needless}");
        assert_eq!(needless.exit_code(), 2);
    }

    #[test]
    fn what_no_flag_accepts_stays_a_stop() {
        let row = Stop::RowUpdated { commit_lsn: Lsn(1) };
        assert_eq!(ensure_accepted(&[], std::slice::from_ref(&row)), Err(row));
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
            let flag = Acceptance::needed_after(&stop).unwrap().flag();
            assert!(stop.to_string().contains(flag), "{stop}");
        }
    }
}
