//! How far a generation is filled.

/// How far one partition is.
#[derive(Clone, Debug)]
pub(super) struct Filled {
    pub(super) next: i64,
    /// What the live view has reached: where to stop.
    pub(super) limit: i64,
    /// The `letters_version` under which it was filled.
    pub(super) letters_version: i64,
    pub(super) left_out_from: Option<i64>,
    /// How often the partition's offsets had lost their meaning when its first event was read.
    pub(super) breaks: i64,
}
