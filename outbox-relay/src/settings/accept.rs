//! What an operator accepts with `init --accept-…`.

use clap::Args;

/// How to go on after a stop that the relay cannot prove to be harmless. Each is refused where there is nothing of its kind, or where
/// something else is broken as well that is not accepted. All of them fence a relay that still runs, and log the old and the new position.
#[derive(Clone, Debug, Default, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own on the command line"
)]
#[command(next_help_heading = "Going on after a stop (never done by itself)")]
pub struct AcceptOptions {
    /// After exit code 13, slot recreated, advanced or read by somebody else: go on from the slot's confirmed position. Events between the
    /// checkpoint and there are not published.
    #[arg(long)]
    pub accept_slot_gap: bool,
    /// After exit codes 10 and 11, slot gone or lost: make a new one. With --existing-rows publish, every row that is in the outbox
    /// now is published, also those that were published before; with skip, none is. Rows that come later are published once.
    #[arg(long)]
    pub accept_new_slot: bool,
    /// After exit code 14, slot without a checkpoint: go on from the slot's confirmed position. No event is lost; those that were published
    /// and not yet confirmed are published a second time.
    #[arg(long)]
    pub accept_checkpoint_loss: bool,
    /// After exit codes 15 and 21, a last checkpoint that cannot be read or is older: go on from the furthest one that can be read, exactly
    /// once; where none is left, as --accept-checkpoint-loss does.
    #[arg(long)]
    pub accept_garbled_checkpoint: bool,
    /// After exit code 17, another timeline: go on from the checkpoint. Events that the new timeline's server never had stay published, and
    /// what a promoted standby had and its slot did not hand out is not.
    #[arg(long)]
    pub accept_timeline: bool,
    /// After exit code 18, database restored from an older backup: go on from the slot's confirmed position as the backup has it. No event
    /// that was written since the restore is lost; those between that position and the backup's end are published a second time.
    #[arg(long)]
    pub accept_older_database: bool,
    /// After exit code 16, another database cluster: go on from this cluster's slot, at its confirmed position. A relay that still runs
    /// on the former cluster is fenced, and stops.
    #[arg(long)]
    pub accept_cluster: bool,
    /// After exit code 24, a relay of another server publishes as this one: this server is the right one, go on from the checkpoint.
    #[arg(long)]
    pub accept_server: bool,
    /// After exit code 19, other numbers of partitions: go on from the checkpoint. Later events of a key may be in another partition than
    /// the earlier ones.
    #[arg(long)]
    pub accept_partitions: bool,
    /// After exit code 20, publication altered or made anew: where it was altered, go on from the checkpoint, without the events that the
    /// alteration hid; where it was dropped, make it if it is missing, and go on from the end of the WAL, without what was written since the
    /// checkpoint.
    #[arg(long)]
    pub accept_publication: bool,
    /// After exit code 23, topic deleted and made anew: go on from the checkpoint with the topic as it is now. What had been published to the
    /// former one is gone with it, and is not published again.
    #[arg(long)]
    pub accept_topic_recreated: bool,
    /// After exit code 35, parked rows missing from the parking topic: go on without them. They are published nowhere.
    #[arg(long)]
    pub accept_parked_loss: bool,
    /// After exit code 42, recover needed, or begun and not finished: go on from the checkpoint without comparing. What was published behind it comes
    /// twice, and what an operator aborted on Kafka is not published. For an outbox without a table, of which recover can compare nothing.
    #[arg(long)]
    pub accept_unfinished_recovery: bool,
}
