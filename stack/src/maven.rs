//! Downloads from Maven Central by its ordinary client.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::bail;

use crate::process::{Ending, Process};

/// The dependency plugin. Its version is fixed, so that a new version changes nothing unnoticed.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1";

/// Runs `goal` of Maven's dependency plugin in `directory`. A wrong checksum is a failure.
///
/// # Errors
/// `mvn` is missing or failed; the message has its last lines.
pub async fn dependency<S: AsRef<OsStr>>(goal: &str, settings: &[S], directory: &Path) -> anyhow::Result<()> {
    let log = directory.join("maven.log");
    let mut command = Command::new("mvn");
    command
        .args(["--quiet", "--batch-mode", "--strict-checksums"])
        .arg(format!("{PLUGIN}:{goal}"))
        .args(settings)
        .current_dir(directory);
    let process = match Process::spawn("mvn", &mut command, &log, Ending::Kill) {
        Ok(process) => process,
        Err(err) => {
            bail!("{err:#}: Maven downloads PostgreSQL and Kafka; on Debian and Ubuntu it is the package maven")
        }
    };
    if !process.exited().await.success() {
        bail!("mvn could not download:\n{}", process.log_tail(15));
    }
    drop(std::fs::remove_file(log));
    Ok(())
}
