//! The exit codes of `outbox-relay`. docs/exit-codes.md says what each one means.

pub const WRONG_SETTING: i32 = 2;
/// `init` was not done, or did not finish.
pub const NOT_INITIALISED: i32 = 3;
pub const SLOT_GONE: i32 = 10;
pub const SLOT_INVALIDATED: i32 = 11;
pub const SLOT_UNUSABLE: i32 = 12;
pub const SLOT_AHEAD: i32 = 13;
pub const CHECKPOINT_MISSING: i32 = 14;
pub const CHECKPOINT_GARBLED: i32 = 15;
pub const OTHER_CLUSTER: i32 = 16;
pub const OTHER_TIMELINE: i32 = 17;
pub const SERVER_BEHIND: i32 = 18;
pub const PARTITIONS_CHANGED: i32 = 19;
/// The publication is missing or altered, or does not publish the inserts of the outbox.
pub const PUBLICATION_WRONG: i32 = 20;
pub const CHECKPOINT_WENT_BACK: i32 = 21;
/// A topic was deleted, or deleted and made anew.
pub const TOPIC_DELETED: i32 = 23;
/// Another slot publishes this outbox, or a relay of a copy of the database publishes under this relay's name.
pub const PUBLISHED_BY_ANOTHER: i32 = 24;
/// The checkpoint topic may lose the last checkpoint, or the parking topic may lose parked rows.
pub const TOPIC_UNSAFE: i32 = 25;
/// A row cannot become a record, or a row was updated.
pub const ROW_REFUSED: i32 = 30;
pub const RECORD_TOO_LARGE: i32 = 31;
pub const TOPIC_MISSING: i32 = 32;
pub const TOO_MANY_PARKED: i32 = 33;
/// A topic cannot be created.
pub const TOPIC_REFUSED: i32 = 34;
pub const PARKED_ROWS_MISSING: i32 = 35;
pub const TRANSACTION_HANGS: i32 = 36;
pub const NOTHING_TO_RECOVER: i32 = 40;
/// Nobody said yes, or some rows are undecided.
pub const NOT_CONFIRMED: i32 = 41;
pub const RECOVERY_UNFINISHED: i32 = 42;
/// From `status`: the relay is paused or behind.
pub const PAUSED_OR_BEHIND: i32 = 50;
/// From `status`: no relay reads the slot, and one that is started goes on.
pub const NO_RELAY: i32 = 51;
/// From `status`: Postgres or Kafka does not answer.
pub const SERVER_AWAY: i32 = 52;
pub const PANIC: i32 = 70;
/// A failpoint ended the program.
pub const FAILPOINT: i32 = 77;
