//! One look of the guard: the question to the server, and what follows from its answer.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::time::timeout;

use super::planted;
use crate::guard::retention::Retention;
use crate::outbox::publication;
use crate::process::faults;
use crate::settings::Config;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode, Row, quote_literal};

/// If the server takes longer to answer, the guard asks again in a new session.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What must be as it was when the stream began.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// See [`publication::Publication::version`].
    pub publication: String,
    /// See [`publication::Publication::outbox`].
    pub outbox: Option<String>,
    pub timeline: u32,
    /// The backend that streams to us.
    pub walsender_pid: i32,
}

/// The server's answer.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) wal_flushed: Lsn,
    /// Absent on a standby, which writes no WAL of its own.
    pub(super) timeline: Option<u32>,
    pub(super) publication: Option<PublicationLook>,
    /// The backend that reads the slot.
    pub(super) slot_reader: Option<i32>,
    pub(super) retention: Option<Retention>,
}

/// What the answer says of the publication and the outbox table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicationLook {
    pub(super) version: String,
    pub(super) outbox: Option<String>,
    /// A transaction has begun to alter one of the two, and has not ended yet.
    pub(super) is_undecided: bool,
}

/// What a look says about the publication.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It was the pinned one at this position.
    Unaltered(Lsn),
    /// An alteration has begun and is neither committed nor rolled back.
    Undecided,
    Altered,
    /// The server's slot of our name is not the one that streams to us, so its answer says nothing about our stream.
    NotOurStream,
    /// The server is on this timeline now, and not on the one that the stream began on.
    OtherTimeline(u32),
}

/// What the look says about the publication. Pure.
pub(super) fn compare_with_pinned(look: &Look, pinned: &Pinned) -> Finding {
    if !planted::trusts_any_slot() {
        if look.slot_reader != Some(pinned.walsender_pid) {
            return Finding::NotOurStream;
        }
        if let Some(timeline) = look.timeline.filter(|timeline| *timeline != pinned.timeline) {
            return Finding::OtherTimeline(timeline);
        }
    }
    match &look.publication {
        None => Finding::Altered,
        Some(found) if found.version != pinned.publication => Finding::Altered,
        Some(found) if found.outbox != pinned.outbox && !planted::trusts_any_table() => Finding::Altered,
        Some(found) if found.is_undecided => Finding::Undecided,
        Some(_) => Finding::Unaltered(look.wal_flushed),
    }
}

/// A session of the guard's.
pub(super) struct Session {
    connection: Connection,
    pub(super) opened_at: Instant,
}

/// Asks once. Opens a session where there is none.
///
/// # Errors
/// The server does not answer in time, or the connection broke.
pub(super) async fn look_once(config: &Config, sql: &str, session: &mut Option<Session>) -> anyhow::Result<Look> {
    let session = match session {
        Some(session) => session,
        None => session.insert(Session {
            connection: Connection::open(&config.source.target, Mode::Sql).await?,
            opened_at: Instant::now(),
        }),
    };
    faults::point("guard.look")?;
    let rows = timeout(ANSWER_TIMEOUT, session.connection.rows(sql))
        .await
        .context("the server takes too long to answer")??;
    parse_look(&rows)
}

/// Three statements in one round trip: the first must have been answered before the second begins, see the top of [`crate::guard`].
pub(super) fn look_sql(config: &Config) -> String {
    format!(
        "select 'wal', case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end,
                case when not pg_is_in_recovery() then substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end;
         select 'publication', {version}, {outbox},
                coalesce({p}, false) or coalesce({pr}, false) or coalesce({pn}, false) or coalesce({c}, false)
                or exists (select from {partitions} pt join pg_class i on i.oid = pt.relid where {i})
         {from};
         select 'slot', coalesce(confirmed_flush_lsn, '0/0'),
                coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, restart_lsn), 0)::bigint,
                safe_wal_size, pg_size_bytes(current_setting('max_slot_wal_keep_size')), coalesce(wal_status, ''),
                coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), active_pid
         from pg_replication_slots s where slot_name = {slot}",
        version = publication::VERSION_SQL,
        outbox = publication::outbox_sql(config),
        partitions = publication::partition_tree("c.oid"),
        p = is_undecided("p.xmax"),
        pr = is_undecided("pr.xmax"),
        pn = is_undecided("pn.xmax"),
        c = is_undecided("c.xmax"),
        i = is_undecided("i.xmax"),
        from = publication::from_publication(config),
        slot = quote_literal(&config.source.slot)
    )
}

/// Whether the transaction that has marked a row as updated or deleted may still be running. One that was rolled back leaves its mark.
fn is_undecided(xmax: &str) -> String {
    format!("{xmax}::text <> '0' and age({xmax}) <= age(pg_snapshot_xmin(pg_current_snapshot())::xid)")
}

