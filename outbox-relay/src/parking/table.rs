//! Prints parked rows as a table, for a person.

use super::record::Entry;
use crate::outbox::days::{DAY_S, date_of_day};

const HEADINGS: [&str; 6] = ["position", "id", "topic", "key", "since", "reason"];
/// Longest text in a column, in characters. The last column has no limit.
const WIDTH_MAX: usize = 48;

/// The table: a line of headings, then one line for each entry. The columns are aligned.
#[must_use]
pub fn format_table<'e>(entries: impl Iterator<Item = &'e Entry>) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(entries.map(cells));
    // The line of headings is always there, so a longest text always exists.
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADINGS.len() - 1).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        for (value, width) in line.iter().zip(&widths) {
            text.push_str(&format!("{value:width$}  "));
        }
        text.push_str(&line[HEADINGS.len() - 1]);
        text.push('\n');
    }
    text
}

fn cells(entry: &Entry) -> [String; 6] {
    let shortened = |text: Option<&String>| {
        let text = text.map_or("-", String::as_str);
        let mut short: String = text.chars().take(WIDTH_MAX).map(printable).collect();
        if text.chars().count() > WIDTH_MAX {
            short.push('…');
        }
        short
    };
    let omitted = entry.row.omitted();
    let mut reason: String = entry.reason.chars().map(printable).collect();
    if !omitted.is_empty() {
        reason.push_str(&format!(" (not stored: {})", omitted.join(", ")));
    }
    [
        entry.position.to_string(),
        shortened(entry.id.as_ref()),
        shortened(entry.topic.as_ref()),
        shortened(entry.key.as_ref()),
        moment(entry.parked_us),
        format!("{}: {reason}", entry.parked_because.as_str()),
    ]
}

/// Replaces control characters. A row's text must not break the table, and must not send commands to the terminal.
fn printable(character: char) -> char {
    if character.is_control() { '\u{FFFD}' } else { character }
}

/// A moment as text in UTC, like `2026-11-28 11:42:10Z`. `us` is in microseconds since 1970.
fn moment(us: i64) -> String {
    let seconds = us.div_euclid(1_000_000);
    let (year, month, day) = date_of_day(seconds.div_euclid(DAY_S));
    let second_of_day = seconds.rem_euclid(DAY_S);
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::{format_table, moment};
    use crate::parking::record::{Because, Entry, FORMAT, ParkedRow, ParkedText};

    #[test]
    fn a_table_is_aligned_and_no_text_of_a_row_breaks_it() {
        let entry = Entry {
            format: FORMAT,
            position: "16/B374D848:7".parse().unwrap(),
            committed_us: 0,
            parked_us: 0,
            parked_because: Because::Behind,
            reason: "one\nline".to_owned(),
            id: Some("e1".to_owned()),
            topic: None,
            key: Some("\u{1b}[2J".to_owned()),
            topic_key: None,
            row: ParkedRow::Message(ParkedText::of(b"{}")),
        };
        assert_eq!(
            format_table([&entry].into_iter()),
            "position       id  topic  key   since                 reason\n16/B374D848:7  e1  -      \u{FFFD}[2J  1970-01-01 00:00:00Z  behind: one\u{FFFD}line\n"
        );
    }

    #[test]
    fn a_moment_is_utc() {
        assert_eq!(moment(1_795_344_833_217_210), "2026-11-22 10:53:53Z");
    }
}
