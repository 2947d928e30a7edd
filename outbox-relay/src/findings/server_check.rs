//! What `check` says of the server's settings: those that stop the relay, and those that will hurt one day.

use anyhow::Context;

use crate::findings::Finding;
use crate::outbox::rows::first_row;
use crate::process::stop::Stop;
use crate::settings::Config;
use pg_replication::{Connection, quote_identifier, quote_literal};

/// A slot that may keep less than this is lost in an outage that nobody has noticed yet, in bytes.
const KEEP_BYTES_MIN: i64 = 1 << 30;

/// The major versions of PostgreSQL that the relay's tests run on.
const TESTED: std::ops::RangeInclusive<u32> = 15..=18;

/// What there is to say of the server's version, given as `server_version_num` counts.
#[must_use]
pub fn version_finding(version_num: u32) -> Finding {
    let (major, oldest, newest) = (version_num / 10_000, *TESTED.start(), *TESTED.end());
    let text = format!("PostgreSQL {major}.{}", version_num % 10_000);
    if major < oldest {
        Finding::Problem(format!("{text}: the relay needs {oldest} or later"))
    } else if major > newest {
        Finding::Warning(format!(
            "{text} is newer than what this version of the relay was tested with ({oldest} to {newest}): look for a newer relay, or try this one where nothing depends on it"
        ))
    } else {
        Finding::Good(text)
    }
}

/// Refuses a server that is too old, and warns of one that nobody has tried.
///
/// # Errors
/// [`Stop::Config`] names the oldest version that will do.
pub fn ensure_version(version_num: u32) -> Result<(), Stop> {
    match version_finding(version_num) {
        Finding::Problem(what) => Err(Stop::Config { what }),
        Finding::Warning(what) => {
            tracing::warn!("{what}");
            Ok(())
        }
        Finding::Good(_) => Ok(()),
    }
}

/// The settings and counts that matter, as one look at the server gives them. Sizes in bytes, times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    pub wal_level: String,
    /// -1: no limit.
    pub max_slot_wal_keep_bytes: i64,
    pub max_wal_bytes: i64,
    pub wal_sender_timeout: String,
    /// PostgreSQL 18 and later; `0` is off.
    pub idle_slot_timeout: String,
    pub synchronous_standby_names: String,
    pub slots: i64,
    pub slots_max: i64,
    pub has_our_slot: bool,
    pub is_standby: bool,
    /// Row-level security hides rows of the outbox from this role.
    pub hides_rows: bool,
}

/// Asks the server.
///
/// # Errors
/// The connection broke.
pub async fn read_server_settings(connection: &mut Connection, config: &Config) -> anyhow::Result<ServerSettings> {
    let table = format!(
        "{}.{}",
        quote_identifier(&config.outbox.schema),
        quote_identifier(&config.outbox.table)
    );
    let sql = format!(
        "select current_setting('wal_level') as wal_level,
                pg_size_bytes(current_setting('max_slot_wal_keep_size')) as max_slot_wal_keep_bytes,
                pg_size_bytes(current_setting('max_wal_size')) as max_wal_bytes,
                current_setting('wal_sender_timeout') as wal_sender_timeout,
                coalesce(current_setting('idle_replication_slot_timeout', true), '0') as idle_slot_timeout,
                current_setting('synchronous_standby_names') as synchronous_standby_names,
                (select count(*) from pg_replication_slots) as slots,
                current_setting('max_replication_slots') as slots_max,
                exists (select from pg_replication_slots where slot_name = {slot}) as has_our_slot,
                pg_is_in_recovery() as is_standby,
                coalesce((select row_security_active(oid) from pg_class where oid = to_regclass({table})), false) as hides_rows",
        slot = quote_literal(&config.source.slot),
        table = quote_literal(&table)
    );
    let answer = connection
        .query(&sql)
        .await
        .context("cannot look at the server's settings")?;
    let row = first_row(&answer).context("the server's settings have no answer")?;
    Ok(ServerSettings {
        wal_level: row.text("wal_level")?.to_owned(),
        max_slot_wal_keep_bytes: row.parse("max_slot_wal_keep_bytes")?,
        max_wal_bytes: row.parse("max_wal_bytes")?,
        wal_sender_timeout: row.text("wal_sender_timeout")?.to_owned(),
        idle_slot_timeout: row.text("idle_slot_timeout")?.to_owned(),
        synchronous_standby_names: row.text("synchronous_standby_names")?.to_owned(),
        slots: row.parse("slots")?,
        slots_max: row.parse("slots_max")?,
        has_our_slot: row.is_true("has_our_slot")?,
        is_standby: row.is_true("is_standby")?,
        hides_rows: row.is_true("hides_rows")?,
    })
}

