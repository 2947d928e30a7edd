//! The files that the pages name exist.

use std::fs;

use super::image_context::repository;

/// The pages that lead readers through the code.
const PAGES: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
/// A text that begins with one of these is a path.
const FOLDERS: [&str; 14] = [
    "outbox-relay/",
    "view-builder/",
    "console/",
    "user-api/",
    "post-api/",
    "crates/",
    "rest/",
    "service/",
    "events/",
    "stack/",
    "tests/",
    "bench/",
    "docs/",
    "sql/",
];

#[test]
fn a_file_that_a_page_names_is_there() {
    let mut missing = Vec::new();
    for page in PAGES {
        let text = fs::read_to_string(repository().join(page)).unwrap_or_else(|err| panic!("{page}: {err}"));
        for path in named(&text) {
            if !repository().join(path).exists() {
                missing.push(format!("{page} names {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The texts between backquotes, and in the parentheses of links, that begin like a path.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let pieces = text.split(['`', '(', ')', '#', ' ', '\n', ',']);
    pieces.filter(|piece| {
        FOLDERS.iter().any(|folder| piece.starts_with(folder)) && !piece.contains(['*', '…', '$', '{', 'N'])
    })
}
