//! What any part of the program may use, and what knows no other part: failures with their exit codes, checked settings, metrics,
//! failpoints.

pub mod checked;
pub mod failure;
pub mod faults;
pub(crate) mod json;
pub mod measure;
