//! Runs commands of view-builder, as an operator would.

use super::{DEADLINE, ViewRig};

impl ViewRig {
    /// Runs `view-builder` with these arguments. Returns its exit code, and what it printed and logged in this run. Commands of one rig run one after
    /// the other.
    ///
    /// # Errors
    /// It cannot be run, or does not end.
    pub async fn command(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let name = format!("command-{}", arguments.first().copied().unwrap_or_default());
        let command = self.builder("command").command_of(&name, arguments);
        let before = command.log_text().len();
        command.start()?;
        let status = command.exited(DEADLINE).await?;
        Ok((status.code(), command.log_text()[before..].to_owned()))
    }

    /// Runs `view-builder` with these arguments, and asserts that it ends with this exit code. Returns what it printed and logged in this run.
    ///
    /// # Panics
    /// It ends otherwise, cannot be run, or does not end.
    pub async fn assert_command(&self, arguments: &[&str], exit_code: i32) -> String {
        let ran = self.command(arguments).await;
        let (code, said) = ran.unwrap_or_else(|err| panic!("{arguments:?}: {err:#}"));
        assert_eq!(code, Some(exit_code), "{arguments:?}: {said}");
        said
    }
}
