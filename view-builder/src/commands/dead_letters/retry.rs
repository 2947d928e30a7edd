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

use super::desk::Desk;
use super::report::{Report, stopped};
use super::waiting::{self, Waiting};
use crate::letters::known::hash;
use crate::process::failure::Failure;

/// Most letters of a piece.
const PIECE_LETTERS: i64 = 500;
/// Most bytes of a piece's records, but for one that is larger by itself.
const PIECE_BYTES: i64 = 4_194_304;
/// Shortest time that the builder gets between two pieces.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Keys of which a letter is still dead, by the hash of partition and key: later ones of them wait.
type StillDead = HashSet<(i32, u64)>;

/// Tries all letters again. Returns what to print, and whether some still wait.
///
/// # Errors
/// Postgres does not answer, or a view that reads a letter's topic is paused; says what was applied before.
pub(super) async fn all(desk: &mut Desk) -> Result<(String, bool), Failure> {
    let mut report = Report::default();
    let ended = all_pieces(desk, &mut report).await;
    report.finish_with_numbers(ended)
}

async fn all_pieces(desk: &Desk, report: &mut Report) -> Result<(), Failure> {
    let client = &desk.session.client;
    let progress = progress(waiting::count(client).await.map_err(stopped)?);
    let (mut still_dead, mut after) = (StillDead::new(), None);
    loop {
        let began = Instant::now();
        let piece = waiting::load_piece(client, after.as_ref(), PIECE_LETTERS, PIECE_BYTES).await;
        let Some(piece) = piece.map_err(stopped)? else {
            break;
        };
        for layer in layers(&piece.letters) {
            retry_layer(desk, layer, &mut still_dead, report).await?;
        }
        after = Some(piece.last);
        progress.inc(piece.letters.len() as u64);
        tokio::time::sleep(began.elapsed().max(PAUSE_MIN)).await;
    }
    progress.finish_and_clear();
    report.former(waiting::count_former(client).await.map_err(stopped)?);
    Ok(())
}

/// Tries these letters again, of which no two are of one key, all but those of keys that are still dead.
async fn retry_layer(
    desk: &Desk,
    layer: Vec<&Waiting>,
    still_dead: &mut StillDead,
    report: &mut Report,
) -> Result<(), Failure> {
    let free = layer.into_iter().filter(|letter| !still_dead.contains(&line(letter)));
    let free: Vec<Waiting> = free.cloned().collect();
    let dead = desk.retry_layer(&free, report).await?;
    let dead = free.iter().filter(|letter| dead.contains(&letter.id));
    // Nothing waits behind a letter without a key.
    still_dead.extend(dead.filter(|letter| letter.key.is_some()).map(line));
    Ok(())
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
    // Nothing waits behind a letter without a key, so nobody asks for its line.
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
