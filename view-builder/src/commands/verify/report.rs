//! What `verify` prints. Ids, versions and buckets only: a row's content never gets here.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use crate::commands::verify::compare::{BucketLine, Difference, Outcome, State};
use crate::commands::verify::file::{Comparison, Origin};
use crate::commands::verify::side::Row;
use crate::process::failure::Failure;

/// All comparisons of one run. It prints as text or JSON.
#[derive(Debug)]
pub struct Report {
    limit: usize,
    json: bool,
    pub compared: Vec<Compared>,
    /// Views without verify.sql.
    pub unverified: Vec<String>,
    /// By the name of a view that is paused and was not compared: the line that the report prints for it.
    pub paused: BTreeMap<String, String>,
}

/// One comparison.
#[derive(Debug)]
pub struct Compared {
    pub view: String,
    pub comparison: Comparison,
    pub outcome: Outcome,
}

impl Report {
    /// `limit`: at most so many differing rows are listed for each comparison.
    #[must_use]
    pub fn new(limit: u32, json: bool) -> Self {
        Self {
            limit: limit as usize,
            json,
            compared: Vec::new(),
            unverified: Vec::new(),
            paused: BTreeMap::new(),
        }
    }

    /// # Errors
    /// [`Failure::Different`] where a view differs, else [`Failure::Paused`] where one is paused, else [`Failure::Lagging`] where rows are
    /// undecided.
    pub fn verdict(&self) -> Result<(), Failure> {
        let outcomes = || self.compared.iter().map(|compared| &compared.outcome);
        if outcomes().any(|outcome| !outcome.differences.is_empty()) {
            return Err(Failure::Different);
        }
        if !self.paused.is_empty() {
            return Err(Failure::Paused);
        }
        if outcomes().any(|outcome| outcome.undecided + outcome.not_looked_at_again > 0) {
            return Err(Failure::Lagging);
        }
        Ok(())
    }

    fn closing_line(&self) -> &'static str {
        match self.verdict() {
            Ok(()) if self.compared.is_empty() => "nothing was compared: no view has a verify.sql",
            Ok(()) => "equal",
            Err(Failure::Different) => "DIFFERENT: rows that the events do not explain",
            Err(Failure::Paused) => "paused: not every view was compared",
            Err(_) => "lagging: no difference is proven, and not every row could be compared",
        }
    }

    fn to_json(&self) -> Value {
        let verdict = match self.verdict() {
            Ok(()) => "equal",
            Err(Failure::Different) => "different",
            Err(Failure::Paused) => "paused",
            Err(_) => "lagging",
        };
        let compared: Vec<Value> = self
            .compared
            .iter()
            .map(|compared| compared.to_json(self.limit))
            .collect();
        json!({"verdict": verdict, "compared": compared, "not_verified": self.unverified, "paused": self.paused})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.json {
            return writeln!(f, "{}", self.to_json());
        }
        for compared in &self.compared {
            f.write_str(&compared.to_text(self.limit))?;
        }
        for view in &self.unverified {
            writeln!(f, "{view}: not verified: has no verify.sql")?;
        }
        for line in self.paused.values() {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{}", self.closing_line())
    }
}

impl Compared {
    fn origin(&self) -> String {
        match &self.comparison.origin {
            Origin::Topic(topic) => format!("the source of {topic}"),
            Origin::Views => "its recomputation".to_owned(),
        }
    }

    fn to_text(&self, limit: usize) -> String {
        let outcome = &self.outcome;
        let mut text = format!("{}: {} against {}\n", self.view, self.comparison.table, self.origin());
        // The bucket's name is the last column: Korean letters are twice as wide, so they would push later columns out of line.
        let mut write_line = |source: &str, view: &str, state: &str, bucket: &str| {
            let _ = writeln!(text, "  {source:>12} {view:>12}  {state:<9}  {bucket}");
        };
        write_line("rows source", "rows view", "", "bucket");
        for bucket in &outcome.buckets {
            let (source, view) = (bucket.rows_source.to_string(), bucket.rows_view.to_string());
            write_line(
                &source,
                &view,
                bucket.state_name(),
                &quoted_or_null(bucket.bucket.as_deref()),
            );
        }
        write_line(
            &outcome.rows_source.to_string(),
            &outcome.rows_view.to_string(),
            self.state_name(),
            "(all)",
        );
        for difference in outcome.differences.iter().take(limit) {
            let _ = writeln!(text, "  {}", difference.to_text());
        }
        let mut write_count = |count: u64, what: &str| {
            if count > 0 {
                let _ = writeln!(text, "  {count} {what}");
            }
        };
        write_count(self.unlisted_differences(limit), "more rows differ");
        write_count(outcome.buckets_more, "more buckets");
        write_count(outcome.caught_up, "rows differed at first and are equal now: lag");
        match &outcome.behind {
            Some(behind) => write_count(outcome.undecided, &format!("rows not decided: the view is {behind}")),
            None => write_count(outcome.undecided, "rows not decided: they kept changing"),
        }
        write_count(
            outcome.not_looked_at_again,
            "further rows differed and were not looked at again",
        );
        text
    }

