//! Asks a person before something is changed.

use std::io::{IsTerminal, Write as _};

use anyhow::Context;

use crate::process::stop::{RelayError, Stop};

/// Prints at once, also a line that has no end yet.
///
/// # Errors
/// The output is closed.
#[expect(
    clippy::print_stdout,
    reason = "a command that tells a person what it is about to do"
)]
pub(super) fn print_now(text: &str) -> Result<(), RelayError> {
    print!("{text}");
    std::io::stdout().flush()?;
    Ok(())
}

/// Asks on a terminal. `without_terminal` and `refused` are told where there is none, and where the answer is another than `yes`.
///
/// # Errors
/// [`Stop::NotConfirmed`] for every answer but `yes`, and where there is no terminal.
pub(super) async fn ask_for_yes(question: &str, without_terminal: &str, refused: &str) -> Result<(), RelayError> {
    let not_confirmed = |what: &str| Stop::NotConfirmed { what: what.to_owned() };
    if !std::io::stdin().is_terminal() {
        return Err(not_confirmed(without_terminal).into());
    }
    print_now(question)?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    if answer.await.context("reading the answer")??.trim() == "yes" {
        return Ok(());
    }
    Err(not_confirmed(refused).into())
}