/// Takes the rows of the three statements apart. Each begins with a word that says which statement it answers.
fn parse_look(rows: &[Row]) -> anyhow::Result<Look> {
    let mut look = Look::default();
    for row in rows {
        match row.as_slice() {
            [Some(statement), Some(wal_flushed), timeline] if statement == "wal" => {
                look.wal_flushed = wal_flushed.parse()?;
                // The first eight digits of a WAL file's name are its timeline, in hexadecimal.
                let timeline = timeline.as_deref();
                look.timeline = timeline.map(|digits| u32::from_str_radix(digits, 16)).transpose()?;
            }
            [Some(statement), Some(version), outbox, Some(is_undecided)] if statement == "publication" => {
                look.publication = Some(PublicationLook {
                    version: version.clone(),
                    outbox: outbox.clone(),
                    is_undecided: is_undecided == "t",
                });
            }
            [
                Some(statement),
                Some(confirmed),
                Some(retained_bytes),
                safe_bytes,
                Some(keep_bytes),
                Some(wal_status),
                Some(invalidation_reason),
                slot_reader,
            ] if statement == "slot" => {
                look.slot_reader = slot_reader.as_deref().map(str::parse).transpose()?;
                look.retention = Some(Retention {
                    confirmed: confirmed.parse()?,
                    retained_bytes: retained_bytes.parse()?,
                    safe_bytes: safe_bytes.as_deref().map(str::parse).transpose()?,
                    keep_bytes: keep_bytes.parse()?,
                    wal_status: wal_status.clone(),
                    invalidation_reason: invalidation_reason.clone(),
                });
            }
            _ => anyhow::bail!(
                "the server's answer to the guard has a row of {} columns that answers nothing",
                row.len()
            ),
        }
    }
    Ok(look)
}

#[cfg(test)]
mod tests {
    use super::{Finding, Look, Pinned, PublicationLook, compare_with_pinned, parse_look};
    use pg_replication::Lsn;

    fn pinned() -> Pinned {
        Pinned {
            publication: "1:2:3:4".to_owned(),
            outbox: Some("public.outbox 9 r p".to_owned()),
            timeline: 1,
            walsender_pid: 50,
        }
    }

    fn look(publication: Option<(&str, bool)>) -> Look {
        Look {
            wal_flushed: Lsn(700),
            timeline: Some(1),
            publication: publication.map(|(version, is_undecided)| PublicationLook {
                version: version.to_owned(),
                outbox: pinned().outbox,
                is_undecided,
            }),
            slot_reader: Some(50),
            retention: None,
        }
    }

    #[test]
    fn only_a_publication_that_is_the_pinned_one_for_certain_verifies_a_position() {
        let found = |publication| compare_with_pinned(&look(publication), &pinned());
        assert_eq!(found(Some(("1:2:3:4", false))), Finding::Unaltered(Lsn(700)));
        assert_eq!(found(Some(("1:2:3:4", true))), Finding::Undecided);
        assert_eq!(found(Some(("1:9:3:4", false))), Finding::Altered);
        assert_eq!(found(Some(("1:9:3:4", true))), Finding::Altered);
        assert_eq!(found(None), Finding::Altered, "it was dropped");
    }

    #[test]
    fn another_table_or_the_same_one_unlogged_is_an_alteration() {
        for outbox in [
            None,
            Some("public.outbox 10 r p"),
            Some("public.outbox 9 r u"),
            Some("public.outbox 9 v p"),
        ] {
            let mut look = look(Some(("1:2:3:4", false)));
            if let Some(publication) = &mut look.publication {
                publication.outbox = outbox.map(str::to_owned);
            }
            assert_eq!(compare_with_pinned(&look, &pinned()), Finding::Altered, "{outbox:?}");
        }
    }

    #[test]
    fn a_look_at_another_server_verifies_and_refutes_nothing() {
        for (reader, timeline, finding) in [
            (None, Some(1), Finding::NotOurStream),
            (Some(51), Some(1), Finding::NotOurStream),
            (Some(50), Some(2), Finding::OtherTimeline(2)),
        ] {
            let mut look = look(Some(("1:9:3:4", false)));
            (look.slot_reader, look.timeline) = (reader, timeline);
            assert_eq!(compare_with_pinned(&look, &pinned()), finding);
        }
        let on_a_standby = Look {
            timeline: None,
            ..look(Some(("1:2:3:4", false)))
        };
        assert_eq!(
            compare_with_pinned(&on_a_standby, &pinned()),
            Finding::Unaltered(Lsn(700))
        );
    }

    #[test]
    fn an_answer_without_a_publication_or_a_slot_is_read() {
        let row = |values: &[&str]| values.iter().map(|value| Some((*value).to_owned())).collect::<Vec<_>>();
        let mut slot = row(&["slot", "0/10", "4096", "", "-1", "reserved", "", "50"]);
        slot[3] = None;
        let look = parse_look(&[row(&["wal", "0/20", "0000000A"]), slot]).unwrap();
        assert_eq!((look.wal_flushed, look.timeline), (Lsn(0x20), Some(10)));
        assert_eq!((look.publication, look.slot_reader), (None, Some(50)));
        let retention = look.retention.unwrap();
        assert_eq!((retention.retained_bytes, retention.safe_bytes), (4096, None));
    }
}
