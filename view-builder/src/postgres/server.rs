//! Where the views' database is, as the command line says.

use clap::Args;
use pg_replication::Target;
use service::Secret;

use super::connection;
use crate::process::checked::Check;

/// The views' database. The URL is not checked by clap, which would print a wrong one with its password.
#[derive(Clone, Debug)]
pub struct ViewsDatabase(pub Target);

/// [`ViewsDatabase`] as the command line gives it.
#[derive(Args)]
pub struct DatabaseArgs {
    /// The views' database, such as postgres://view_builder@localhost:15432/materialized_view_db. Several hosts, HOST:PORT,HOST:PORT, are tried in
    /// their order until one takes writes. Parameters: target_session_attrs, sslmode, sslrootcert, sslcert, sslkey, channel_binding, passwordfile, host (a
    /// directory is a Unix socket), application_name, options.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Secret,
}

impl Check for ViewsDatabase {
    type Given = DatabaseArgs;

    fn check(DatabaseArgs { database_url }: DatabaseArgs) -> Result<Self, String> {
        connection::target_of("DATABASE_URL", &database_url)
            .map(Self)
            .map_err(|err| err.to_string())
    }
}
