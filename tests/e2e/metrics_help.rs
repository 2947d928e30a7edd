//! Every metric has a help text, which names the metric's unit as docs/metrics.md has it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use stack::checkout;

use super::metrics_page::{PROGRAMS, Page};

/// Whether a help text names the unit. A gauge that is 0 or 1 says what 1 means.
pub(crate) fn names_unit(help: &str, unit: &str) -> bool {
    if unit == "0 or 1" {
        help.starts_with("1 ")
    } else {
        help.to_lowercase().contains(&unit.to_lowercase())
    }
}

#[test]
fn every_metric_has_a_help_text_that_names_its_unit() {
    let mut helps = BTreeMap::new();
    for directory in PROGRAMS.iter().flat_map(|(_, directories)| *directories) {
        helps_in(&checkout::root().join(directory), &mut helps);
    }
    let mut wrong = Vec::new();
    for (metric, unit) in Page::read().units {
        match helps.get(&metric) {
            Some(help) if names_unit(help, &unit) => {}
            Some(help) => wrong.push(format!("{metric} counts {unit}, and its help text says: {help}")),
            None => wrong.push(format!("{metric} has no help text")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The help texts in the source below `directory`, by metric.
fn helps_in(directory: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).expect("a directory of source") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            helps_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("source");
            for opening in [
                "describe_counter!(",
                "describe_gauge!(",
                "describe_histogram!(",
                "exporter::gauge(",
            ] {
                let calls = text.split(opening).skip(1);
                found.extend(calls.filter_map(|call| name_and_help(call, &text)));
            }
        }
    }
}

/// The name, which may be a constant of the file, and the help text behind it, which is the next text.
fn name_and_help(call: &str, file: &str) -> Option<(String, String)> {
    let call = call.trim_start();
    let (name, rest) = match call.strip_prefix('"') {
        Some(literal) => literal.split_once('"')?,
        None => {
            let (constant, rest) = call.split_once(',')?;
            let value = file.split_once(&format!("const {constant}: &str = \""))?.1;
            (value.split_once('"')?.0, rest)
        }
    };
    let help = rest.split_once('"')?.1.split_once('"')?.0;
    Some((name.to_owned(), help.to_owned()))
}
