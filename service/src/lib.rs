//! What every program of the pipeline has in common: how it logs, how it is stopped, what its admin port answers.

pub mod admin;
pub mod clock;
pub mod exporter;
#[cfg(feature = "faults")]
pub mod faults;
pub mod health;
pub mod logging;
mod name;
pub mod password_file;
pub mod readiness;
pub mod secret;
pub mod shutdown;
pub mod status;

pub use exporter::Exporter;
pub use readiness::Readiness;
pub use secret::Secret;
pub use shutdown::Shutdown;