    /// How many differences are more than the `limit`, so that the report does not list them.
    fn unlisted_differences(&self, limit: usize) -> u64 {
        self.outcome.differences.len().saturating_sub(limit) as u64
    }

    fn state_name(&self) -> &'static str {
        if !self.outcome.differences.is_empty() {
            "DIFFERENT"
        } else if self.outcome.undecided + self.outcome.not_looked_at_again > 0 {
            "behind"
        } else {
            "equal"
        }
    }

    fn to_json(&self, limit: usize) -> Value {
        let outcome = &self.outcome;
        let buckets = outcome.buckets.iter().map(|bucket| {
            json!({"bucket": bucket.bucket, "rows_source": bucket.rows_source, "rows_view": bucket.rows_view, "state": bucket.state_name()})
        });
        json!({
            "view": self.view,
            "table": self.comparison.table,
            "source": match &self.comparison.origin { Origin::Topic(topic) => topic, Origin::Views => "views" },
            "state": self.state_name(),
            "rows_source": outcome.rows_source,
            "rows_view": outcome.rows_view,
            "buckets": buckets.collect::<Vec<_>>(),
            "buckets_more": outcome.buckets_more,
            "differences": outcome.differences.iter().take(limit).map(Difference::to_json).collect::<Vec<_>>(),
            "differences_more": self.unlisted_differences(limit),
            "caught_up": outcome.caught_up,
            "undecided": outcome.undecided,
            "not_looked_at_again": outcome.not_looked_at_again,
            "behind": outcome.behind.map(|behind| json!({"events": behind.events, "unconfirmed_bytes": behind.unconfirmed_bytes})),
        })
    }
}

impl BucketLine {
    fn state_name(&self) -> &'static str {
        match self.state {
            State::Equal => "equal",
            State::CaughtUp => "caught up",
            State::Undecided => "behind",
            State::Different => "DIFFERENT",
        }
    }
}

impl Difference {
    /// How the view differs: `missing`, `extra` or `different`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (&self.source, &self.view) {
            (Some(_), None) => "missing",
            (None, _) => "extra",
            (Some(_), Some(_)) => "different",
        }
    }

    fn to_text(&self) -> String {
        let version_and_bucket = |row: &Row| (row.version, quoted_or_null(row.bucket.as_deref()));
        let source = self.source.as_ref().map(version_and_bucket);
        let explanation = match (source, self.view.as_ref().map(version_and_bucket)) {
            (Some((version, bucket)), None) => format!("version {version} of {bucket} is not in the view"),
            (None, Some((version, bucket))) => {
                format!("the view has version {version} of {bucket}, the source has none")
            }
            (Some(source), Some(view)) if source == view => format!("version {} of {}, other content", view.0, view.1),
            (Some(source), Some(view)) => {
                format!(
                    "source version {} of {}, view version {} of {}",
                    source.0, source.1, view.0, view.1
                )
            }
            (None, None) => String::new(),
        };
        format!("{:<9}  {:>20}  {explanation}", self.kind(), self.key)
    }

    fn to_json(&self) -> Value {
        let side = |row: &Option<Row>| {
            row.as_ref()
                .map(|row| json!({"bucket": row.bucket, "version": row.version}))
        };
        json!({"key": self.key, "kind": self.kind(), "source": side(&self.source), "view": side(&self.view)})
    }
}

/// A bucket's name as people read it: in quotes, or `null` without quotes for the bucket that has no name.
fn quoted_or_null(bucket: Option<&str>) -> String {
    bucket.map_or_else(|| "null".to_owned(), |name| format!("{name:?}"))
}

#[cfg(test)]
mod tests {
    use super::{Difference, Row};

    #[test]
    fn a_difference_tells_id_versions_and_buckets() {
        let row = |bucket: Option<&str>, version| {
            Some(Row {
                bucket: bucket.map(str::to_owned),
                version,
                hash: version,
            })
        };
        for (source, view, kind, told) in [
            (
                row(Some("개발팀"), 2),
                None,
                "missing",
                "version 2 of \"개발팀\" is not in the view",
            ),
            (
                None,
                row(None, 3),
                "extra",
                "the view has version 3 of null, the source has none",
            ),
            (
                row(Some(""), 2),
                row(Some(""), 2),
                "different",
                "version 2 of \"\", other content",
            ),
            (
                row(None, 2),
                row(Some("a"), 1),
                "different",
                "source version 2 of null, view version 1 of \"a\"",
            ),
        ] {
            let difference = Difference { key: 7, source, view };
            assert_eq!(difference.kind(), kind);
            assert_eq!(difference.to_text(), format!("{kind:<9}  {:>20}  {told}", 7));
        }
    }
}
