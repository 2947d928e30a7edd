//! deploy/monitoring names metrics that there are, and a pipeline on which all is well raises no alert.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rig::rest::{Rest, id, user};
use rig::{Metrics, run_promtool};
use stack::{Pipeline, Program, checkout};

use super::metrics_page::Page;
use super::shared;

/// What names metrics besides docs/metrics.md.
const FOLDERS: [&str; 4] = [
    "deploy/monitoring/rules",
    "deploy/monitoring/rules/tests",
    "deploy/monitoring/grafana/dashboards",
    "docs/runbooks",
];
/// SQL whose names the runbooks also name: tables, functions and roles.
const SQL: [&str; 2] = ["view-builder/src/views/positions.sql", "sql/cluster.sql"];
/// When the outbox table was looked after, in seconds since 1970.
const LOOKED_AFTER: &str = "relay_outbox_maintenance_success_timestamp_seconds{";
/// A name that begins with one of these is a metric.
const PREFIXES: [&str; 3] = ["relay_", "view_", "http_"];

#[test]
fn every_metric_that_a_rule_a_dashboard_or_a_runbook_names_is_exported() {
    let page = Page::read();
    let sql: String = SQL.iter().map(|path| text_of(&checkout::root().join(path))).collect();
    let mut files = vec![checkout::root().join("docs/monitoring.md")];
    files.extend(FOLDERS.iter().flat_map(|folder| files_of(folder)));
    let (mut unknown, mut known) = (Vec::new(), 0);
    for file in files {
        let text = text_of(&file);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !['_', ':'].contains(&c));
        // A recorded series has colons around the metric's name.
        let names = words.flat_map(|word| word.split(':'));
        for name in names.filter(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix))) {
            let metric = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(name);
            if page.units.contains_key(metric) || page.units.contains_key(name) {
                known += 1;
            } else if !sql.contains(name) {
                unknown.push(format!("{}: {name}", file.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    assert!(known > 200, "only {known} names were found");
}

fn text_of(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

fn files_of(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(checkout::root().join(folder)).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.is_file()).collect()
}

/// All series that Prometheus would have: by name and labels, the value at the start, if it was there, and the value later.
type Series = BTreeMap<String, (Option<f64>, f64)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_on_which_all_is_well_raises_no_alert() {
    let pipeline = shared::builder().start().await.expect("a pipeline");
    let mut series = Series::new();
    scrape(&pipeline, &mut series, true).await;
    let rest = Rest::of(&pipeline);
    let created = rest
        .create_user(&user("계량", "개발팀", "ACTIVE"))
        .await
        .expect("a user");
    let path = format!("/users/{}?minVersion=1&wait=10000", id(&created));
    let (status, _) = rest.ask_posts(&path).await.expect("an answer");
    assert_eq!(status, 200, "the view has the user");
    scrape(&pipeline, &mut series, false).await;
    pipeline.stop().await.expect("a clean end");
    assert!(series.len() > 200, "only {} series", series.len());

    let alerts = alerts();
    let test = test_of(&series, &alerts);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("calm.yml");
    fs::write(&file, &test).expect("a file");
    if let Err(said) = run_promtool(&["test", "rules"], &[&file]) {
        panic!("an alert fires: {said}");
    }

    // The same series with one change do raise an alert, so the test above looks at what these rules look at.
    let changed = test.replace("series: 'relay_leader{", "series: 'relay_leader_no_more{");
    assert_ne!(changed, test, "the relays say that they lead");
    fs::write(&file, changed).expect("a file");
    let said = run_promtool(&["test", "rules"], &[&file]).expect_err("an alert fires");
    assert!(said.contains("RelayNoLeader"), "{said}");
}

/// The series of all programs, with the labels that deploy/monitoring/prometheus-quickstart.yml gives them.
async fn scrape(pipeline: &Pipeline, series: &mut Series, at_start: bool) {
    for program in pipeline.programs() {
        let labels = target_labels(program);
        let metrics = Metrics::of(program).await.expect("metrics");
        let mut note = |name: &str, of_sample: &BTreeMap<String, String>, value: f64| {
            let mut text = format!("{name}{{{labels}");
            for (label, value) in of_sample {
                let _ = write!(text, r#", {label}="{value}""#);
            }
            let entry = series.entry(text + "}").or_insert((None, value));
            if at_start {
                entry.0 = Some(value);
            }
            entry.1 = value;
        };
        note("up", &BTreeMap::new(), 1.0);
        for sample in metrics.samples() {
            note(&sample.name, &sample.labels, sample.value);
        }
    }
}

fn target_labels(program: &Program) -> String {
    let name = program.name();
    match name.strip_suffix("-relay") {
        Some(outbox) => format!(r#"job="outbox-relay", instance="{name}", outbox="{outbox}""#),
        None => format!(r#"job="{name}", instance="{name}""#),
    }
}

fn alerts() -> Vec<String> {
    let files = files_of("deploy/monitoring/rules");
    let texts = files.iter().map(|file| text_of(file)).collect::<String>();
    let names = texts.split("- alert: ").skip(1);
    let names: Vec<String> = names
        .filter_map(|rest| Some(rest.lines().next()?.trim().to_owned()))
        .collect();
    assert!(names.len() > 50, "only {} alerts", names.len());
    names
}

/// A test for promtool: the series stay as they were last for two hours, and no alert fires at any time, looked at every five minutes.
fn test_of(series: &Series, alerts: &[String]) -> String {
    let mut text = "rule_files:\n".to_owned();
    for file in files_of("deploy/monitoring/rules") {
        let _ = writeln!(text, "  - {}", file.display());
    }
    text += "evaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n";
    for (name, (first, later)) in series {
        if name.starts_with(LOOKED_AFTER) {
            // promtool's clock begins at 0. The outbox table is looked after each minute, and was so a moment ago.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
            let age_s = now.as_secs_f64() - later;
            let _ = writeln!(text, "      - {{series: '{name}', values: '{}+60x120'}}", value(-age_s));
            continue;
        }
        let first = first.map_or_else(|| "_".to_owned(), value);
        let rest = format!(" {}", value(*later)).repeat(120);
        let _ = writeln!(text, "      - {{series: '{name}', values: '{first}{rest}'}}");
    }
    text += "    alert_rule_test:\n";
    for alert in alerts {
        for minutes in (0..120).step_by(5) {
            let _ = writeln!(
                text,
                "      - {{eval_time: {minutes}m, alertname: {alert}, exp_alerts: []}}"
            );
        }
    }
    text
}

/// As promtool writes numbers.
fn value(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else {
        format!("{value}")
    }
}
