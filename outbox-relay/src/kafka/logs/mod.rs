//! What the relay keeps in topics and reads again: its checkpoints, its pause, parked rows, and the ids that it has published.

mod checkpoint_log;
mod keyed_log;
mod pause_log;
mod published_ids;

pub use checkpoint_log::{CheckpointLog, Found, Readers, Reading};
pub use keyed_log::KeyedLog;
pub use pause_log::PauseLog;
pub use published_ids::{Cleanup, TopicRead, TopicToRead, cleanup, read_ids};
