//! Flags and environment variables.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};

/// Serves the users' REST API; with `migrate`, brings the users' database up to date instead.
///
/// Logs go to standard error: LOG is a level (default info) or a list of module=level, LOG_FORMAT is text or json. /livez, /readyz and /metrics
/// are on the same port as the API. Ends with 0 after SIGTERM or SIGINT, with 1 when a setting is wrong or a migration fails.
#[derive(Debug, Parser)]
#[command(name = "user-api", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub config: Config,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Apply the migrations that are not applied yet, as the user of DATABASE_URL, and print which
    Migrate,
    /// Ask the program that serves LISTEN whether it is ready: 0 if it is, 1 if not
    Health,
}

#[derive(Clone, Debug, Args)]
pub struct Config {
    /// Address and port to serve on; port 0 takes a free one and logs it
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,
    #[command(flatten)]
    pub server: rest::server::Config,
}
