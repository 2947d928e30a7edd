//! The result of a measurement: one table, and a JSON file if the command line asks for one.
#![expect(clippy::print_stdout, reason = "the table is what the command is for")]

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};
use stack::Pipeline;

/// The conditions of a measurement, every run of it, and the table.
#[derive(Debug)]
pub(crate) struct Report {
    pub conditions: Value,
    /// One object for each run, in the order in which they ran.
    pub runs: Vec<Value>,
    pub table: Table,
    /// Sentences below the table.
    pub notes: Vec<String>,
}

/// Each row has as many cells as there are headings.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn add_row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as lines of text. The first column is aligned left, all others right.
    fn lines(&self) -> Vec<String> {
        let headings = self.headings.iter().map(|&heading| heading.to_owned()).collect();
        let all: Vec<&Vec<String>> = std::iter::once(&headings).chain(&self.rows).collect();
        let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        let line = |row: &&Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate();
            let padded = cells.map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        all.iter().map(line).collect()
    }

    fn json(&self) -> Vec<Value> {
        let object = |row: &Vec<String>| {
            let fields = self.headings.iter().zip(row);
            Value::Object(
                fields
                    .map(|(name, cell)| ((*name).to_owned(), json!(cell)))
                    .collect::<Map<_, _>>(),
            )
        };
        self.rows.iter().map(object).collect()
    }
}

impl Report {
    /// A report without runs, whose table has these headings. Make it before the measurement: it notes the load average, which should show
    /// only what else runs on this machine.
    ///
    /// # Errors
    /// PostgreSQL does not answer.
    pub(crate) async fn begin(pipeline: &Pipeline, headings: &[&'static str]) -> anyhow::Result<Self> {
        Ok(Self {
            conditions: conditions(pipeline).await?,
            runs: Vec::new(),
            table: Table::new(headings),
            notes: Vec::new(),
        })
    }

    pub(crate) fn print(&self) {
        println!();
        for line in self.table.lines() {
            println!("  {line}");
        }
        println!();
        for note in &self.notes {
            println!("{note}");
        }
        let text = |name: &str| self.conditions[name].as_str().unwrap_or("unknown");
        println!(
            "Measured {} on {} processors ({}), shared by PostgreSQL {}, Apache Kafka, the load and the programs; load average before: {}",
            text("date"),
            self.conditions["processors"],
            text("processor"),
            text("postgres"),
            text("load_average")
        );
    }

    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let report = json!({
            "conditions": self.conditions,
            "runs": self.runs,
            "table": self.table.json(),
            "notes": self.notes,
        });
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
    }
}

async fn conditions(pipeline: &Pipeline) -> anyhow::Result<Value> {
    let rows = pipeline
        .postgres()?
        .query(
            "postgres",
            "select to_char(now(), 'YYYY-MM-DD'), current_setting('server_version'), current_setting('fsync')",
        )
        .await?;
    let cell = |column: usize| rows.first().and_then(|row| row.get(column).cloned().flatten());
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Ok(json!({
        "date": cell(0),
        "postgres": cell(1),
        "fsync": cell(2),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "processor": model.and_then(|line| line.split_once(": ")).map(|(_, name)| name),
        "load_average": load.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
    }))
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["what", "rows/s"]);
        table.add_row(vec!["pg_recvlogical".to_owned(), "103,000".to_owned()]);
        table.add_row(vec!["relay".to_owned(), "9".to_owned()]);
        assert_eq!(
            table.lines(),
            [
                "what             rows/s",
                "pg_recvlogical  103,000",
                "relay                 9"
            ]
        );
    }
}
