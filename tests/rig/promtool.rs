//! Prometheus' own tool, which checks rules, tests of rules and configurations.

use std::path::Path;
use std::process::Command;

/// Runs promtool in the checkout, and returns what it says.
///
/// # Errors
/// It refuses something. The error is what it says.
///
/// # Panics
/// promtool is missing.
pub fn run_promtool(arguments: &[&str], paths: &[&Path]) -> Result<String, String> {
    let tool = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    let output = Command::new(&tool)
        .args(arguments)
        .args(paths)
        .current_dir(stack::checkout::root())
        .output();
    let output = output.unwrap_or_else(|err| {
        panic!("{tool}: {err}; ./test gets it, and so does the package `prometheus` of Debian and Ubuntu")
    });
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.success() { Ok(said) } else { Err(said) }
}
