//! The exit codes of `view-builder`. `view-builder --help` says what each one means.

/// Nothing is wrong. From `verify`: all is equal.
pub const SUCCESS: i32 = 0;
/// It failed for a reason that has no code of its own.
pub const FAILED: i32 = 1;
/// A setting is wrong, or the command cannot be done now.
pub const REFUSED: i32 = 2;
/// The folder of a view is incomplete, or Postgres refuses its SQL.
pub const VIEW_REFUSED: i32 = 3;
pub const PARTITION_PAUSED: i32 = 4;
/// Events wait that cannot be applied.
pub const DEAD_LETTERS: i32 = 6;
/// From `status` and `verify`: a view is paused.
pub const VIEW_PAUSED: i32 = 7;
/// From `status`: the views are behind, or no builder keeps them.
pub const BEHIND_OR_NO_BUILDER: i32 = 8;
/// From `status`: Postgres or Kafka does not answer.
pub const SERVER_AWAY: i32 = 9;
/// From `verify`: a row is not what its events say.
pub const DIFFERENT: i32 = 10;
/// From `verify`: events are still on their way.
pub const LAGGING: i32 = 11;
