//! What is asked of the source, which is Postgres: where it is, and what is read from it.

use clap::Args;
use service::Secret;

use super::names::{PublicationName, SlotName};
use super::planted;
use crate::process::stop::Stop;
use pg_replication::{InvalidUrl, Target};

#[derive(Clone, Debug, Args)]
pub struct SourceSettings {
    /// Where the outbox is: postgresql://user:password@host:port/database. Several hosts, HOST:PORT,HOST:PORT, are tried in their order
    /// until one is the primary (target_session_attrs: primary, read-write or any). Parameters: target_session_attrs, sslmode, sslrootcert, sslcert, sslkey,
    /// channel_binding, passwordfile, host (a directory is a Unix socket), connect_timeout (seconds), application_name, options.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Secret,
    /// Logical replication slot; unique in its cluster. One relay reads one slot.
    #[arg(long, env = "OUTBOX_SLOT", default_value = "outbox_relay")]
    pub slot: SlotName,
    /// Publication that has the inserts of the outbox table.
    #[arg(long, env = "OUTBOX_PUBLICATION", default_value = "outbox")]
    pub publication: PublicationName,
}

/// [`SourceSettings`], checked.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    pub target: Target,
    pub slot: SlotName,
    pub publication: PublicationName,
}

impl SourceSettings {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Stop::Config`] names the setting that is wrong, and what would be right.
    pub fn check(&self) -> Result<SourceConfig, Stop> {
        Ok(SourceConfig {
            target: parse_target(&self.database_url).map_err(|err| Stop::Config {
                what: format!("DATABASE_URL: {err}"),
            })?,
            slot: self.slot.clone(),
            publication: self.publication.clone(),
        })
    }
}

/// Where Postgres is, read from a URL.
pub(super) fn parse_target(url: &Secret) -> Result<Target, InvalidUrl> {
    let mut target = Target::parse(url.reveal())?;
    planted::spoil_target(&mut target);
    Ok(target)
}
