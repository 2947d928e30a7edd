//! Each alert says what a person needs, has a test that it fires and one that it is silent, and each way to stop has an alert.

use std::collections::BTreeSet;
use std::fs;

use super::super::image_context::repository;
use super::alerts;

/// Exit codes of `run` that no rule about `relay_stopped_exit_code` can see: it ended as asked (0), or the process ends at once (1, 70).
const WITHOUT_A_STOP: [&str; 3] = ["0", "1", "70"];
/// Exit codes of `recover` and of `status` alone.
const OF_OTHER_COMMANDS: [&str; 5] = ["40", "41", "50", "51", "52"];

#[test]
fn an_alert_says_how_urgent_it_is_and_names_its_number_with_a_unit() {
    for alert in alerts::read() {
        let name = &alert.name;
        assert!(
            ["page", "ticket"].contains(&alert.severity.as_str()),
            "{name}: {}",
            alert.severity
        );
        assert!(!alert.summary.is_empty(), "{name} has an empty summary");
        let says_a_number =
            alert.description.chars().any(|c| c.is_ascii_digit()) || alert.description.contains("$value");
        assert!(says_a_number, "{name}: {}", alert.description);
        assert!(alert.description.ends_with('.'), "{name}: {}", alert.description);
    }
}

#[test]
fn no_two_alerts_have_one_name() {
    let alerts = alerts::read();
    let names: BTreeSet<&str> = alerts.iter().map(|alert| alert.name.as_str()).collect();
    assert_eq!(names.len(), alerts.len());
}

#[test]
fn each_alert_has_a_test_that_it_fires_and_one_that_it_is_silent() {
    let tests: String = alerts::test_files().into_values().collect();
    let mut missing = Vec::new();
    for alert in alerts::read() {
        for kind in ["fires", "silent"] {
            let title = format!("  - name: '{} {kind}: ", alert.name);
            if !tests.contains(&title) {
                missing.push(format!("{}: no test that it {kind}", alert.name));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// promtool takes a test for passed that expects nothing of an alert that is not there.
#[test]
fn a_test_names_an_alert_that_there_is_and_expects_what_its_title_says() {
    let alerts = alerts::read();
    let names: BTreeSet<&str> = alerts.iter().map(|alert| alert.name.as_str()).collect();
    for (path, text) in alerts::test_files() {
        for test in text.split("  - name: '").skip(1) {
            let title = test.split('\'').next().unwrap_or_default();
            let (name, kind) = title
                .split_once(' ')
                .unwrap_or_else(|| panic!("{}: {title}", path.display()));
            assert!(names.contains(name), "{}: {title}", path.display());
            assert!(
                test.contains(&format!("alertname: {name}")),
                "{}: {title}",
                path.display()
            );
            // A test that it fires also says that it is silent just before its time is over.
            let fires = test.contains("exp_labels: ");
            assert_eq!(fires, kind.starts_with("fires: "), "{}: {title}", path.display());
        }
    }
}

#[test]
fn each_exit_code_of_a_relay_that_stops_has_one_alert_and_a_line_on_the_page() {
    let codes = fs::read_to_string(repository().join("docs/exit-codes.md")).expect("docs/exit-codes.md");
    let page = fs::read_to_string(repository().join("docs/runbooks/relay-no-leader.md")).expect("a page");
    let on_page = codes_on_page(&page);
    let alerts = alerts::read();
    let of_codes: Vec<&alerts::Alert> = alerts
        .iter()
        .filter(|alert| alert.name.starts_with("RelayStopped") && alert.name != "RelayStoppedOtherwise")
        .collect();
    let codes = codes.lines().filter_map(code_of_row);
    for code in codes.filter(|code| !OF_OTHER_COMMANDS.contains(code)) {
        assert!(
            on_page.contains(code),
            "docs/runbooks/relay-no-leader.md lacks code {code}"
        );
        if WITHOUT_A_STOP.contains(&code) {
            continue;
        }
        let condition = format!("last2m == {code}\n");
        let found: Vec<&str> = of_codes
            .iter()
            .filter(|alert| alert.text.contains(&condition))
            .map(|alert| alert.name.as_str())
            .collect();
        assert_eq!(found.len(), 1, "alerts of code {code}: {found:?}");
    }
}

/// The first cell of a row of the table, if it is a code.
fn code_of_row(line: &str) -> Option<&str> {
    let code = line.strip_prefix("| ")?.split(' ').next()?;
    code.parse::<u8>().is_ok().then_some(code)
}

/// The codes in the rows `| exit code 10 to 13 | …`.
fn codes_on_page(page: &str) -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    for cell in page
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .filter(|cell| cell.contains("exit code"))
    {
        let numbers: Vec<u8> = cell
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        match numbers[..] {
            [first, last] if cell.contains(" to ") => codes.extend((first..=last).map(|code| code.to_string())),
            _ => codes.extend(numbers.iter().map(u8::to_string)),
        }
    }
    codes
}
