//! What the relay keeps in topics and reads again: its checkpoints, its pause, parked rows, and the ids that it has published.

mod checkpoint_log;
mod checkpoint_reading;
mod keyed_log;
mod pause_log;
mod planted;
mod published_ids;

pub use checkpoint_log::{CheckpointLog, ReadFrom, Readers};
pub use checkpoint_reading::{Reading, StoredCheckpoint};
pub use keyed_log::KeyedLog;
pub use pause_log::PauseLog;
pub use published_ids::{Cleanup, TopicRead, TopicToRead, cleanup, read_ids};
