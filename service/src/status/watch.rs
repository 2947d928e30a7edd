//! `--watch`: the same look again and again, until Ctrl-C.

use std::io::{IsTerminal as _, Write as _};
use std::str::FromStr;
use std::time::Duration;

use crate::Shutdown;

/// The pause between two looks, as the command line has it: seconds, from 0.1 to 3,600.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Every(Duration);

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse().ok().filter(|seconds| (0.1..=3_600.0).contains(seconds));
        match seconds.map(Duration::try_from_secs_f64) {
            Some(Ok(pause)) => Ok(Self(pause)),
            Some(Err(_)) | None => Err("expected seconds from 0.1 to 3600".to_owned()),
        }
    }
}

impl From<Every> for Duration {
    fn from(every: Every) -> Self {
        every.0
    }
}

/// Clears the terminal.
const CLEAR: &str = "\x1b[2J";
/// Moves to the terminal's first line.
const TO_THE_TOP: &str = "\x1b[H";
/// Clears the rest of the line.
const CLEAR_LINE: &str = "\x1b[K";
/// Clears everything below.
const CLEAR_BELOW: &str = "\x1b[J";

/// What comes before and after the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Screen {
    /// Each round is drawn over the one before.
    Redrawn,
    /// Each round is a block of its own.
    Blocks,
}

impl Screen {
    fn of_standard_output() -> Self {
        if std::io::stdout().is_terminal() {
            Self::Redrawn
        } else {
            Self::Blocks
        }
    }

    /// A round's text as it goes to the screen. `is_json`: it is one line of JSON, which stays as it is.
    fn frame(self, text: &str, is_first: bool, is_json: bool) -> String {
        match self {
            _ if is_json => text.to_owned(),
            Self::Blocks if is_first => text.to_owned(),
            Self::Blocks => format!("\n{text}"),
            Self::Redrawn => {
                let clear = if is_first { CLEAR } else { "" };
                // Drawn over and then cleared, so that nothing flickers.
                let lines = text.replace('\n', &format!("{CLEAR_LINE}\n"));
                format!("{clear}{TO_THE_TOP}{lines}{CLEAR_BELOW}")
            }
        }
    }
}

/// Prints what `look` returns, and again after each pause of `every`, until `shutdown`. `is_json`: what it returns are lines of JSON.
///
/// # Errors
/// `look` fails, or standard output takes nothing more.
pub async fn until_shutdown(
    every: Duration,
    is_json: bool,
    mut shutdown: Shutdown,
    mut look: impl AsyncFnMut() -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let screen = Screen::of_standard_output();
    let mut is_first = true;
    while !shutdown.is_triggered() {
        let text = tokio::select! {
            looked = look() => looked?,
            () = shutdown.triggered() => break,
        };
        let mut out = std::io::stdout().lock();
        let printed = out
            .write_all(screen.frame(&text, is_first, is_json).as_bytes())
            .and_then(|()| out.flush());
        drop(out);
        match printed {
            Ok(()) => {}
            // Who read it has read enough, as `head` does.
            Err(err) if err.kind() == std::io::ErrorKind::BrokenPipe => break,
            Err(err) => return Err(err.into()),
        }
        is_first = false;
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown.triggered() => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Every, Screen, until_shutdown};
    use crate::Shutdown;

    #[test]
    fn a_pause_is_a_tenth_of_a_second_to_an_hour() {
        assert_eq!("2".parse(), Ok(Every(Duration::from_secs(2))));
        for wrong in ["0", "-1", "3601", "NaN", "a"] {
            assert!(wrong.parse::<Every>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_terminal_is_drawn_over_and_elsewhere_each_round_is_a_block() {
        assert_eq!(Screen::Blocks.frame("a\n", true, false), "a\n");
        assert_eq!(Screen::Blocks.frame("a\n", false, false), "\na\n");
        assert_eq!(
            Screen::Redrawn.frame("a\nb\n", true, false),
            "\x1b[2J\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J"
        );
        assert_eq!(Screen::Redrawn.frame("a\n", false, false), "\x1b[Ha\x1b[K\n\x1b[J");
        assert_eq!(
            Screen::Redrawn.frame("{}\n", false, true),
            "{}\n",
            "a script reads lines"
        );
    }

    #[tokio::test]
    async fn it_looks_again_until_it_is_told_to_stop() {
        let (trigger, shutdown) = Shutdown::manual();
        let mut rounds = 0;
        let watched = until_shutdown(Duration::from_millis(1), true, shutdown, async || {
            rounds += 1;
            if rounds == 3 {
                trigger.fire();
            }
            Ok(String::new())
        });
        watched.await.expect("an end");
        assert_eq!(rounds, 3);
    }
}
