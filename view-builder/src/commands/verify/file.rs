//! The file `verify.sql`: pairs of queries, see [`crate::views::view`].

use std::path::Path;

use crate::views::view::{SqlFile, ViewError};

/// What `-- source:` says where the source is a recomputation inside the views' database.
const VIEWS: &str = "views";

/// One table of a view, and what it has to be equal to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The view's table, as `-- view:` names it.
    pub table: String,
    pub origin: Origin,
    pub source: Query,
    pub view: Query,
}

/// Where a comparison's first query runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the database whose outbox feeds this topic.
    Topic(String),
    /// In the views' database, in the snapshot of the second query.
    Views,
}

/// One query of the file, without the semicolon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub sql: String,
    /// Characters of the file before it, so that a position that Postgres names is one of the file.
    pub characters_before: u32,
}

/// A head comment that opens a query.
enum Head<'a> {
    Source(&'a str),
    View(&'a str),
}

/// The pairs of the file; `topics` are those that the view reads.
///
/// # Errors
/// A head comment is missing, comes in the wrong place or names something else than a topic of the view; a query is missing.
pub fn parse(file: &SqlFile, topics: &[String]) -> Result<Vec<Comparison>, ViewError> {
    let heads = heads(&file.text);
    if heads.is_empty() {
        return Err(wrong(
            &file.path,
            1,
            "a head comment must open each query, such as `-- source: user-events` and `-- view: user_view`",
        ));
    }
    let mut comparisons = Vec::new();
    for pair in heads.chunks(2) {
        let (Some((line, from, Head::Source(origin))), second) = (pair.first(), pair.get(1)) else {
            let line = pair.first().map_or(1, |(line, _, _)| *line);
            return Err(wrong(
                &file.path,
                line,
                "`-- source: TOPIC` must come before `-- view: TABLE`",
            ));
        };
        let Some((view_line, view_from, Head::View(table))) = second else {
            let reason = "`-- view: TABLE` with the view's own query must follow this one";
            return Err(wrong(&file.path, *line, reason));
        };
        let origin = match *origin {
            VIEWS => Origin::Views,
            topic if topics.iter().any(|known| known == topic) => Origin::Topic(topic.to_owned()),
            other => {
                let reason = format!(
                    "source `{other}` is neither a topic of this view ({}) nor `{VIEWS}`",
                    topics.join(", ")
                );
                return Err(wrong(&file.path, *line, reason));
            }
        };
        if table.is_empty() {
            return Err(wrong(&file.path, *view_line, "`-- view:` must name the view's table"));
        }
        comparisons.push(Comparison {
            table: (*table).to_owned(),
            origin,
            source: query(file, *from, *line)?,
            view: query(file, *view_from, *view_line)?,
        });
    }
    Ok(comparisons)
}

/// Every head comment with its line and the byte after it.
fn heads(text: &str) -> Vec<(usize, usize, Head<'_>)> {
    let mut heads = Vec::new();
    let mut at = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        at += line.len();
        let Some(comment) = line.strip_prefix("--").map(str::trim) else {
            continue;
        };
        let head = comment.strip_prefix("source:").map(|name| Head::Source(name.trim()));
        let head = head.or_else(|| comment.strip_prefix("view:").map(|name| Head::View(name.trim())));
        heads.extend(head.map(|head| (index + 1, at, head)));
    }
    heads
}

/// The query that begins at byte `from`, up to the next head comment.
fn query(file: &SqlFile, from: usize, line: usize) -> Result<Query, ViewError> {
    let rest = &file.text[from..];
    let end = rest
        .split_inclusive('\n')
        .take_while(|line| heads(line).is_empty())
        .map(str::len)
        .sum();
    // Comments behind the query belong to the next one, and would hide the end of what is put around this one.
    let mut sql = rest[..end].trim_end();
    while let Some(last) = sql
        .lines()
        .next_back()
        .filter(|last| last.trim_start().starts_with("--"))
    {
        sql = sql[..sql.len() - last.len()].trim_end();
    }
    let sql = sql.strip_suffix(';').unwrap_or(sql).trim_end();
    if sql.is_empty() {
        return Err(wrong(&file.path, line, "no query follows this head comment"));
    }
    Ok(Query {
        sql: sql.to_owned(),
        // Postgres counts a statement's characters in 32 bits, too.
        characters_before: u32::try_from(file.text[..from].chars().count()).unwrap_or(u32::MAX),
    })
}

fn wrong(path: &Path, line: usize, reason: impl Into<String>) -> ViewError {
    ViewError {
        path: path.to_owned(),
        line: Some(line),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Origin, parse};
    use crate::views::view::SqlFile;

    fn file(text: &str) -> SqlFile {
        SqlFile {
            path: PathBuf::from("verify.sql"),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_file_is_pairs_of_queries_and_comments_between_them_belong_to_neither() {
        let text = "-- Why.\n-- source: user-events\nselect 1; -- 뒤\n-- view: user_view\nselect 2;\n\n-- More.\n-- source: views\n--here\nselect 3\n-- view: stats\nselect 4";
        let pairs = parse(&file(text), &["user-events".to_owned()]).unwrap();
        let told: Vec<_> = pairs
            .iter()
            .map(|pair| (&*pair.table, &pair.origin, &*pair.source.sql, &*pair.view.sql))
            .collect();
        assert_eq!(told[0].0, "user_view");
        assert_eq!(told[0].1, &Origin::Topic("user-events".to_owned()));
        assert_eq!(told[0].3, "select 2");
        assert_eq!((told[1].0, told[1].1), ("stats", &Origin::Views));
        assert_eq!((told[1].2, told[1].3), ("--here\nselect 3", "select 4"));
        let before = usize::try_from(pairs[1].view.characters_before).unwrap();
        assert_eq!(text.chars().skip(before).collect::<String>(), "select 4");
    }

    #[test]
    fn a_wrong_head_is_refused_with_file_and_line() {
        for (text, expected) in [
            (
                "select 1",
                "verify.sql:1: a head comment must open each query, such as `-- source: user-events` and `-- view: user_view`",
            ),
            (
                "--\n-- view: t\nselect 1",
                "verify.sql:2: `-- source: TOPIC` must come before `-- view: TABLE`",
            ),
            (
                "--\n-- source: user-events\nselect 1",
                "verify.sql:2: `-- view: TABLE` with the view's own query must follow this one",
            ),
            (
                "-- source: users\nselect 1\n-- view: t\nselect 1",
                "verify.sql:1: source `users` is neither a topic of this view (user-events) nor `views`",
            ),
            (
                "-- source: views\nselect 1\n-- view:\nselect 1",
                "verify.sql:3: `-- view:` must name the view's table",
            ),
            (
                "-- source: views\n--\n-- view: t\nselect 1",
                "verify.sql:1: no query follows this head comment",
            ),
        ] {
            let told = parse(&file(text), &["user-events".to_owned()]).unwrap_err();
            assert_eq!(told.to_string(), expected);
        }
    }
}
