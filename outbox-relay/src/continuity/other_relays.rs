//! Whether another relay publishes the same rows: by another slot, or from a copy of the server.

use std::collections::BTreeMap;

use super::planted;
use crate::continuity::checkpoint::{Checkpoint, Lineage, checkpoint_key};
use crate::continuity::lineage::Names;
use crate::continuity::source::Source;
use crate::process::stop::Stop;

/// Fails where another slot publishes this outbox. `others` are the checkpoints of all relays by their keys; one of an earlier version does not
/// say which outbox it is of, so that it counts for every outbox of its database.
///
/// # Errors
/// [`Stop::PublishedByAnotherSlot`].
pub fn ensure_no_other_slot_publishes_outbox(
    outbox: Option<&str>,
    system_identifier: &str,
    database: &str,
    others: &BTreeMap<String, Checkpoint>,
    names: Names<'_>,
) -> Result<(), Stop> {
    if planted::lets_any_slot_publish() {
        return Ok(());
    }
    let own_key = checkpoint_key(database, names.slot);
    // Its oid, kind and persistence stand behind its name, which may have spaces. A text has a last part always.
    let table = |outbox: &str| outbox.rsplitn(4, ' ').last().unwrap_or_default().to_owned();
    let ours = outbox.map(table);
    let is_the_same = |lineage: &Lineage| {
        lineage.system_identifier == system_identifier
            && lineage.database == database
            && (lineage.outbox.is_none() || lineage.outbox.as_deref().map(table) == ours)
    };
    let other = others
        .iter()
        .find(|(key, checkpoint)| **key != own_key && is_the_same(&checkpoint.lineage));
    match other {
        None => Ok(()),
        Some((other, _)) => Err(Stop::PublishedByAnotherSlot {
            outbox: ours.unwrap_or_else(|| format!("of database {database}")),
            topic: names.checkpoint_topic.to_owned(),
            other: other.clone(),
            slot: names.slot.to_owned(),
        }),
    }
}

/// How much the clocks of two servers, or of a server and a relay, may differ, in microseconds.
const CLOCKS_DIFFER_US: i64 = 10_000_000;

/// Fails where the checkpoint was not written for this very server, but for a copy of it that has the same identifier, timeline and slot (a restored
/// backup, a cloned disk). Relays of two such servers would fence each other in turn, and each would skip its rows below the other's positions.
///
/// The servers of one cluster follow each other: one that started later has ended the earlier one. So within a timeline neither can the
/// checkpoint's server have started later than this one, nor can a relay have written a checkpoint of another server after this one started.
/// `written_ms` is when the checkpoint was written, in milliseconds since 1970.
///
/// # Errors
/// [`Stop::PublishedFromAnotherServer`].
pub fn ensure_written_for_this_server(
    source: &Source,
    checkpoint: &Checkpoint,
    written_ms: Option<i64>,
) -> Result<(), Stop> {
    let lineage = &checkpoint.lineage;
    let (Some(theirs_us), Some(ours_us)) = (lineage.server_started_us, source.started_us) else {
        return Ok(());
    };
    let is_one_history = lineage.system_identifier == source.system_identifier && lineage.timeline == source.timeline;
    if !is_one_history || theirs_us == ours_us || planted::trusts_any_copy() {
        return Ok(());
    }
    let what = if theirs_us > ours_us + CLOCKS_DIFFER_US {
        format!(
            "its server started {} s later than this one, which still runs",
            (theirs_us - ours_us) / 1_000_000
        )
    } else if written_ms.is_some_and(|written_ms| written_ms * 1_000 > ours_us + CLOCKS_DIFFER_US) {
        "it wrote a checkpoint after this server had started, from a server that started at another time".to_owned()
    } else {
        return Ok(());
    };
    Err(Stop::PublishedFromAnotherServer {
        key: checkpoint_key(&lineage.database, &lineage.slot),
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::{ensure_no_other_slot_publishes_outbox, ensure_written_for_this_server};
    use crate::continuity::checkpoint::tests::example;
    use crate::continuity::lineage::tests::{NAMES, source};
    use crate::continuity::source::Source;

    #[test]
    fn servers_of_one_history_follow_each_other() {
        const SECOND_US: i64 = 1_000_000;
        let started_us = source().started_us.unwrap();
        let verdict = |theirs_us: i64, written_us: i64| {
            let mut checkpoint = example();
            checkpoint.lineage.server_started_us = Some(theirs_us);
            ensure_written_for_this_server(&source(), &checkpoint, Some(written_us / 1_000))
                .map_err(|stop| stop.exit_code())
        };
        let later_us = started_us + 3_600 * SECOND_US;
        assert_eq!(verdict(started_us, later_us), Ok(()), "the same server");
        assert_eq!(verdict(started_us - SECOND_US, started_us), Ok(()), "it was restarted");
        assert_eq!(
            verdict(started_us + 60 * SECOND_US, later_us),
            Err(24),
            "a copy that started later"
        );
        assert_eq!(
            verdict(started_us - SECOND_US, later_us),
            Err(24),
            "the original still publishes"
        );
        assert_eq!(
            verdict(started_us + SECOND_US, started_us + 2 * SECOND_US),
            Ok(()),
            "the clock of the server that it was moved to may be behind"
        );
        assert_eq!(
            verdict(started_us + SECOND_US, later_us),
            Err(24),
            "both run, and the original started a moment later"
        );
        let promoted = Source {
            timeline: 2,
            ..source()
        };
        let mut checkpoint = example();
        checkpoint.lineage.server_started_us = Some(later_us);
        assert_eq!(
            ensure_written_for_this_server(&promoted, &checkpoint, None),
            Ok(()),
            "a standby may have started first"
        );
    }

    #[test]
    fn another_slot_of_the_same_outbox_is_found_and_one_of_another_outbox_is_not() {
        let outbox = example().lineage.outbox;
        let found = |outbox: Option<&str>, theirs: Option<&str>, database: &str, slot: &str| {
            let mut other = example();
            other.lineage.outbox = theirs.map(str::to_owned);
            let others = [(format!("users_db/{slot}"), other)].into();
            ensure_no_other_slot_publishes_outbox(outbox, "7391547183048592837", database, &others, NAMES)
                .map_err(|stop| stop.exit_code())
        };
        let same = outbox.as_deref();
        assert_eq!(found(same, same, "users_db", "other"), Err(24));
        assert_eq!(
            found(Some("public.outbox 7 p p"), same, "users_db", "other"),
            Err(24),
            "it was made anew"
        );
        assert_eq!(
            found(same, None, "users_db", "other"),
            Err(24),
            "an earlier version does not say"
        );
        assert_eq!(
            found(same, same, "users_db", "users_relay"),
            Ok(()),
            "its own checkpoint"
        );
        assert_eq!(found(Some("public.mails 7 r p"), same, "users_db", "other"), Ok(()));
        assert_eq!(found(same, same, "another_db", "other"), Ok(()));
    }
}
