//! The lines that the quick start, the benchmarks and the kill storm print while they work.

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging to standard error, in lines for people: only the message, without time and level. It shows warnings of all modules, and information
/// of `modules` and of this crate. Call it once, at the beginning of `main`.
pub fn start(modules: &[&'static str]) {
    let levels = Targets::new()
        .with_default(Level::WARN)
        // These are hidden. librdkafka logs each end of a partition as an error, and brokers are killed on purpose. Real failures are returned as
        // errors, too.
        .with_targets(["librdkafka", "rdkafka"].map(|module| (module, LevelFilter::OFF)))
        .with_target("stack", Level::INFO)
        .with_targets(modules.iter().map(|&module| (module, Level::INFO)));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .without_time()
        .with_level(false)
        .with_target(false);
    tracing_subscriber::registry().with(levels).with(lines).init();
}
