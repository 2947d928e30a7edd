//! Runs Playwright, which drives the browser.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use stack::process::{Ending, Process};
use stack::{Pipeline, checkout};

/// All tests of one project must be done by then.
const DEADLINE: Duration = Duration::from_secs(400);

/// Runs the tests of a project of `playwright.config.js` against the pipeline's console. `variables` are for the tests.
///
/// # Errors
/// A test failed, or none was run. The error is Playwright's report.
pub(crate) async fn run(pipeline: &Pipeline, project: &str, variables: &[(&str, &str)]) -> Result<(), String> {
    let console = pipeline.console.as_ref().expect("a pipeline with a console");
    let token = std::fs::read_to_string(console.token_file()).expect("the token of an operator");
    let folder = folder();
    let playwright = folder.join("node_modules/@playwright/test/cli.js");
    assert!(
        playwright.is_file(),
        "Playwright is not installed: (cd {} && npm ci)",
        folder.display()
    );
    let output = tempfile::tempdir().expect("a folder");
    let report = output.path().join("report");
    let mut command = Command::new("node");
    command
        .arg(playwright)
        .args(["test", "--project", project, "--output"])
        .arg(output.path().join("results"))
        .current_dir(&folder)
        .env("CONSOLE_URL", console.url(""))
        .env("CONSOLE_TOKEN", token.trim())
        .env("USER_API", pipeline.user_api.url(""))
        .env("PICTURES", checkout::root().join("docs/images"))
        .envs(variables.iter().copied());
    let process = Process::spawn(format!("playwright {project}"), &mut command, &report, Ending::Kill);
    let process = process.expect("node runs");
    let ended = tokio::time::timeout(DEADLINE, process.exited()).await;
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    let is_well = ended.is_ok_and(|status| status.success());
    if is_well && text.contains(" passed") {
        return Ok(());
    }
    Err(format!(
        "{project} {variables:?}\n{text}\nthe console's log ends with:\n{}",
        console.program.log_tail(15)
    ))
}

/// The folder of Playwright's tests.
fn folder() -> PathBuf {
    checkout::root().join("tests/console")
}
