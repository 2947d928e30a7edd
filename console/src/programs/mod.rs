//! Runs the pipeline's programs, as a person would at a terminal.

/// The commands that run now, and those that ran last.
#[derive(Debug, Default)]
pub struct Jobs {}
