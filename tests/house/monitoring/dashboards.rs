//! The dashboards are what Grafana 10 and later take, and each panel tells people what it shows.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::super::image_context::repository;

const FOLDER: &str = "deploy/monitoring/grafana/dashboards";
/// Grafana 10.0 writes dashboards of this version. Later ones read them.
const SCHEMA_VERSION: i64 = 38;
/// Columns of a dashboard.
const COLUMNS: u64 = 24;

fn dashboards() -> Vec<(String, Value)> {
    let entries = fs::read_dir(repository().join(FOLDER)).expect("the folder of the dashboards");
    let mut read: Vec<(String, Value)> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let text = fs::read_to_string(&path).expect("a dashboard");
            let value = serde_json::from_str(&text).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, value)
        })
        .collect();
    read.sort_by(|a, b| a.0.cmp(&b.0));
    read
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn panels(dashboard: &Value) -> &Vec<Value> {
    dashboard["panels"].as_array().expect("panels")
}

#[test]
fn there_are_three_dashboards_that_let_their_reader_choose_the_data_source() {
    let dashboards = dashboards();
    let names: Vec<&str> = dashboards.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["pipeline.json", "relay.json", "views.json"]);
    let uids: BTreeSet<&str> = dashboards
        .iter()
        .map(|(_, dashboard)| text(dashboard, "/uid"))
        .collect();
    assert_eq!(uids.len(), dashboards.len(), "{uids:?}");
    for (name, dashboard) in &dashboards {
        assert_eq!(dashboard["schemaVersion"].as_i64(), Some(SCHEMA_VERSION), "{name}");
        assert!(
            !text(dashboard, "/title").is_empty() && !text(dashboard, "/description").is_empty(),
            "{name}"
        );
        let variables = dashboard["templating"]["list"].as_array().expect("variables");
        assert!(
            variables
                .iter()
                .any(|variable| variable["name"] == "datasource" && variable["type"] == "datasource"),
            "{name} has no variable of the data source"
        );
    }
}

#[test]
fn every_panel_has_a_title_a_description_a_unit_and_the_chosen_data_source() {
    for (name, dashboard) in dashboards() {
        let mut ids = BTreeSet::new();
        for panel in panels(&dashboard) {
            let title = text(panel, "/title");
            assert!(!title.is_empty() && ids.insert(panel["id"].as_u64()), "{name}: {title}");
            if text(panel, "/type") == "row" {
                continue;
            }
            assert!(
                text(panel, "/description").ends_with('.'),
                "{name}: {title}: a description"
            );
            assert!(
                !text(panel, "/fieldConfig/defaults/unit").is_empty(),
                "{name}: {title}: a unit"
            );
            let targets = panel["targets"].as_array().expect("targets");
            assert!(!targets.is_empty(), "{name}: {title}: a query");
            for one in targets.iter().chain([panel]) {
                assert_eq!(
                    text(one, "/datasource/uid"),
                    "${datasource}",
                    "{name}: {title}: the data source"
                );
            }
            for target in targets {
                assert!(!text(target, "/expr").is_empty(), "{name}: {title}: an expression");
            }
        }
    }
}

#[test]
fn no_two_panels_lie_on_each_other() {
    for (name, dashboard) in dashboards() {
        let mut taken = BTreeSet::new();
        for panel in panels(&dashboard) {
            let side = |side: &str| panel["gridPos"][side].as_u64().expect("a number");
            assert!(
                side("x") + side("w") <= COLUMNS,
                "{name}: {} is too wide",
                panel["title"]
            );
            for x in side("x")..side("x") + side("w") {
                for y in side("y")..side("y") + side("h") {
                    assert!(taken.insert((x, y)), "{name}: {} lies on another panel", panel["title"]);
                }
            }
        }
    }
}
