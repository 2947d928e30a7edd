//! Commands that are run to their end at once, for their answer.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::CommandLine;
use crate::settings::Settings;

/// What a command has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `None`: a signal has ended it.
    pub exit_code: Option<i32>,
    pub printed: String,
    /// What it told on standard error.
    pub told: String,
}

impl CommandLine {
    /// Runs it to its end, and gives it `input`. For commands that change nothing and need little time.
    ///
    /// # Errors
    /// It cannot be started, or has not ended in time; then it is ended.
    pub async fn ask(&self, settings: &Settings, input: &str, time_max: Duration) -> anyhow::Result<Answer> {
        let mut child = self.start(settings, Stdio::piped())?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not want to read it closes its end.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = tokio::time::timeout(time_max, child.wait_with_output())
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {} s", time_max.as_secs()))??;
        Ok(Answer {
            exit_code: output.status.code(),
            printed: String::from_utf8_lossy(&output.stdout).into_owned(),
            told: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
