//! Copies the broker's answers, and changes the ends of partitions in them.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};

/// The versions of Fetch whose answers can be read here.
const FETCH_VERSIONS: RangeInclusive<i16> = 12..=17;
/// From this version of Fetch on, topics are named by their ids.
const TOPICS_BY_ID: i16 = 13;

/// For these partitions, so many answers give ends that are lower by so many offsets.
#[derive(Clone, Debug)]
pub(super) struct LowEnds {
    pub(super) partitions: RangeInclusive<i32>,
    pub(super) offsets: i64,
    pub(super) answers_left: u64,
}

/// These partitions lack so many offsets at their end.
#[derive(Clone, Debug)]
pub(super) struct Lag {
    pub(super) partitions: RangeInclusive<i32>,
    pub(super) offsets: i64,
}

/// Copies a ListOffsets answer with lower offsets. The length stays the same.
pub(super) fn lower_ends(frame: &[u8], low: &LowEnds) -> anyhow::Result<Vec<u8>> {
    let mut answer = Answer {
        rest: &frame[4..],
        copy: frame[..4].to_vec(),
    };
    // Correlation id, tagged fields of the header, throttle time.
    answer.pass(4 + 1 + 4)?;
    for _ in 0..answer.pass_count()? {
        let length = answer.pass_count()?;
        answer.pass(length)?;
        for _ in 0..answer.pass_count()? {
            let partition = i32::from_be_bytes(answer.rest.get(..4).context("a short answer")?.try_into()?);
            // Partition, error code, time.
            answer.pass(4 + 2 + 8)?;
            let offset = answer.take_long()?;
            let is_low = low.partitions.contains(&partition) && offset > 0;
            let told = if is_low { (offset - low.offsets).max(0) } else { offset };
            answer.copy.extend_from_slice(&told.to_be_bytes());
            // The leader's epoch.
            answer.pass(4)?;
            answer.pass_tags()?;
        }
        answer.pass_tags()?;
    }
    answer.pass(answer.rest.len())?;
    Ok(answer.copy)
}

/// Copies a Fetch answer without the end of the partitions that lag behind.
pub(super) fn cut_fetch_answer(frame: &[u8], version: i16, lag: &Lag, times: &AtomicU64) -> anyhow::Result<Vec<u8>> {
    ensure!(
        FETCH_VERSIONS.contains(&version),
        "Fetch version {version} is not known here"
    );
    let mut answer = Answer {
        rest: &frame[4..],
        copy: vec![0; 4],
    };
    // Correlation id, tagged fields of the header, throttle time, error code, session id.
    answer.pass(4 + 1 + 4 + 2 + 4)?;
    for _ in 0..answer.pass_count()? {
        if version >= TOPICS_BY_ID {
            answer.pass(16)?;
        } else {
            let length = answer.pass_count()?;
            answer.pass(length)?;
        }
        for _ in 0..answer.pass_count()? {
            answer.pass_partition(lag, times)?;
        }
        answer.pass_tags()?;
    }
    answer.pass(answer.rest.len())?;
    let length = u32::try_from(answer.copy.len() - 4)?;
    answer.copy[..4].copy_from_slice(&length.to_be_bytes());
    Ok(answer.copy)
}

/// Copies an answer field by field.
struct Answer<'a> {
    rest: &'a [u8],
    copy: Vec<u8>,
}

impl<'a> Answer<'a> {
    fn take(&mut self, length: usize) -> anyhow::Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).context("a short answer")?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_long(&mut self) -> anyhow::Result<i64> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into()?))
    }

    fn take_varint(&mut self) -> anyhow::Result<usize> {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.take(1)?[0];
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return Ok(value);
            }
        }
    }

    fn put_varint(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.copy.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.copy.push(value as u8);
    }

    fn pass(&mut self, length: usize) -> anyhow::Result<()> {
        let taken = self.take(length)?;
        self.copy.extend_from_slice(taken);
        Ok(())
    }

    /// Copies the length of a compact array or string, and returns it; 0 for null.
    fn pass_count(&mut self) -> anyhow::Result<usize> {
        let count = self.take_varint()?;
        self.put_varint(count);
        Ok(count.saturating_sub(1))
    }

    fn pass_tags(&mut self) -> anyhow::Result<()> {
        let count = self.take_varint()?;
        self.put_varint(count);
        for _ in 0..count {
            let tag = self.take_varint()?;
            self.put_varint(tag);
            let length = self.take_varint()?;
            self.put_varint(length);
            self.pass(length)?;
        }
        Ok(())
    }

    fn pass_partition(&mut self, lag: &Lag, times: &AtomicU64) -> anyhow::Result<()> {
        let partition = i32::from_be_bytes(self.rest.get(..4).context("a short answer")?.try_into()?);
        // Partition, error code.
        self.pass(4 + 2)?;
        let (high, stable) = (self.take_long()?, self.take_long()?);
        let is_cut = lag.partitions.contains(&partition);
        let end = if is_cut { (high - lag.offsets).max(0) } else { high };
        let ends_at = self.copy.len();
        self.copy.extend_from_slice(&end.to_be_bytes());
        self.copy.extend_from_slice(&stable.min(end).to_be_bytes());
        // Where the log starts.
        self.pass(8)?;
        for _ in 0..self.pass_count()? {
            // An aborted transaction: producer, first offset.
            self.pass(16)?;
            self.pass_tags()?;
        }
        // The replica to prefer.
        self.pass(4)?;
        let length = self.take_varint()?;
        let records = self.take(length.saturating_sub(1))?;
        let (kept, next) = batches_below(records, end);
        if let (true, Some(next)) = (is_cut, next) {
            times.fetch_add(1, Ordering::AcqRel);
            // A log ends between two batches.
            self.copy[ends_at..ends_at + 8].copy_from_slice(&next.to_be_bytes());
            self.copy[ends_at + 8..ends_at + 16].copy_from_slice(&stable.min(next).to_be_bytes());
        }
        self.put_varint(if length == 0 { 0 } else { kept.len() + 1 });
        self.copy.extend_from_slice(kept);
        self.pass_tags()
    }
}

/// Splits record batches: returns the batches that end below `end`, and the offset of the first batch that does not. The fields of a batch are its
/// base offset, the length of the rest, and so on; byte 23 has the distance of the last record from the base offset.
fn batches_below(records: &[u8], end: i64) -> (&[u8], Option<i64>) {
    let mut kept = 0;
    while let Some(batch) = records.get(kept..).filter(|batch| batch.len() >= 27) {
        let base = i64::from_be_bytes(batch[..8].try_into().unwrap_or_default());
        let length = u32::from_be_bytes(batch[8..12].try_into().unwrap_or_default()) as usize;
        let last = i32::from_be_bytes(batch[23..27].try_into().unwrap_or_default());
        if base + i64::from(last) >= end {
            return (&records[..kept], Some(base));
        }
        if batch.len() < 12 + length {
            break;
        }
        kept += 12 + length;
    }
    (&records[..kept], None)
}
