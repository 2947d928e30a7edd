//! `view-builder dead-letters`: which command does what, and how letters are listed and shown. [`desk`] retries and discards them.

mod desk;
mod report;
mod retry;
mod waiting;

use std::fmt::Write as _;

use tokio_postgres::{Client, Row};

use self::desk::Desk;
use self::waiting::COLUMNS;
use crate::letters::store::{WITH_FORMER, hex};
use crate::postgres::connection::connect_for_command;
use crate::postgres::connection::unanswered;
use crate::process::failure::Failure;
use crate::settings::LettersCommand;

/// Most characters of a reason in a list's line.
const REASON_CHARACTERS_MAX: usize = 100;

/// Runs the command and gives what it prints. The flag says whether letters still wait among those that were asked for.
///
/// # Errors
/// Postgres does not answer; there is no such letter; an earlier one of its key has to come first.
pub async fn execute(command: &LettersCommand) -> Result<(String, bool), Failure> {
    match command {
        LettersCommand::List(asked) => {
            let client = connect_for_command(&asked.database.0).await?;
            let rows = client
                .query(
                    &format!(
                        "select {COLUMNS} from {WITH_FORMER} as letter
                         where ($1 or discarded_at is null) and ($2::text is null or topic = $2) and ($3::bytea is null or key = $3)
                         order by topic, partition, record_offset limit $4"
                    ),
                    &[&asked.discarded, &asked.topic.as_deref(), &asked.key.as_deref().map(str::as_bytes), &i64::from(asked.limit)],
                )
                .await
                .map_err(unanswered)?;
            Ok((list(&rows), !rows.is_empty()))
        }
        LettersCommand::Show(asked) => {
            let client = connect_for_command(&asked.database.0).await?;
            let row = find(&client, asked.id).await?;
            Ok((show(&row), false))
        }
        LettersCommand::Retry(asked) => {
            let mut desk = Desk::open(&asked.letters.database).await?;
            if asked.all {
                retry::retry_all(&mut desk).await
            } else if let Some(reason) = &asked.all_with_reason {
                retry::retry_all_with_reason(&desk, reason).await
            } else {
                desk.retry(&asked.letters.ids).await
            }
        }
        LettersCommand::Discard(asked) => {
            let mut desk = Desk::open(&asked.letters.database).await?;
            desk.discard(&asked.letters.ids, asked.reason.as_deref()).await
        }
    }
}

/// The letter with this id.
pub(super) async fn find(client: &Client, id: i64) -> Result<Row, Failure> {
    let row = client
        .query_opt(
            &format!("select {COLUMNS} from {WITH_FORMER} as letter where id = $1"),
            &[&id],
        )
        .await
        .map_err(unanswered)?;
    row.ok_or_else(|| {
        Failure::Setting(format!(
            "there is no dead letter {id}: see view-builder dead-letters list"
        ))
    })
}

/// Bytes as text where they are text.
fn text(bytes: Option<&[u8]>) -> String {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => "-".to_owned(),
        Some((_, Ok(text))) if !text.contains(char::is_control) => text.to_owned(),
        Some((bytes, _)) => format!("\\x{}", hex(bytes)),
    }
}

fn list(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut table = format!(
        "{:>8}  {:<24} {:>9} {:>12}  {:<20} {}\n",
        "id", "topic", "partition", "offset", "key", "reason"
    );
    for row in rows {
        let reason = match (
            row.get::<_, Option<&str>>("discarded_at"),
            row.get::<_, Option<&str>>("reason"),
        ) {
            (Some(_), _) => match row.get::<_, Option<&str>>("discard_reason") {
                Some(why) => format!("discarded: {}", text(Some(why.as_bytes()))),
                None => "discarded".to_owned(),
            },
            (None, Some(reason)) => reason.to_owned(),
            (None, None) => "waits behind an earlier one of its key".to_owned(),
        };
        let former = row
            .get::<_, Option<&str>>("former_topic_id")
            .map_or("", |_| "of a former topic: ");
        let reason = former.to_owned() + &reason;
        let reason: String = reason.chars().take(REASON_CHARACTERS_MAX).collect();
        let _ = writeln!(
            table,
            "{:>8}  {:<24} {:>9} {:>12}  {:<20} {reason}",
            row.get::<_, i64>("id"),
            row.get::<_, &str>("topic"),
            row.get::<_, i32>("partition"),
            row.get::<_, i64>("record_offset"),
            text(row.get("key")),
        );
    }
    table
}

fn show(row: &Row) -> String {
    let mut shown = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(shown, "{name:<12} {value}");
    };
    line("id", &row.get::<_, i64>("id").to_string());
    line(
        "place",
        &format!(
            "{}/{} offset {}",
            row.get::<_, &str>("topic"),
            row.get::<_, i32>("partition"),
            row.get::<_, i64>("record_offset")
        ),
    );
    if let Some(former) = row.get::<_, Option<&str>>("former_topic_id") {
        line("former topic", former);
    }
    line("key", &text(row.get("key")));
    line("record time", row.get::<_, Option<&str>>("record_time").unwrap_or("-"));
    line("arrived", row.get("arrived_at"));
    line(
        "reason",
        row.get::<_, Option<&str>>("reason")
            .unwrap_or("nothing is wrong with it: it waits behind an earlier one of its key"),
    );
    line("retries", &row.get::<_, i32>("retries").to_string());
    if let Some(at) = row.get::<_, Option<&str>>("discarded_at") {
        line("discarded", at);
    }
    if let Some(why) = row.get::<_, Option<&str>>("discard_reason") {
        line("because", &text(Some(why.as_bytes())));
    }
    let headers: &str = row.get("headers");
    match serde_json::from_str::<Vec<(String, Option<String>)>>(headers) {
        Ok(headers) => {
            for (name, value) in headers {
                let bytes = value.as_deref().and_then(unhex);
                line("header", &format!("{name}: {}", text(bytes.as_deref())));
            }
        }
        // Not as a builder writes them: somebody has edited the row.
        Err(_) => line("headers", headers),
    }
    let value: &[u8] = row.get("value");
    line("value", &text(Some(value)));
    shown
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
