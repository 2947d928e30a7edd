//! Each alert has its page and each page its alert; the index lists both; every link leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::super::image_context::repository;
use super::alerts;

const FOLDER: &str = "docs/runbooks";
/// The headings of each page, in this order.
const HEADINGS: [&str; 4] = [
    "## What it means",
    "## How to look",
    "## How to mend",
    "## What not to do",
];

/// The pages besides the index, by their path in the repository.
fn pages() -> BTreeMap<String, String> {
    let entries = fs::read_dir(repository().join(FOLDER)).expect("the folder of the pages");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    names
        .filter(|name| name != "README.md")
        .map(|name| {
            let path = format!("{FOLDER}/{name}");
            let text = fs::read_to_string(repository().join(&path)).expect("a page");
            (path, text)
        })
        .collect()
}

#[test]
fn each_alert_has_its_page_and_each_page_its_alerts() {
    let pages = pages();
    let mut of_pages: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in &pages {
        let line = text
            .lines()
            .find(|line| line.starts_with("Alert: ") || line.starts_with("Alerts: "));
        let line = line.unwrap_or_else(|| panic!("{path} has no line of its alerts"));
        let names = line.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        of_pages.insert(path, names);
    }
    let alerts = alerts::read();
    let mut of_alerts: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for alert in &alerts {
        of_alerts.entry(&alert.runbook).or_default().insert(alert.name.clone());
    }
    assert_eq!(of_pages, of_alerts, "the pages on the left, the rules on the right");
}

#[test]
fn a_page_says_first_whether_data_is_at_risk_and_then_what_to_do() {
    for (path, text) in pages() {
        let mut lines = text.lines();
        assert!(
            lines.next().is_some_and(|line| line.starts_with("# ")),
            "{path}: a title"
        );
        let first = lines.find(|line| !line.is_empty()).unwrap_or_default();
        let risk = first.strip_prefix("**").and_then(|rest| rest.split("**").next());
        let tells = risk.is_some_and(|risk| {
            ["lost", "risk", "gone", "missing"]
                .iter()
                .any(|word| risk.contains(word))
        });
        assert!(tells, "{path} begins with: {first}");
        let headings: Vec<&str> = text.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(headings, HEADINGS, "{path}");
    }
}

#[test]
fn the_index_lists_every_alert_with_its_severity_and_its_page() {
    let index = fs::read_to_string(repository().join(FOLDER).join("README.md")).expect("the index");
    let listed: BTreeSet<(String, String, String)> = index
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let ["", alert, severity, page, _, ""] = cells[..] else {
                return None;
            };
            let alert = alert.strip_prefix('`')?.strip_suffix('`')?;
            let page = page.split('(').nth(1)?.strip_suffix(')')?;
            Some((alert.to_owned(), severity.to_owned(), format!("{FOLDER}/{page}")))
        })
        .collect();
    let alerts = alerts::read().into_iter();
    let wanted: BTreeSet<_> = alerts
        .map(|alert| (alert.name, alert.severity, alert.runbook))
        .collect();
    assert_eq!(listed, wanted, "the index on the left, the rules on the right");
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    let mut paths: Vec<String> = pages().into_keys().collect();
    paths.extend([format!("{FOLDER}/README.md"), "docs/monitoring.md".to_owned()]);
    let mut broken = Vec::new();
    for path in paths {
        let file = repository().join(&path);
        let text = fs::read_to_string(&file).unwrap_or_else(|err| panic!("{path}: {err}"));
        let folder = file.parent().expect("a folder");
        for target in links(&text).filter(|target| !target.starts_with("http")) {
            if !leads_somewhere(folder, &file, target) {
                broken.push(format!("{path}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The targets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

fn leads_somewhere(folder: &Path, file: &Path, target: &str) -> bool {
    let (path, anchor) = target
        .split_once('#')
        .map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let path: PathBuf = if path.is_empty() {
        file.to_owned()
    } else {
        folder.join(path)
    };
    let Some(anchor) = anchor else {
        return path.exists();
    };
    fs::read_to_string(path).is_ok_and(|text| {
        let headings = text.lines().filter(|line| line.starts_with('#'));
        headings.map(anchor_of).any(|found| found == anchor)
    })
}

/// The anchor that a heading gets: lower case, words joined by hyphens, punctuation left out.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
