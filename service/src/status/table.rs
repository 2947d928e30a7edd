//! Writes figures for people: aligned, with units.

use std::fmt::Write as _;

/// A line of two columns: the name of a figure, and its value.
pub type Pair = (&'static str, String);

/// Lines of a name and a value. The values stand below each other.
#[must_use]
pub fn pairs(pairs: &[Pair]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in pairs {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:width$}  {value}");
    }
    text
}

/// A column of a grid.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// Texts begin below each other.
    Text(&'static str),
    /// Numbers end below each other.
    Number(&'static str),
}

impl Column {
    const fn title(self) -> &'static str {
        match self {
            Self::Text(title) | Self::Number(title) => title,
        }
    }
}

/// A head line and the rows below it. A row has a cell for each column. Without rows the result is empty.
#[must_use]
pub fn grid(columns: &[Column], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let width = |index: usize, column: &Column| {
        let cells = rows.iter().filter_map(|row| row.get(index));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or_default();
        widest.max(column.title().len())
    };
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| width(index, column))
        .collect();
    let line = |cells: Vec<&str>| {
        let mut line = String::new();
        for ((cell, column), width) in cells.iter().zip(columns).zip(&widths) {
            let _ = match column {
                Column::Text(_) => write!(line, "{cell:width$}  "),
                Column::Number(_) => write!(line, "{cell:>width$}  "),
            };
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    };
    let head = line(columns.iter().map(|column| column.title()).collect());
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(head).chain(rows).collect()
}

/// A number of bytes in the unit that people read most easily, as Postgres counts: 1 kB is 1024 bytes.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// A time in seconds, in the one or two units that people read most easily.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a negative time counts as 0, and one beyond 64 bits as the largest"
)]
pub fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let whole = seconds as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3_600, whole / 86_400);
    match (days, hours) {
        (0, 0) => format!("{minutes} min {} s", whole % 60),
        (0, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::{Column, bytes, grid, pairs, seconds};

    #[test]
    fn numbers_end_and_texts_begin_below_each_other() {
        let columns = [Column::Text("topic"), Column::Number("end"), Column::Text("owner")];
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = grid(&columns, &[row(["user-events", "5", "a"]), row(["가", "1000", ""])]);
        assert_eq!(
            text,
            "topic         end  owner\nuser-events     5  a\n가            1000\n"
        );
        assert_eq!(grid(&columns, &[]), "");
        assert_eq!(
            pairs(&[("slot", "a".to_owned()), ("parked", "b".to_owned())]),
            "slot    a\nparked  b\n"
        );
    }

    #[test]
    fn a_unit_fits_its_number() {
        for (count, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1536, "1.5 kB"),
            (5 << 30, "5.0 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (time, text) in [
            (-1.0, "0.0 s"),
            (59.94, "59.9 s"),
            (61.0, "1 min 1 s"),
            (7_260.0, "2 h 1 min"),
            (180_000.0, "2 d 2 h"),
        ] {
            assert_eq!(seconds(time), text);
        }
    }
}
