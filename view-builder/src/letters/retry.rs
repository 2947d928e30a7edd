//! `dead-letters retry --all`: every letter that waits is tried again, in the order of its topic.
//!
//! Piece by piece: a piece is one transaction with a bounded number of letters and bytes, and between two pieces the builder has as long for
//! the position as the piece took, so that a million letters neither fill the memory nor hold up the views. A piece is first tried as a
//! builder tries a batch; where Postgres refuses that, its letters are tried one by one, and a key whose letter is still dead is left
//! alone from there on.

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::commands::{Desk, Outcome, Waiting};
use super::known::hash;
use crate::failure::Failure;

/// Most letters of a piece.
const PIECE_LETTERS: i64 = 500;
/// Most bytes of a piece's records, but for one that is larger by itself.
const PIECE_BYTES: i64 = 4_194_304;
/// Shortest time that the builder gets between two pieces.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Lines that are printed for letters; what is more is counted.
const LINES_MAX: u64 = 1_000;

/// How far the retry is.
#[derive(Default)]
struct Done {
    applied: u64,
    dead: u64,
    /// Keys of which a letter is still dead, by the hash of partition and key: later ones of them wait.
    still_dead: HashSet<(i32, u64)>,
}

/// Tries all letters again. Returns what to print, and whether some still wait.
///
/// # Errors
/// Postgres does not answer.
pub(super) async fn all(desk: &mut Desk) -> Result<(String, bool), Failure> {
    let progress = progress(desk.count().await?);
    let (mut said, mut done, mut after) = (String::new(), Done::default(), None);
    loop {
        let began = Instant::now();
        let Some(piece) = desk.piece(after.as_ref(), PIECE_LETTERS, PIECE_BYTES).await? else {
            break;
        };
        after = Some(piece.last);
        for layer in layers(&piece.letters) {
            let is_free = |letter: &&&Waiting| !done.still_dead.contains(&line(letter));
            let free: Vec<Waiting> = layer.iter().filter(is_free).map(|letter| (*letter).clone()).collect();
            if desk.apply_all(&free).await? {
                for letter in &free {
                    done.applied += 1;
                    say(&mut said, &done, format!("applied {}", letter.described()));
                }
                continue;
            }
            for letter in &free {
                one(desk, letter, &mut done, &mut said).await?;
            }
        }
        progress.inc(u64::try_from(piece.letters.len()).unwrap_or(u64::MAX));
        tokio::time::sleep(began.elapsed().max(PAUSE_MIN)).await;
    }
    progress.finish_and_clear();
    if done.applied + done.dead > LINES_MAX {
        said.push_str("...\n");
    }
    if done.applied + done.dead == 0 && done.still_dead.is_empty() {
        said.push_str("no dead letters\n");
    } else {
        said.push_str(&format!("{} applied, {} still dead\n", done.applied, done.dead));
    }
    Ok((said, done.dead > 0))
}

async fn one(desk: &mut Desk, letter: &Waiting, done: &mut Done, said: &mut String) -> Result<(), Failure> {
    if done.still_dead.contains(&line(letter)) {
        return Ok(());
    }
    match desk.end(letter, false).await? {
        Outcome::Applied => {
            done.applied += 1;
            say(said, done, format!("applied {}", letter.described()));
        }
        Outcome::Dead(reason) => {
            done.dead += 1;
            if letter.key.is_some() {
                done.still_dead.insert(line(letter));
            }
            say(said, done, format!("still dead {}: {reason}", letter.described()));
        }
        Outcome::Gone | Outcome::Discarded | Outcome::Outdated | Outcome::Paused(_) => {}
    }
    Ok(())
}

fn say(said: &mut String, done: &Done, text: String) {
    if done.applied + done.dead <= LINES_MAX {
        said.push_str(&text);
        said.push('\n');
    }
}

/// The first letter of each key, then the second of each key, and so on: of two letters of a key in one batch Postgres would see the later alone.
fn layers(letters: &[Waiting]) -> Vec<Vec<&Waiting>> {
    let mut layers: Vec<Vec<&Waiting>> = Vec::new();
    let mut depths: HashMap<(i32, u64), usize> = HashMap::new();
    for letter in letters {
        let depth = match letter.key {
            Some(_) => depths.entry(line(letter)).or_default(),
            None => &mut 0,
        };
        if layers.len() == *depth {
            layers.push(Vec::new());
        }
        layers[*depth].push(letter);
        *depth += 1;
    }
    layers
}

/// What the letter waits in: its partition and key.
fn line(letter: &Waiting) -> (i32, u64) {
    let mut bytes = letter.place.topic.as_bytes().to_vec();
    bytes.push(0);
    bytes.extend(letter.key.as_deref().unwrap_or_default());
    (letter.place.partition, hash(&bytes))
}

fn progress(letters: i64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{wide_bar} {human_pos} of {human_len} dead letters, {per_sec}, {eta_precise} left",
    );
    // The template is a constant; a wrong one falls back to the plain bar.
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(letters.unsigned_abs()).with_style(style)
}
