//! The views. Each is a folder with two or three SQL files. No view has code in Rust.
//!
//! - `table.sql`: the view's tables, functions and triggers, and plain SQL views that show parts of a table. It runs when its text has changed or a
//!   table is missing, in one transaction with the `table.sql` of all other views. So every statement in it must be able to run again.
//! - `apply.sql`: **one** statement that applies a batch. Its head comment says in the first line what the view is and names
//!   its topics: `-- topics: user-events, post-events`.
//!
//! The statement gets the batch as five arrays of the same length. Each event has the same place in all of them:
//!
//! | parameter | type | content |
//! | --- | --- | --- |
//! | `$1` | `text[]` | topic |
//! | `$2` | `bigint[]` | key: the entity's id |
//! | `$3` | `bigint[]` | version: 1, 2, 3… per key |
//! | `$4` | `text[]` | event type, such as `USER_CREATED` |
//! | `$5` | `jsonb[]` | the entity after the change; null in a deletion and only there |
//!
//! A batch holds one event of each topic and key, the latest, in the order of topic and key. Batches come in the order of the topic, but may come
//! again after a crash or a replay. So an event that is older than what the view has must change nothing.
//!
//! - `verify.sql` may be missing. It has what `view-builder verify` compares: pairs of queries. Above each query is a head comment at the beginning
//!   of a line: A query under `-- source: TOPIC` runs in the database whose outbox feeds this topic of the view. The query under `-- view: TABLE`
//!   comes after it and runs in the views' database. `-- source: views` recomputes a derived table inside the views' database, in the snapshot of the
//!   second query. One file may have several pairs.
//!
//! Both queries of a pair give one row for each row of the view's table, with four columns in this order:
//!
//! | column | type | content |
//! | --- | --- | --- |
//! | 1 | `text` | bucket: rows are counted and hashed by it first, such as the department; null is a bucket as well |
//! | 2 | `bigint` | key, not null and unique. A difference is reported by its key. A table whose key is no number hashes it |
//! | 3 | `bigint` | version of the row, not null. It must change whenever the row changes. 0 if rows have no version |
//! | 4 | `text` | everything else that has to be equal, such as `row(name, email)::text`; only its hash leaves Postgres |
//!
//! Leave out what the view adds by itself, such as the time of processing. Both queries must write the same thing as the same text. The sessions'
//! time zone is UTC, and dates have ISO's form. If the types of the two tables differ, cast one of them. Where rows differ, `verify` asks for single
//! keys once more, so the key should be a column with an index.

use std::fs;
use std::path::{Path, PathBuf};

use tokio_postgres::types::Type;

use crate::contract::Contract;
use crate::contract::name::is_view_name;
use crate::process::failure::Failure;

/// Types of the parameters of every `apply.sql`.
pub const PARAMETERS: [Type; 5] = [
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::INT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::JSONB_ARRAY,
];

/// One view, as its folder tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The folder's name.
    pub name: String,
    /// What it is, in one line.
    pub summary: String,
    /// Topics that it reads, sorted.
    pub topics: Vec<String>,
    pub table: SqlFile,
    pub apply: SqlFile,
    /// `None`: the view cannot be verified.
    pub verify: Option<SqlFile>,
}

/// One of a view's SQL files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlFile {
    pub path: PathBuf,
    pub text: String,
}

/// A folder or a file of a view that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {reason}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct ViewError {
    pub path: PathBuf,
    /// Line in the file, from 1, if the reason lies in one line.
    pub line: Option<usize>,
    pub reason: String,
}

impl From<ViewError> for Failure {
    fn from(err: ViewError) -> Self {
        Self::View(err.to_string())
    }
}

impl ViewError {
    fn new(path: &Path, line: Option<usize>, reason: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            reason: reason.into(),
        }
    }
}

impl SqlFile {
    fn read(path: PathBuf) -> Result<Self, ViewError> {
        let text =
            fs::read_to_string(&path).map_err(|err| ViewError::new(&path, None, format!("cannot be read: {err}")))?;
        Ok(Self { path, text })
    }

    /// Makes the error for Postgres' complaint about this file. `character` is where in the text it is, from 1.
    #[must_use]
    pub fn refused(&self, character: Option<u32>, message: &str) -> ViewError {
        let line = character.map(|character| {
            let before = self.text.chars().zip(1..character);
            1 + before.filter(|&(letter, _)| letter == '\n').count()
        });
        ViewError::new(&self.path, line, message)
    }
}

/// All views in `directory`, by name.
///
/// # Errors
/// The directory cannot be read or holds no view; a folder lacks a file, or its head comment does not name its topics.
pub fn load_all(directory: &Path) -> Result<Vec<View>, ViewError> {
    let unreadable = |err: std::io::Error| ViewError::new(directory, None, format!("cannot be read (VIEWS): {err}"));
    let mut views = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            views.push(load(&path)?);
        }
    }
    if views.is_empty() {
        return Err(ViewError::new(
            directory,
            None,
            "holds no view: expected a folder for each (VIEWS)",
        ));
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(views)
}

fn load(folder: &Path) -> Result<View, ViewError> {
    // A name that is not UTF-8 becomes the empty name, which is refused below.
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !is_view_name(name) {
        return Err(ViewError::new(
            folder,
            None,
            "a view's name has lower-case letters, digits and underscores, a letter first",
        ));
    }
    let table = SqlFile::read(folder.join("table.sql"))?;
    let apply = SqlFile::read(folder.join("apply.sql"))?;
    let (summary, topics) = read_head(&apply)?;
    let verify = folder.join("verify.sql");
    let verify = verify.exists().then(|| SqlFile::read(verify)).transpose()?;
    Ok(View {
        name: name.to_owned(),
        summary,
        topics,
        table,
        apply,
        verify,
    })
}

