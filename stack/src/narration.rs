//! What the quick start, the benchmarks and the kill storm tell meanwhile.

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging to standard error, in lines for people: the words and nothing else. Warnings of all modules are told, and what
/// `modules` and this crate inform of. Call it once, first thing in `main`.
pub fn start(modules: &[&'static str]) {
    let levels = Targets::new()
        .with_default(Level::WARN)
        // librdkafka logs the end of each partition as an error, and a broker that is being killed is no news; what fails is returned as well.
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
