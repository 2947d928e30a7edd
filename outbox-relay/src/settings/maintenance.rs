//! The flags that say how the relay keeps the outbox table in order.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use service::Secret;

use super::source::parse_target;
use crate::process::stop::Stop;
use pg_replication::Target;

/// How the relay keeps the outbox table in order.
#[derive(Clone, Debug, Args)]
pub struct MaintenanceOptions {
    /// Days after which a partition of the outbox is dropped, once everything in it is confirmed; `off` or 0 keeps everything.
    #[arg(long, env = "OUTBOX_RETAIN", value_name = "DAYS", default_value = "7")]
    pub retain: Retain,
    /// Daily partitions of the outbox that are made ahead (0 to 366); 0 makes none.
    #[arg(long, env = "OUTBOX_PARTITIONS_AHEAD", value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(u16).range(0..=366))]
    pub partitions_ahead: u16,
    /// Who makes and drops partitions: a URL of the same database with a role that owns the outbox table. Default: --database-url.
    #[arg(long, env = "MAINTENANCE_DATABASE_URL", hide_env_values = true)]
    pub maintenance_url: Option<Secret>,
    /// How often partitions are looked after, in seconds (1 to 86400).
    #[arg(long, env = "OUTBOX_MAINTENANCE_INTERVAL", value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub maintenance_interval: u32,
    /// In an outbox without partitions, delete rows that are older than --retain, by created_at, once they are confirmed.
    #[arg(long, env = "OUTBOX_PURGE_ROWS", default_value_t = false, action = clap::ArgAction::Set)]
    pub purge_rows: bool,
}

/// How long rows stay in the outbox table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    Everything,
    /// 1 to 3650.
    Days(u16),
}

impl Retain {
    /// How many days. `None`: rows stay for ever.
    #[must_use]
    pub fn days(self) -> Option<u16> {
        match self {
            Self::Everything => None,
            Self::Days(days) => Some(days),
        }
    }
}

impl FromStr for Retain {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        if text == "off" {
            return Ok(Self::Everything);
        }
        match text.parse() {
            Ok(0) => Ok(Self::Everything),
            Ok(days @ 1..=3_650) => Ok(Self::Days(days)),
            _ => Err("expected days from 1 to 3650, or `off`"),
        }
    }
}

/// [`MaintenanceOptions`], checked.
#[derive(Clone, Debug)]
pub struct Maintenance {
    pub target: Target,
    /// `None`: nothing is removed.
    pub retain_days: Option<u16>,
    pub partitions_ahead: u16,
    pub interval: Duration,
    pub purge_rows: bool,
}

impl MaintenanceOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// [`Stop::Config`] names the option that is wrong, and what would be right.
    pub fn check(&self, database: &Target) -> Result<Maintenance, Stop> {
        let target = match &self.maintenance_url {
            None => database.clone(),
            Some(url) => parse_target(url).map_err(|err| Stop::Config {
                what: format!("--maintenance-url: {err}"),
            })?,
        };
        if target.database != database.database {
            return Err(Stop::Config {
                what: format!(
                    "--maintenance-url is of database `{}`, the outbox is in `{}`",
                    target.database, database.database
                ),
            });
        }
        Ok(Maintenance {
            target,
            retain_days: self.retain.days(),
            partitions_ahead: self.partitions_ahead,
            interval: Duration::from_secs(self.maintenance_interval.into()),
            purge_rows: self.purge_rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Retain;

    #[test]
    fn rows_are_retained_for_days_or_for_ever() {
        for (text, expected) in [
            ("7", Retain::Days(7)),
            (" 3650 ", Retain::Days(3_650)),
            ("off", Retain::Everything),
            ("0", Retain::Everything),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for wrong in ["", "3651", "-1", "7d", "on", "1.5", "70000"] {
            assert!(wrong.parse::<Retain>().is_err(), "{wrong}");
        }
    }
}
