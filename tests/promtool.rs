//! The rules, their tests, the configurations, and the expressions of the dashboards.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use rig::run_promtool;
use serde_json::Value;
use stack::checkout;

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(checkout::root().join(folder)).expect("a folder");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder} has files .{extension}");
    paths
}

fn run(arguments: &[&str], paths: &[PathBuf]) -> String {
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    run_promtool(arguments, &paths).unwrap_or_else(|said| panic!("{said}"))
}

#[test]
fn prometheus_takes_the_rules() {
    // A rule that stands twice is an error as well.
    run(
        &["check", "rules", "--lint=all", "--lint-fatal"],
        &files("deploy/monitoring/rules", "yml"),
    );
}

#[test]
fn each_alert_fires_where_it_should_and_is_silent_just_below() {
    run(&["test", "rules"], &files("deploy/monitoring/rules/tests", "yml"));
}

#[test]
fn prometheus_takes_the_configurations_and_finds_the_rules() {
    let configurations = files("deploy/monitoring", "yml");
    let rules = files("deploy/monitoring/rules", "yml");
    let said = run(&["check", "config"], &configurations);
    let found = said.matches(" rules found").count();
    assert_eq!(found, configurations.len() * rules.len(), "{said}");
}

#[test]
fn every_expression_of_the_dashboards_is_one_of_prometheus() {
    let mut rules = "groups:\n  - name: dashboards\n    rules:\n".to_owned();
    let mut count = 0;
    for path in files("deploy/monitoring/grafana/dashboards", "json") {
        let text = fs::read_to_string(&path).expect("a dashboard");
        let dashboard: Value = serde_json::from_str(&text).expect("JSON");
        for panel in dashboard["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().expect("an expression");
                // Grafana puts a duration there.
                let expression = Value::from(expression.replace("$__rate_interval", "1m"));
                let _ = write!(rules, "      - record: panel:{count}\n        expr: {expression}\n");
                count += 1;
            }
        }
    }
    assert!(count > 50, "only {count} expressions");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("rules.yml");
    fs::write(&file, rules).expect("a file");
    run(&["check", "rules"], &[file]);
}
