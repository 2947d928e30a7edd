//! Failover slots (PostgreSQL 17 and later): what `check` says of them, and how an existing slot becomes one.
//!
//! A standby keeps a copy of a failover slot, so the slot is there after a promotion. But the promoted standby may lack rows that were published. Only
//! `synchronized_standby_slots` prevents that: the primary then sends nothing to the relay before the standby has received it.
//! See <https://www.postgresql.org/docs/current/logical-replication-failover.html>.

use anyhow::Context as _;

use crate::findings::Finding;
use crate::outbox::rows::{NamedRow, first_row, named_rows};
use crate::process::stop::Stop;
use pg_replication::{Connection, quote_identifier, quote_literal};

/// The first version with failover slots, as `server_version_num` counts.
const FIRST_VERSION: u32 = 170_000;

/// Fails if the server's version has no failover slots.
///
/// # Errors
/// [`Stop::Config`] before PostgreSQL 17.
pub fn ensure_server_has_failover_slots(server_version_num: u32) -> Result<(), Stop> {
    if server_version_num >= FIRST_VERSION {
        return Ok(());
    }
    Err(Stop::Config {
        what: format!(
            "--failover: PostgreSQL {} has no failover slots, 17 and later have; after a promotion, `outbox-relay recover` goes on without one",
            server_version_num / 10_000
        ),
    })
}

/// Makes an existing slot a failover slot. Does nothing if it is one already.
///
/// # Errors
/// The server refuses, as it does while a relay has the slot.
pub async fn make_failover(connection: &mut Connection, slot: &str) -> anyhow::Result<()> {
    let sql = format!(
        "select failover as is_failover from pg_replication_slots where slot_name = {}",
        quote_literal(slot)
    );
    let answer = connection.query(&sql).await?;
    // Without a row there is no such slot, and the statement below says so.
    let is_failover = first_row(&answer).map(|row| row.is_true("is_failover")).transpose()?;
    if is_failover == Some(true) {
        return Ok(());
    }
    let alter = format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", quote_identifier(slot));
    let altered = connection.rows(&alter).await;
    altered.map_err(|err| err.context("--failover: the slot cannot be altered; stop the relay that reads it first"))?;
    tracing::info!(slot, "made it a failover slot");
    Ok(())
}

/// Finds what would prevent the relay from going on after a promotion. There are no findings on a server without standbys.
///
/// # Errors
/// The connection broke.
pub async fn findings(connection: &mut Connection, slot: &str) -> anyhow::Result<Vec<Finding>> {
    let standbys = list_standbys(connection).await?;
    if connection.server_version_num() < FIRST_VERSION {
        return Ok(standbys
            .first()
            .map(|_| {
                Finding::Warning(
                    "there are standbys, and this version has no failover slots (17 and later have): after a promotion the slot is gone, and `outbox-relay recover` has to go on without it".to_owned(),
                )
            })
            .into_iter()
            .collect());
    }
    let sql = format!(
        "select coalesce((select failover from pg_replication_slots where slot_name = {}), false) as is_failover,
                current_setting('synchronized_standby_slots') as listed",
        quote_literal(slot)
    );
    let answer = connection.query(&sql).await?;
    let row = first_row(&answer).context("no answer")?;
    Ok(judge(slot, row.is_true("is_failover")?, row.text("listed")?, &standbys))
}

/// A physical slot. A standby streams from it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standby {
    slot: String,
    is_active: bool,
    /// The standby has `hot_standby_feedback`, so its slot keeps vacuum from removing rows of the catalog.
    gives_feedback: bool,
}

async fn list_standbys(connection: &mut Connection) -> anyhow::Result<Vec<Standby>> {
    let sql = "select slot_name, active, coalesce(catalog_xmin, xmin) is not null as gives_feedback
         from pg_replication_slots where slot_type = 'physical' order by slot_name";
    let answer = connection.query(sql).await?;
    let standby = |row: NamedRow<'_>| {
        Ok(Standby {
            slot: row.text("slot_name")?.to_owned(),
            is_active: row.is_true("active")?,
            gives_feedback: row.is_true("gives_feedback")?,
        })
    };
    named_rows(&answer).map(standby).collect()
}

fn judge(slot: &str, is_failover: bool, synchronized_standby_slots: &str, standbys: &[Standby]) -> Vec<Finding> {
    if !is_failover {
        return if standbys.is_empty() {
            Vec::new()
        } else {
            vec![Finding::Warning(format!(
                "there are standbys, but slot {slot} is no failover slot: after a promotion it is gone; `outbox-relay init --failover` makes it one"
            ))]
        };
    }
    let mut findings = vec![Finding::Good(format!("slot {slot} is a failover slot"))];
    let listed: Vec<&str> = synchronized_standby_slots
        .split(',')
        .map(|name| name.trim().trim_matches('"'))
        .filter(|name| !name.is_empty())
        .collect();
    if listed.is_empty() {
        findings.push(Finding::Warning(format!(
            "synchronized_standby_slots is empty: a promoted standby may lack what is published already, and the relay then stops; alter system set synchronized_standby_slots = '{}' and reload",
            standbys.first().map_or("the standby''s slot", |standby| &standby.slot)
        )));
    }
    for name in listed {
        findings.push(match standbys.iter().find(|standby| standby.slot == name) {
            None => Finding::Problem(format!(
                "synchronized_standby_slots names {name}, which is no physical slot: the server sends nothing until it is made or taken from the list"
            )),
            Some(standby) if !standby.is_active => Finding::Problem(format!(
                "synchronized_standby_slots names {name}, whose standby is away: the server sends nothing until it is back or taken from the list"
            )),
            Some(standby) if !standby.gives_feedback => Finding::Warning(format!(
                "the standby of {name} gives no feedback: it needs hot_standby_feedback = on, sync_replication_slots = on and a dbname in primary_conninfo to keep a copy of the slot"
            )),
            Some(_) => Finding::Good(format!("nothing is sent before the standby of {name} has it")),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{Standby, ensure_server_has_failover_slots, judge};
    use crate::findings::Finding;

    fn standby(is_active: bool, gives_feedback: bool) -> Standby {
        Standby {
            slot: "s1".to_owned(),
            is_active,
            gives_feedback,
        }
    }

    fn text(findings: &[Finding]) -> String {
        format!("{findings:?}")
    }

    #[test]
    fn what_a_promotion_would_break_is_said() {
        assert_eq!(judge("relay", false, "", &[]), [], "a server without standbys");
        assert!(text(&judge("relay", false, "", &[standby(true, true)])).contains("init --failover"));
        let unlisted = text(&judge("relay", true, "", &[standby(true, true)]));
        assert!(unlisted.contains("synchronized_standby_slots = 's1'"), "{unlisted}");
        let good = judge("relay", true, "\"s1\"", &[standby(true, true)]);
        assert!(
            good.iter().all(|finding| matches!(finding, Finding::Good(_))),
            "{good:?}"
        );
        for (listed, standby, named) in [
            ("s2", standby(true, true), "no physical slot"),
            ("s1", standby(false, true), "is away"),
            ("s1", standby(true, false), "hot_standby_feedback"),
        ] {
            let said = text(&judge("relay", true, listed, &[standby]));
            assert!(said.contains(named), "{said}");
        }
    }

    #[test]
    fn versions_without_failover_slots_refuse_by_name() {
        assert!(
            ensure_server_has_failover_slots(160_011)
                .unwrap_err()
                .to_string()
                .contains("--failover: PostgreSQL 16")
        );
        assert_eq!(ensure_server_has_failover_slots(170_000), Ok(()));
    }
}
