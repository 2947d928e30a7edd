//! The figures for people.

use service::status::table::{Pair, bytes, pairs, seconds};

use super::figures::{Checkpoint, Figures, Slot};

/// A line for each figure, with its unit.
pub(super) fn table(figures: &Figures) -> String {
    let mut lines: Vec<Pair> = Vec::new();
    let postgres = &figures.postgres;
    lines.push(("database", format!("{} at {}", postgres.database, postgres.address)));
    if let (Some(version), Some(cluster), Some(timeline)) =
        (&postgres.server_version, &postgres.cluster, postgres.timeline)
    {
        lines.push((
            "server",
            format!("PostgreSQL {version}, cluster {cluster}, timeline {timeline}"),
        ));
    }
    lines.extend(postgres.wal_end_lsn.iter().map(|end| ("WAL ends at", end.clone())));
    match &figures.slot {
        Some(slot) => lines.extend(slot_lines(slot)),
        None if postgres.away_because.is_none() => lines.push(("slot", "does not exist".to_owned())),
        None => {}
    }
    lines.extend(relay_line(figures));
    let outbox = &figures.outbox;
    let table = outbox.table.as_deref().unwrap_or("messages");
    lines.push(("outbox", format!("{table}, publication {}", outbox.publication)));
    lines.push((
        "oldest unpublished row",
        match (outbox.oldest_unpublished_age_seconds, &outbox.unknown_because) {
            (Some(age), _) if age > 0.0 => format!("{} old", seconds(age)),
            (Some(_), _) => "none".to_owned(),
            (None, why) => format!("not known: {}", why.as_deref().unwrap_or("no answer")),
        },
    ));
    lines.push(("kafka", figures.kafka.address.clone()));
    lines.extend(figures.checkpoint.iter().flat_map(checkpoint_lines));
    if let Some(pause) = &figures.pause {
        let for_now = seconds(pause.paused_seconds);
        lines.push((
            "paused",
            format!("for {for_now}, since {}: {}", pause.since, pause.reason),
        ));
    }
    if let Some(parking) = &figures.parking {
        lines.push(("parked rows", format!("{} in {}", parking.rows, parking.topic)));
        let stopped = parking.stopped_at.as_ref();
        lines.extend(stopped.map(|row| ("stopped at row", format!("{}: {}", row.position, row.reason))));
    }
    lines.extend(figures.topics.iter().map(|topic| {
        let text = if topic.is_there {
            format!("{}, {} partitions", topic.topic, topic.partitions)
        } else {
            format!("{}, which is not there", topic.topic)
        };
        ("topic", text)
    }));
    pairs(&lines)
}

fn slot_lines(slot: &Slot) -> Vec<Pair> {
    let reader = match &slot.reader {
        None => "read by nobody".to_owned(),
        Some(reader) => {
            let name = reader
                .application_name
                .as_deref()
                .map_or_else(String::new, |name| format!(" ({name})"));
            let from = reader
                .client_address
                .as_deref()
                .map_or_else(String::new, |from| format!(" from {from}"));
            format!("read by backend {}{name}{from}", reader.pid)
        }
    };
    // The server counts bytes that it has, which are never fewer than 0.
    let unsigned = |count: i64| bytes(u64::try_from(count).unwrap_or(0));
    let limit = slot.limit_bytes.map_or("without a limit".to_owned(), |limit| {
        format!("of {} at most", unsigned(limit))
    });
    let safe = slot.safe_bytes.map_or_else(String::new, |safe| {
        format!(", {} more before it may be lost", unsigned(safe))
    });
    vec![
        ("slot", format!("{}, {reader}", slot.name)),
        (
            "confirmed",
            format!(
                "{}, {} before the end",
                slot.confirmed_lsn,
                unsigned(slot.unconfirmed_bytes)
            ),
        ),
        (
            "WAL kept for the slot",
            format!(
                "{} {limit}{safe}, from {}, {}",
                unsigned(slot.retained_bytes),
                slot.restart_lsn,
                slot.wal_status
            ),
        ),
    ]
}

fn checkpoint_lines(checkpoint: &Checkpoint) -> Vec<Pair> {
    let partial = checkpoint.partial.as_ref().map_or_else(String::new, |partial| {
        format!(
            ", and {} rows of the transaction at {}",
            partial.rows, partial.commit_lsn
        )
    });
    let age = checkpoint
        .age_seconds
        .map_or_else(String::new, |age| format!(", written {} ago", seconds(age)));
    let mut lines = vec![(
        "published",
        format!(
            "{}{partial} ({} offset {}{age})",
            checkpoint.published_lsn, checkpoint.topic, checkpoint.offset
        ),
    )];
    lines.extend(
        checkpoint
            .newest_row_at
            .iter()
            .map(|at| ("newest published row", format!("committed at {at}"))),
    );
    let unpublished = checkpoint.unpublished_bytes.map(bytes);
    lines.extend(unpublished.map(|amount| ("not yet published", format!("{amount} of WAL, of all databases"))));
    lines
}

fn relay_line(figures: &Figures) -> Option<Pair> {
    let relay = figures.relay.as_ref()?;
    // The relay may run on another machine, or in another container.
    let says = if relay.is_ready? { "ready" } else { "not ready" };
    Some(("relay's process", format!("{}: {says}", relay.address)))
}
