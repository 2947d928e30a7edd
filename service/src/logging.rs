//! Log lines for people on a terminal, JSON elsewhere.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging to standard error.
///
/// `LOG` is a level, or levels by module: `warn`, `outbox_relay=debug,info` (default `info`); `LOG_FORMAT` is `text` or `json` (default: text
/// where standard error is a terminal, JSON elsewhere). Call it once, first thing in `main`.
pub fn init() {
    let setting = std::env::var("LOG").unwrap_or_default();
    let levels = parse_levels(&setting);
    let is_understood = levels.is_some();
    // The Postgres client writes every statement's parameters at debug level: rows, so personal data.
    let levels = levels
        .unwrap_or_else(|| Targets::new().with_default(Level::INFO))
        .with_target("tokio_postgres", Level::INFO);
    let as_text = match std::env::var("LOG_FORMAT").as_deref() {
        Ok("text") => true,
        Ok("json") => false,
        _ => std::io::stderr().is_terminal(),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    let registry = tracing_subscriber::registry().with(levels);
    if as_text {
        registry.with(lines.with_ansi(std::io::stderr().is_terminal())).init();
    } else {
        registry.with(lines.json().flatten_event(true)).init();
    }
    if !is_understood {
        tracing::warn!(
            "LOG is `{setting}`, which is no level (error, warn, info, debug, trace) and no list of module=level; the level is info"
        );
    }
}

/// Parses the value of `LOG`. `None` if it cannot be understood.
fn parse_levels(setting: &str) -> Option<Targets> {
    let setting = setting.trim();
    if setting.is_empty() {
        return Some(Targets::new().with_default(Level::INFO));
    }
    setting.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_that_of_all_modules() {
        let levels = parse_levels("warn").unwrap();
        assert!(levels.would_enable("outbox_relay", &Level::WARN));
        assert!(!levels.would_enable("outbox_relay", &Level::INFO));
    }

    #[test]
    fn a_module_has_a_level_of_its_own() {
        let levels = parse_levels("outbox_relay=trace,info").unwrap();
        assert!(levels.would_enable("outbox_relay::intake", &Level::TRACE));
        assert!(levels.would_enable("rdkafka", &Level::INFO));
        assert!(!levels.would_enable("rdkafka", &Level::DEBUG));
    }

    #[test]
    fn nothing_asked_is_info() {
        for setting in ["", " "] {
            let levels = parse_levels(setting).unwrap();
            assert!(levels.would_enable("outbox_relay", &Level::INFO));
            assert!(!levels.would_enable("outbox_relay", &Level::DEBUG));
        }
    }

    #[test]
    fn what_is_no_level_is_not_understood() {
        assert!(parse_levels("outbox_relay=loud").is_none());
    }
}
