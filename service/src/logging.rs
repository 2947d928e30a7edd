//! Log lines for people on a terminal, JSON elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging to standard error.
///
/// `LOG` sets the filter in `tracing`'s directive syntax (default `info`); `LOG_FORMAT` is `text` or `json` (default: text
/// where standard error is a terminal, JSON elsewhere). Call it once, first thing in `main`.
pub fn init() {
    let filter = EnvFilter::try_from_env("LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // The Postgres client writes every statement's parameters at debug level: rows, so personal data.
    let filter = match "tokio_postgres=info".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let as_text = match std::env::var("LOG_FORMAT").as_deref() {
        Ok("text") => true,
        Ok("json") => false,
        _ => std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    if as_text {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    } else {
        builder.json().flatten_event(true).init();
    }
}
