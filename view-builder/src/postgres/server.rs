//! Where the views' database is, as the command line says.

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use pg_replication::Target;
use service::Secret;

use super::connection;

/// The views' database. The URL is checked when the command line is read, and not by clap, which would print a wrong one with its password.
#[derive(Clone, Debug)]
pub struct ViewsDatabase(pub Target);

#[derive(Args)]
struct DatabaseArgs {
    /// The views' database, such as postgres://view_builder@localhost:15432/materialized_view_db. Several hosts, HOST:PORT,HOST:PORT, are tried in
    /// their order until one takes writes. Parameters: target_session_attrs, sslmode, sslrootcert, sslcert, sslkey, channel_binding, passwordfile, host (a
    /// directory is a Unix socket), application_name, options.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Secret,
}

impl FromArgMatches for ViewsDatabase {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let DatabaseArgs { database_url } = DatabaseArgs::from_arg_matches(matches)?;
        match connection::target_of("DATABASE_URL", &database_url) {
            Ok(target) => Ok(Self(target)),
            Err(err) => Err(clap::Error::raw(ErrorKind::ValueValidation, format!("{err}\n"))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ViewsDatabase {
    fn augment_args(command: Command) -> Command {
        DatabaseArgs::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        DatabaseArgs::augment_args_for_update(command)
    }
}
