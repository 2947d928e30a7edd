//! `dead-letters retry --all`: tries every letter that waits again, in the order of the topics.
//!
//! The letters are tried in pieces, so that a million letters neither fill the memory nor hold up the views. A piece has a bounded number of
//! letters and bytes. After a piece, the command sleeps as long as the piece took, and meanwhile the builder can lock the position. The letters of
//! a piece that can go together are first tried in one transaction, as a builder applies a batch. If Postgres refuses that, they are tried one by
//! one. If a letter is still dead, the later letters of its key are not tried.

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::desk::Desk;
use super::report::{Report, stopped};
use super::waiting::{self, Waiting};
use crate::letters::known::hash;
use crate::process::failure::Failure;

/// A piece has so many letters, at most.
const PIECE_LETTERS: i64 = 500;
/// A piece ends with the letter that brings its records to so many bytes.
const PIECE_BYTES: i64 = 4_194_304;
/// So many letters with the reason that is asked for are loaded together, at most.
const FIRST_LETTERS: i64 = 100;
/// Shortest time that the builder gets between two pieces.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// The keys that have a letter that is still dead, as partition and a hash of topic and key. Later letters of these keys wait.
type StillDead = HashSet<(i32, u64)>;

/// Tries all letters again. Returns what to print, and whether some still wait.
///
/// # Errors
/// Postgres does not answer, or a view that reads a letter's topic is paused; says what was applied before.
pub(super) async fn retry_all(desk: &mut Desk) -> Result<(String, bool), Failure> {
    let mut report = Report::default();
    let ended = retry_pieces(desk, &mut report).await;
    report.finish_with_numbers(ended)
}

/// Tries the letters again that are the first of their keys and have this reason, and all behind them. Returns what to print, and whether some of these still
/// wait.
///
/// # Errors
/// As [`retry_all`].
pub(super) async fn retry_all_with_reason(desk: &Desk, reason: &str) -> Result<(String, bool), Failure> {
    let mut report = Report::default();
    let ended = retry_pieces_with_reason(desk, reason, &mut report).await;
    report.finish_with_numbers(ended)
}

async fn retry_pieces_with_reason(desk: &Desk, reason: &str, report: &mut Report) -> Result<(), Failure> {
    let client = &desk.session.client;
    let mut after = None;
    loop {
        let began = Instant::now();
        let piece = waiting::load_first_with_reason(client, reason, after.as_ref(), FIRST_LETTERS, PIECE_BYTES).await;
        let Some(piece) = piece.map_err(stopped)? else {
            return Ok(());
        };
        after = Some(piece.last);
        desk.retry_in_layers(piece.letters, report).await?;
        tokio::time::sleep(began.elapsed().max(PAUSE_MIN)).await;
    }
}

async fn retry_pieces(desk: &Desk, report: &mut Report) -> Result<(), Failure> {
    let client = &desk.session.client;
    let progress = progress(waiting::count(client).await.map_err(stopped)?);
    let (mut still_dead, mut after) = (StillDead::new(), None);
    loop {
        let began = Instant::now();
        let piece = waiting::load_piece(client, after.as_ref(), PIECE_LETTERS, PIECE_BYTES).await;
        let Some(piece) = piece.map_err(stopped)? else {
            break;
        };
        for layer in divide_into_layers(&piece.letters) {
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

/// Tries these letters again, of which no two are of one key. Leaves out those that wait behind a letter that is still dead.
async fn retry_layer(
    desk: &Desk,
    layer: Vec<&Waiting>,
    still_dead: &mut StillDead,
    report: &mut Report,
) -> Result<(), Failure> {
    let free = layer
        .into_iter()
        .filter(|letter| !still_dead.contains(&partition_and_key(letter)));
    let free: Vec<Waiting> = free.cloned().collect();
    let dead = desk.retry_layer(&free, report).await?;
    let dead = free.iter().filter(|letter| dead.contains(&letter.id));
    // Nothing waits behind a letter without a key.
    still_dead.extend(dead.filter(|letter| letter.key.is_some()).map(partition_and_key));
    Ok(())
}

/// Divides letters into layers: the first letters of all keys, then the second ones, and so on. If a batch had two letters of one key, the view
/// would get only the later one.
fn divide_into_layers(letters: &[Waiting]) -> Vec<Vec<&Waiting>> {
    let mut layers: Vec<Vec<&Waiting>> = Vec::new();
    let mut depths: HashMap<(i32, u64), usize> = HashMap::new();
    for letter in letters {
        let depth = match letter.key {
            Some(_) => depths.entry(partition_and_key(letter)).or_default(),
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

/// The letter's partition, and a hash of its topic and key.
fn partition_and_key(letter: &Waiting) -> (i32, u64) {
    let mut bytes = letter.place.topic.as_bytes().to_vec();
    bytes.push(0);
    // No caller asks this of a letter without a key, since nothing waits behind such a letter.
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
