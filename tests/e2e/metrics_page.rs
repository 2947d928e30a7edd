//! docs/metrics.md names all metrics that the programs have, and no others.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rig::Metrics;
use stack::{Program, checkout};

use super::metrics_help;

/// For each program, the heading of its table on the page, and the folders of its source.
pub(crate) const PROGRAMS: [(&str, &[&str]); 5] = [
    ("outbox-relay", &["outbox-relay/src"]),
    ("view-builder", &["view-builder/src"]),
    ("user-api", &["user-api/src", "rest/src"]),
    ("post-api", &["post-api/src", "rest/src"]),
    ("console", &["console/src"]),
];
/// These series begin when something happens for the first time, or only with an option.
const NOT_IN_EVERY_RUN: [&str; 13] = [
    "console_changes_total",
    "relay_ignored_messages_total",
    "relay_outbox_partitions_dropped_total",
    "relay_outbox_rows_deleted_total",
    "relay_parked_total",
    "relay_restarts_total",
    "relay_stopped_exit_code",
    "view_batch_failures_total",
    "view_batch_stuck",
    "view_conflicts_total",
    "view_dead_letters_total",
    "view_fenced_total",
    "view_paused",
];

/// What the page says about a metric.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kind: String,
    labels: Vec<String>,
}

/// What docs/metrics.md says.
pub(crate) struct Page {
    /// The tables, by program and metric.
    tables: BTreeMap<String, BTreeMap<String, Entry>>,
    /// The unit of each metric, such as `seconds` or `0 or 1`.
    pub(crate) units: BTreeMap<String, String>,
}

impl Page {
    pub(crate) fn read() -> Self {
        let file = checkout::root().join("docs/metrics.md");
        let text = fs::read_to_string(&file).unwrap_or_else(|err| panic!("{}: {err}", file.display()));
        let (mut tables, mut units, mut program) = (BTreeMap::new(), BTreeMap::new(), String::new());
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                heading.clone_into(&mut program);
            }
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let ["", name, kind, labels, unit, _meaning, _alert, ""] = cells[..] else {
                continue;
            };
            let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else {
                continue;
            };
            let mut labels: Vec<String> = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            labels.sort_unstable();
            let entry = Entry {
                kind: kind.to_owned(),
                labels,
            };
            units.insert(name.to_owned(), unit.to_owned());
            let table: &mut BTreeMap<String, Entry> = tables.entry(program.clone()).or_default();
            assert!(
                table.insert(name.to_owned(), entry).is_none(),
                "{name} stands there twice"
            );
        }
        Self { tables, units }
    }

    /// Compares the table with the metrics of the running program. Each metric must be in the table with its type and its labels, and must have a
    /// help text. Each metric of the table must be exported.
    pub(crate) async fn assert_names_all(&self, program: &Program) {
        let metrics = Metrics::of(program).await.expect("metrics");
        let (name, _) = PROGRAMS
            .iter()
            .find(|(name, _)| {
                program.name() == *name || (program.name().ends_with("-relay") && *name == "outbox-relay")
            })
            .expect("a known program");
        let table = &self.tables[*name];
        for (metric, kind) in &metrics.types {
            let exported = Entry {
                kind: kind.clone(),
                labels: metrics.labels(metric).into_iter().map(str::to_owned).collect(),
            };
            assert_eq!(
                table.get(metric),
                Some(&exported),
                "{metric} of {name} in docs/metrics.md"
            );
            let help = metrics.helps.get(metric);
            assert!(
                help.is_some_and(|help| metrics_help::names_unit(help, &self.units[metric])),
                "# HELP of {metric} of {name} does not name its unit: {help:?}"
            );
        }
        for metric in table.keys().filter(|metric| !NOT_IN_EVERY_RUN.contains(&&***metric)) {
            assert!(
                metrics.types.contains_key(metric),
                "docs/metrics.md has {metric}, {} does not export it",
                program.name()
            );
        }
    }
}

/// Names and types of the metrics in the source code below `directory`.
fn in_source(directory: &Path, found: &mut BTreeMap<String, String>) {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory of source") {
        files.push(entry.expect("an entry").path());
    }
    for path in files {
        if path.is_dir() {
            in_source(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("source");
            for (kind, opening) in [
                ("counter", "counter!("),
                ("gauge", "gauge!("),
                ("gauge", "exporter::gauge("),
                ("histogram", "histogram!("),
            ] {
                for (_, arguments) in text
                    .match_indices(opening)
                    .map(|(at, _)| text.split_at(at + opening.len()))
                {
                    if let Some(name) = first_argument(arguments, &text) {
                        let before = found.insert(name.to_owned(), kind.to_owned());
                        assert!(before.is_none_or(|before| before == kind), "{name} has two types");
                    }
                }
            }
        }
    }
}

/// The text of the first argument: a literal, or a constant of the file. None: it is a variable.
fn first_argument<'t>(arguments: &'t str, file: &'t str) -> Option<&'t str> {
    let arguments = arguments.trim_start();
    let literal = |text: &'t str| Some(text.strip_prefix('"')?.split_once('"')?.0);
    if arguments.starts_with('"') {
        return literal(arguments);
    }
    let end = arguments.find(|c: char| !c.is_ascii_uppercase() && c != '_')?;
    let constant = format!("const {}: &str = ", &arguments[..end]);
    literal(file.split_once(&constant)?.1)
}

#[test]
fn the_page_names_the_metrics_of_the_sources_and_no_others() {
    let page = Page::read();
    for (program, directories) in PROGRAMS {
        let mut made = BTreeMap::new();
        for directory in directories {
            in_source(&checkout::root().join(directory), &mut made);
        }
        assert!(!made.is_empty(), "{program} has no metrics");
        let named = page
            .tables
            .get(program)
            .unwrap_or_else(|| panic!("no table for {program}"));
        let named: BTreeMap<String, String> = named
            .iter()
            .map(|(name, entry)| (name.clone(), entry.kind.clone()))
            .collect();
        assert_eq!(
            named, made,
            "{program}: docs/metrics.md on the left, the source on the right"
        );
    }
}
