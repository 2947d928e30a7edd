//! Reads the alerts of `deploy/monitoring/rules`. promtool knows YAML and says what is wrong with it; this reader knows the form that the files have.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::super::image_context::repository;

/// One alert of a rule file.
#[derive(Debug)]
pub(super) struct Alert {
    pub(super) name: String,
    /// `page`: somebody gets up. `ticket`: somebody looks at it tomorrow.
    pub(super) severity: String,
    /// All its lines.
    pub(super) text: String,
    pub(super) summary: String,
    pub(super) description: String,
    /// The page's path in the repository.
    pub(super) runbook: String,
}

/// The rule files, with their texts.
pub(super) fn rule_files() -> BTreeMap<PathBuf, String> {
    yaml_files("deploy/monitoring/rules")
}

/// The files with the tests of the rules, with their texts.
pub(super) fn test_files() -> BTreeMap<PathBuf, String> {
    yaml_files("deploy/monitoring/rules/tests")
}

fn yaml_files(folder: &str) -> BTreeMap<PathBuf, String> {
    let entries = fs::read_dir(repository().join(folder)).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let files: BTreeMap<PathBuf, String> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "yml"))
        .map(|path| (path.clone(), fs::read_to_string(&path).expect("a text")))
        .collect();
    assert!(!files.is_empty(), "{folder} has no files");
    files
}

/// All alerts of all rule files.
pub(super) fn read() -> Vec<Alert> {
    let files = rule_files();
    let alerts: Vec<Alert> = files.values().flat_map(|text| alerts_of(text)).collect();
    let written: usize = files.values().map(|text| text.matches("- alert:").count()).sum();
    assert_eq!(alerts.len(), written, "every alert is read");
    alerts
}

fn alerts_of(text: &str) -> Vec<Alert> {
    let blocks = text.split("      - alert: ").skip(1);
    blocks
        .map(|block| {
            // A comment above the next rule, or the next rule that is no alert, does not belong to this one.
            let end = block.find("\n\n").unwrap_or(block.len());
            let block = &block[..end];
            let name = block.lines().next().unwrap_or_default().trim().to_owned();
            let annotation = |key: &str| {
                let line = block
                    .lines()
                    .find_map(|line| line.trim().strip_prefix(&format!("{key}: ")));
                let text = line.unwrap_or_else(|| panic!("{name} has no {key}"));
                text.trim_matches('"').to_owned()
            };
            let severity = block.split("severity: ").nth(1).and_then(|rest| rest.split('}').next());
            Alert {
                severity: severity.unwrap_or_else(|| panic!("{name} has no severity")).to_owned(),
                summary: annotation("summary"),
                description: annotation("description"),
                runbook: annotation("runbook"),
                text: block.to_owned(),
                name,
            }
        })
        .collect()
}