impl ServerSettings {
    /// What there is to say.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![
            if self.wal_level == "logical" {
                Finding::Good("wal_level = logical".to_owned())
            } else {
                Finding::Problem(format!(
                    "wal_level = {}: alter system set wal_level = logical, then restart the server",
                    self.wal_level
                ))
            },
            self.keeps_enough(),
        ];
        if !self.has_our_slot && self.slots >= self.slots_max {
            findings.push(Finding::Problem(format!(
                "all of max_replication_slots = {} are in use: drop one that nobody reads, or raise it and restart the server",
                self.slots_max
            )));
        }
        let warnings = [
            (
                self.synchronous_standby_names.contains('*'),
                "synchronous_standby_names has *: commits would wait for this relay; name the standbys".to_owned(),
            ),
            (
                self.wal_sender_timeout == "0",
                "wal_sender_timeout = 0: a relay whose machine has vanished keeps the slot, and no other can take over; set it to 60s".to_owned(),
            ),
            (
                !self.idle_slot_timeout.starts_with('0'),
                format!(
                    "idle_replication_slot_timeout = {}: a relay that is away for longer loses its slot, and events with it; set it to 0",
                    self.idle_slot_timeout
                ),
            ),
            (
                self.is_standby,
                "this server is a standby: init needs the primary".to_owned(),
            ),
            (
                self.hides_rows,
                "row-level security hides rows of the outbox from this role: init could not publish those that are there already; alter role … bypassrls".to_owned(),
            ),
        ];
        findings.extend(
            warnings
                .into_iter()
                .filter(|(is_so, _)| *is_so)
                .map(|(_, what)| Finding::Warning(what)),
        );
        findings
    }

    /// Between two of its own checkpoints a server writes up to max_wal_size; a slot that may keep less is lost by one burst.
    fn keeps_enough(&self) -> Finding {
        let keep = self.max_slot_wal_keep_bytes;
        let wanted = KEEP_BYTES_MIN.max(self.max_wal_bytes);
        let mb = |bytes: i64| bytes >> 20;
        if keep < 0 {
            Finding::Warning("max_slot_wal_keep_size = -1: a relay that is away for long fills the server's disk; set a limit that outlasts your longest outage".to_owned())
        } else if keep < wanted {
            Finding::Warning(format!(
                "max_slot_wal_keep_size = {} MB is too small: behind by more than that the slot is lost, and events with it; a server writes up to max_wal_size = {} MB between two checkpoints; set it to {} MB or more, enough for your longest outage",
                mb(keep),
                mb(self.max_wal_bytes),
                mb(wanted)
            ))
        } else {
            Finding::Good(format!(
                "max_slot_wal_keep_size = {} MB: behind by more than that, the slot is lost",
                mb(keep)
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ServerSettings, TESTED, ensure_version, version_finding};
    use crate::findings::Finding;

    fn good() -> ServerSettings {
        ServerSettings {
            wal_level: "logical".to_owned(),
            max_slot_wal_keep_bytes: 10 << 30,
            max_wal_bytes: 1 << 30,
            wal_sender_timeout: "1min".to_owned(),
            idle_slot_timeout: "0".to_owned(),
            synchronous_standby_names: String::new(),
            slots: 3,
            slots_max: 10,
            has_our_slot: false,
            is_standby: false,
            hides_rows: false,
        }
    }

    /// What is said that is not good.
    fn said(change: impl FnOnce(&mut ServerSettings)) -> Vec<Finding> {
        let mut settings = good();
        change(&mut settings);
        let findings = settings.findings().into_iter();
        findings
            .filter(|finding| !matches!(finding, Finding::Good(_)))
            .collect()
    }

    #[test]
    fn good_settings_give_no_warning() {
        assert_eq!(said(|_| {}), []);
        assert_eq!(said(|settings| settings.idle_slot_timeout = "0s".to_owned()), []);
    }

    #[test]
    fn each_setting_that_will_hurt_is_named() {
        type Change = fn(&mut ServerSettings);
        let changes: [(Change, &str); 7] = [
            (
                |settings| settings.max_slot_wal_keep_bytes = -1,
                "max_slot_wal_keep_size = -1",
            ),
            (
                |settings| settings.max_slot_wal_keep_bytes = 512 << 20,
                "max_slot_wal_keep_size = 512 MB is too small",
            ),
            (|settings| settings.max_wal_bytes = 20 << 30, "set it to 20480 MB"),
            (
                |settings| settings.wal_sender_timeout = "0".to_owned(),
                "wal_sender_timeout",
            ),
            (
                |settings| settings.idle_slot_timeout = "1d".to_owned(),
                "idle_replication_slot_timeout = 1d",
            ),
            (
                |settings| settings.synchronous_standby_names = "*".to_owned(),
                "synchronous_standby_names",
            ),
            (|settings| settings.hides_rows = true, "row-level security"),
        ];
        for (change, named) in changes {
            let said = said(change);
            assert!(
                matches!(&said[..], [Finding::Warning(what)] if what.contains(named)),
                "{named}: {said:?}"
            );
        }
    }

    #[test]
    fn slots_that_are_used_up_are_a_problem_only_for_a_slot_that_is_still_to_be_made() {
        let problems = said(|settings| settings.slots = 10);
        assert!(matches!(&problems[..], [Finding::Problem(what)] if what.contains("max_replication_slots")));
        let ours = said(|settings| {
            settings.slots = 10;
            settings.has_our_slot = true;
        });
        assert_eq!(ours, []);
    }

    #[test]
    fn a_server_that_is_too_old_is_refused_and_one_that_was_never_tried_is_warned_of() {
        let too_old = ensure_version(140_020).expect_err("14 is too old");
        assert_eq!(too_old.to_string(), "PostgreSQL 14.20: the relay needs 15 or later");
        for major in TESTED {
            let version_num = major * 10_000 + 3;
            assert_eq!(
                version_finding(version_num),
                Finding::Good(format!("PostgreSQL {major}.3"))
            );
            assert_eq!(ensure_version(version_num), Ok(()));
        }
        let Finding::Warning(what) = version_finding(190_000) else {
            panic!("19 is not warned of");
        };
        assert!(what.contains("19.0 is newer") && what.contains("15 to 18"), "{what}");
        assert_eq!(ensure_version(190_000), Ok(()), "it may be tried");
    }
}
