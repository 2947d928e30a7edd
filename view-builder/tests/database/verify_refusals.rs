//! What `view-builder verify` cannot compare is refused, and it says where the mistake is.

use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use view_builder::commands::verify::compare::compare;
use view_builder::commands::verify::file::parse;
use view_builder::commands::verify::verify;
use view_builder::process::failure::Failure;
use view_builder::settings::{Cli, Command, VerifyConfig};
use view_builder::views::view::SqlFile;

use super::support::comparison::{NothingOnTheWay, side};
use super::support::{TestDatabase, shipped_views};

fn verify_sql(text: String) -> SqlFile {
    SqlFile {
        path: "verify.sql".into(),
        text,
    }
}

/// How a query is refused that stands in line 3 of its file.
async fn refusal_of(query: &str) -> String {
    let database = TestDatabase::create().await;
    let file = verify_sql(format!("-- 왜\n-- source: views\n{query};\n-- view: t\nselect 1"));
    let comparison = parse(&file, &[]).unwrap().remove(0);
    match side(&database, &file, &comparison.source).await {
        Ok(_) => panic!("{query} is accepted"),
        Err(refused) => refused.to_string(),
    }
}

#[tokio::test]
async fn sql_that_postgres_refuses_is_told_by_its_line() {
    assert_eq!(
        refusal_of("select 1,\n  wrong").await,
        "verify.sql:4: this side: column \"wrong\" does not exist"
    );
}

#[tokio::test]
async fn columns_of_other_types_are_told_beside_the_right_ones() {
    assert_eq!(
        refusal_of("select 'b', 1, 1::bigint, ''").await,
        "verify.sql:3: the query gives (?column? text, ?column? int4, int8 int8, ?column? text), expected (bucket text, key bigint, version bigint, content text)"
    );
}

#[tokio::test]
async fn a_column_that_is_missing_is_told_beside_the_right_ones() {
    assert_eq!(
        refusal_of("select 'b', 1::bigint, 1::bigint").await,
        "verify.sql:3: the query gives (?column? text, int8 int8, int8 int8), expected (bucket text, key bigint, version bigint, content text)"
    );
}

#[tokio::test]
async fn a_query_with_parameters_is_refused() {
    assert_eq!(
        refusal_of("select 'b', 1::bigint, 1::bigint, $1::text").await,
        "verify.sql:3: the query takes parameters, and there are none"
    );
}

/// Postgres takes such a text for one statement. But a query stands in parentheses when it is compared.
#[tokio::test]
async fn a_query_that_cannot_stand_in_parentheses_is_told_by_its_line_before_anything_is_compared() {
    assert_eq!(
        refusal_of("select 'b', 1::bigint,\n  1::bigint, ''; -- why").await,
        "verify.sql:4: this side: syntax error at or near \";\""
    );
    assert_eq!(
        refusal_of("with gone as (delete from pg_class returning 1)\nselect 'b', 1::bigint, 1::bigint, ''").await,
        "verify.sql:3: this side: WITH clause containing a data-modifying statement must be at the top level"
    );
}

/// How the rows of this query are refused when they are compared.
async fn refusal_of_rows(query: &str) -> String {
    let database = TestDatabase::create().await;
    let file = verify_sql(format!(
        "-- source: views\n{query}\n-- view: t\nselect 'b', 5::bigint, 1::bigint, ''"
    ));
    let comparison = parse(&file, &[]).unwrap().remove(0);
    let source = side(&database, &file, &comparison.source).await.unwrap();
    let view = side(&database, &file, &comparison.view).await.unwrap();
    let compared = compare(&source, &view, None::<&mut NothingOnTheWay>, Duration::ZERO, false).await;
    compared.unwrap_err().to_string()
}

#[tokio::test]
async fn a_key_that_comes_twice_is_refused() {
    assert_eq!(
        refusal_of_rows("select 'b', 1::bigint, n, '' from generate_series(1::bigint, 2) as n").await,
        "verify.sql: in the rows of this side: a key comes more than once"
    );
}

#[tokio::test]
async fn a_row_without_a_key_is_refused() {
    assert_eq!(
        refusal_of_rows("select 'b', null::bigint, 1::bigint, ''").await,
        "verify.sql: in the rows of this side: a key or a version is null"
    );
}

/// The settings of `verify` on these views, with a database that nobody is asked for.
fn settings(views: &Path, more: &[&str]) -> Box<VerifyConfig> {
    let views = views.to_str().unwrap();
    let arguments = [
        "view-builder",
        "verify",
        "--database-url",
        "postgres://nobody@127.0.0.1:1/x",
        "--views",
        views,
    ];
    let Command::Verify(config) = Cli::try_parse_from(arguments.iter().chain(more)).unwrap().command else {
        panic!("verify");
    };
    config
}

#[tokio::test]
async fn a_view_without_verify_sql_is_reported() {
    let folder = std::env::temp_dir().join(format!("verify-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("plain")).unwrap();
    std::fs::write(folder.join("plain/table.sql"), "").unwrap();
    std::fs::write(
        folder.join("plain/apply.sql"),
        "-- Plain.\n-- topics: user-events\nselect 1",
    )
    .unwrap();
    let report = verify(&settings(&folder, &[])).await;
    std::fs::remove_dir_all(&folder).unwrap();
    let text = report.unwrap().to_string();
    assert!(text.starts_with("plain: not verified: has no verify.sql\n"), "{text}");
}

#[tokio::test]
async fn a_source_that_is_missing_is_named_with_its_flag() {
    let refused = verify(&settings(&shipped_views(), &["--source", "post-events=postgres://x"]))
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, Failure::Setting(text) if text.contains("--source user-events=")),
        "{refused}"
    );
}
