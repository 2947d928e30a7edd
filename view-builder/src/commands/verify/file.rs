//! The file `verify.sql`: pairs of queries, see [`crate::views::view`].

use std::path::Path;

use crate::views::view::{SqlFile, ViewError};

/// In `-- source: views` the source is a recomputation inside the views' database, and no topic.
const SOURCE_VIEWS: &str = "views";

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

/// One query of the file, without its final semicolon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub sql: String,
    /// How many characters the file has before this query. An error of Postgres counts from the query's start, and a reader counts from the file's.
    pub characters_before: u32,
}

/// What a head comment says. Each query of the file begins with a head comment.
enum Head<'a> {
    /// `-- source: TOPIC` or `-- source: views`.
    Source(&'a str),
    /// `-- view: TABLE`.
    View(&'a str),
}

/// A head comment, and where it is in the file.
struct HeadComment<'a> {
    head: Head<'a>,
    /// Line of the file, from 1.
    line: usize,
    /// The byte of the file after the comment's line, where the query begins.
    query_begins: usize,
}

/// Reads the pairs of queries. `topics`: the topics that the view reads.
///
/// # Errors
/// A head comment is missing, is in the wrong place, or names a source that is no topic of the view; or a query is missing.
pub fn parse(file: &SqlFile, topics: &[String]) -> Result<Vec<Comparison>, ViewError> {
    let comments = find_head_comments(&file.text);
    if comments.is_empty() {
        return Err(error_at(
            &file.path,
            1,
            "a head comment must open each query, such as `-- source: user-events` and `-- view: user_view`",
        ));
    }
    let mut comparisons = Vec::new();
    for pair in comments.chunks(2) {
        comparisons.push(parse_pair(file, topics, &pair[0], pair.get(1))?);
    }
    Ok(comparisons)
}

/// Reads one pair of queries, from its two head comments on.
fn parse_pair(
    file: &SqlFile,
    topics: &[String],
    first: &HeadComment<'_>,
    second: Option<&HeadComment<'_>>,
) -> Result<Comparison, ViewError> {
    let Head::Source(source) = first.head else {
        let reason = "`-- source: TOPIC` must come before `-- view: TABLE`";
        return Err(error_at(&file.path, first.line, reason));
    };
    let Some((second, Head::View(table))) = second.map(|second| (second, &second.head)) else {
        let reason = "`-- view: TABLE` with the view's own query must follow this one";
        return Err(error_at(&file.path, first.line, reason));
    };
    let origin = match source {
        SOURCE_VIEWS => Origin::Views,
        topic if topics.iter().any(|known| known == topic) => Origin::Topic(topic.to_owned()),
        other => {
            let reason = format!(
                "source `{other}` is neither a topic of this view ({}) nor `{SOURCE_VIEWS}`",
                topics.join(", ")
            );
            return Err(error_at(&file.path, first.line, reason));
        }
    };
    if table.is_empty() {
        return Err(error_at(
            &file.path,
            second.line,
            "`-- view:` must name the view's table",
        ));
    }
    Ok(Comparison {
        table: (*table).to_owned(),
        origin,
        source: query_after(file, first)?,
        view: query_after(file, second)?,
    })
}

fn find_head_comments(text: &str) -> Vec<HeadComment<'_>> {
    let mut comments = Vec::new();
    let mut bytes_read = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        bytes_read += line.len();
        let Some(comment) = line.strip_prefix("--").map(str::trim) else {
            continue;
        };
        let head = comment.strip_prefix("source:").map(|name| Head::Source(name.trim()));
        let head = head.or_else(|| comment.strip_prefix("view:").map(|name| Head::View(name.trim())));
        comments.extend(head.map(|head| HeadComment {
            head,
            line: index + 1,
            query_begins: bytes_read,
        }));
    }
    comments
}

/// The query between this head comment and the next one.
fn query_after(file: &SqlFile, comment: &HeadComment<'_>) -> Result<Query, ViewError> {
    let (before, rest) = file.text.split_at(comment.query_begins);
    let end = rest
        .split_inclusive('\n')
        .take_while(|line| find_head_comments(line).is_empty())
        .map(str::len)
        .sum();
    // Comment lines after the query belong to the next query. They are cut off first, so that the query ends with its semicolon.
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
        return Err(error_at(&file.path, comment.line, "no query follows this head comment"));
    }
    Ok(Query {
        sql: sql.to_owned(),
        // Postgres counts a statement's characters in 32 bits, too.
        characters_before: u32::try_from(before.chars().count()).unwrap_or(u32::MAX),
    })
}

fn error_at(path: &Path, line: usize, reason: impl Into<String>) -> ViewError {
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
