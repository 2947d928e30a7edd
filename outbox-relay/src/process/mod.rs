//! What any part of the program may use, and what knows no other part: the stop with its exit code, panics, failpoints.

pub mod allocator;
pub mod answer;
pub mod faults;
pub mod panics;
pub(crate) mod progress_bar;
pub mod row_name;
pub mod stop;