/// Reads the summary and the topics from the comment lines at the head of `apply.sql`.
fn read_head(apply: &SqlFile) -> Result<(String, Vec<String>), ViewError> {
    let comments = apply
        .text
        .lines()
        .map_while(|line| line.strip_prefix("--"))
        .map(str::trim);
    let mut summary = None;
    for (index, comment) in comments.enumerate() {
        let line = Some(index + 1);
        let Some(list) = comment.strip_prefix("topics:") else {
            summary.get_or_insert_with(|| comment.to_owned());
            continue;
        };
        let summary = summary.ok_or_else(|| {
            ViewError::new(
                &apply.path,
                line,
                "the first line must be a comment that says what the view is",
            )
        })?;
        let mut topics: Vec<String> = list.split(',').map(|topic| topic.trim().to_owned()).collect();
        if let Some(wrong) = topics.iter().find(|topic| Contract::of(topic).is_none()) {
            let reason = format!("topic `{wrong}` is not of the pattern <aggregate>-events, such as user-events");
            return Err(ViewError::new(&apply.path, line, reason));
        }
        topics.sort();
        topics.dedup();
        return Ok((summary, topics));
    }
    Err(ViewError::new(
        &apply.path,
        Some(1),
        "the head comment must name the view's topics, such as `-- topics: user-events`",
    ))
}

impl View {
    /// A view as the database keeps it. The database does not keep `verify.sql`.
    pub(crate) fn from_database(name: String, table: String, apply: String, topics: Vec<String>) -> Self {
        let file = |file: &str, text: String| SqlFile {
            path: Path::new("view_definitions").join(&name).join(file),
            text,
        };
        let apply = file("apply.sql", apply);
        Self {
            // Only the command `views` prints the summary, and it reads the directory. So it may be empty here: SQL of an earlier version may lack
            // what a head needs today.
            summary: read_head(&apply).map(|(summary, _)| summary).unwrap_or_default(),
            topics,
            table: file("table.sql", table),
            apply,
            verify: None,
            name,
        }
    }

    /// Whether the other view has the same name and the same SQL.
    #[must_use]
    pub fn has_sql_of(&self, other: &Self) -> bool {
        self.name == other.name && self.table.text == other.table.text && self.apply.text == other.apply.text
    }

    /// The tables that `table.sql` makes, and the plain SQL views of them, in its order.
    #[must_use]
    pub fn tables(&self) -> Vec<&str> {
        let tables = self.table.text.lines().filter_map(|line| {
            let line = line.trim();
            line.strip_prefix("create table if not exists ")
                .or_else(|| line.strip_prefix("create or replace view "))
        });
        tables.filter_map(|rest| rest.split([' ', '(']).next()).collect()
    }
}

/// All topics that the views read, sorted.
#[must_use]
pub fn topics(views: &[View]) -> Vec<String> {
    let mut topics: Vec<String> = views.iter().flat_map(|view| view.topics.iter().cloned()).collect();
    topics.sort();
    topics.dedup();
    topics
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{SqlFile, read_head};

    fn apply(text: &str) -> SqlFile {
        SqlFile {
            path: PathBuf::from("apply.sql"),
            text: text.to_owned(),
        }
    }

    #[test]
    fn the_head_comment_says_what_the_view_is_and_what_it_reads() {
        let (summary, topics) = read_head(&apply(
            "-- Posts by author.\n--\n-- topics: user-events,post-events\nselect 1",
        ))
        .unwrap();
        assert_eq!(summary, "Posts by author.");
        assert_eq!(topics, ["post-events", "user-events"]);
    }

    #[test]
    fn a_head_comment_without_its_parts_is_refused_with_file_and_line() {
        for (text, expected) in [
            (
                "select 1",
                "apply.sql:1: the head comment must name the view's topics, such as `-- topics: user-events`",
            ),
            (
                "-- topics: user-events",
                "apply.sql:1: the first line must be a comment that says what the view is",
            ),
            (
                "-- A view.\n-- topics: users",
                "apply.sql:2: topic `users` is not of the pattern <aggregate>-events, such as user-events",
            ),
        ] {
            assert_eq!(read_head(&apply(text)).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_complaint_of_postgres_gets_its_line() {
        let file = apply("-- 한 줄\nselect\n  wrong");
        assert_eq!(
            file.refused(Some(17), "no such column").to_string(),
            "apply.sql:3: no such column"
        );
    }

    #[test]
    fn the_shipped_views_are_complete() {
        let views = super::load_all(std::path::Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../sql/views"
        )))
        .unwrap();
        let shipped: Vec<(&str, usize)> = views
            .iter()
            .map(|view| (view.name.as_str(), view.topics.len()))
            .collect();
        assert_eq!(shipped, [("activity", 2), ("user_view", 1)]);
        let tables: Vec<&str> = views.iter().flat_map(|view| view.tables()).collect();
        for queried in [
            "user_view",
            "department_stats",
            "post_stats",
            "user_activity",
            "department_performance",
        ] {
            assert!(tables.contains(&queried), "{queried}");
        }
    }
}
