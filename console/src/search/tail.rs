//! Follows a topic as it grows. What the page cannot take in time is dropped and counted: neither the page nor the console ever falls behind for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kafka_client::{ClientSettings, Next, TopicReader};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};

use super::filter::Filter;
use super::reader::{AtEnd, Reader};
use super::record::{Record, Seen};

/// So many pages may follow at the same time. Each has a thread and a Kafka client.
const TAILS_MAX: usize = 8;
/// So many records wait for the page at most.
const WAITING_MAX: usize = 200;
/// The records that wait for the page have so many bytes together, or there is only one of them.
const WAITING_BYTES_MAX: usize = 2 * 1_048_576;
/// A tail ends after so long, also where nobody takes its records. The browser begins a new one by itself while somebody looks.
const LIFE: Duration = Duration::from_mins(10);
/// How often a tail without records looks whether its page is still there.
const WAIT: Duration = Duration::from_millis(250);
/// How long a tail waits before it asks a Kafka that was away again.
const RETRY: Duration = Duration::from_secs(1);

/// The right to follow topics, of which only so many may be used at once.
#[derive(Clone, Debug)]
pub struct Tails {
    settings: ClientSettings,
    turns: Arc<Semaphore>,
}

/// What is followed.
#[derive(Clone, Debug)]
pub struct Followed {
    pub topic: String,
    pub filter: Filter,
}

/// The records that come. Dropping it ends the tail.
#[derive(Debug)]
pub struct Tail {
    records: mpsc::Receiver<Result<Record, String>>,
    counts: Arc<Counts>,
}

/// What the page and the tail's thread count together.
#[derive(Debug, Default)]
struct Counts {
    /// Records that were dropped.
    dropped: AtomicU64,
    /// Bytes of the records that wait for the page.
    waiting_bytes: AtomicUsize,
}

impl Tails {
    #[must_use]
    pub fn new(settings: ClientSettings) -> Self {
        Self {
            settings,
            turns: Arc::new(Semaphore::new(TAILS_MAX)),
        }
    }

    /// Begins at the topic's present end. `None`: as many pages as may be follow already.
    #[must_use]
    pub fn follow(&self, followed: Followed) -> Option<Tail> {
        let turn = Arc::clone(&self.turns).try_acquire_owned().ok()?;
        let (sender, records) = mpsc::channel(WAITING_MAX);
        let counts = Arc::new(Counts::default());
        let worker = Worker {
            settings: self.settings.clone(),
            followed,
            sender,
            counts: Arc::clone(&counts),
            ends_at: Instant::now() + LIFE,
        };
        std::thread::spawn(move || {
            let _turn = turn;
            worker.run();
        });
        Some(Tail { records, counts })
    }
}

impl Tail {
    /// The next record, or what keeps records from coming. `None`: the tail has ended.
    pub async fn next(&mut self) -> Option<Result<Record, String>> {
        let next = self.records.recv().await?;
        self.counts.take(&next);
        Some(next)
    }

    /// The next record, if one is there already.
    pub fn next_now(&mut self) -> Option<Result<Record, String>> {
        let next = self.records.try_recv().ok()?;
        self.counts.take(&next);
        Some(next)
    }

    /// How many records were dropped since this was last asked.
    #[must_use]
    pub fn take_dropped(&self) -> u64 {
        self.counts.dropped.swap(0, Ordering::Relaxed)
    }
}

impl Counts {
    /// Whether a record of so many bytes may wait too; then it is counted.
    fn has_room_for(&self, bytes: usize) -> bool {
        let waiting = self.waiting_bytes.load(Ordering::Relaxed);
        let has_room = waiting == 0 || waiting + bytes <= WAITING_BYTES_MAX;
        if has_room {
            self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        has_room
    }

    /// The page has this, so it waits no more.
    fn take(&self, next: &Result<Record, String>) {
        if let Ok(record) = next {
            self.waiting_bytes.fetch_sub(record.size(), Ordering::Relaxed);
        }
    }
}

/// Reads in a thread of its own, since it blocks.
struct Worker {
    settings: ClientSettings,
    followed: Followed,
    sender: mpsc::Sender<Result<Record, String>>,
    counts: Arc<Counts>,
    ends_at: Instant,
}

impl Worker {
    fn run(&self) {
        while self.goes_on() {
            if let Err(err) = self.follow() {
                // The page says so. If it has not taken the last such line yet, that one says it.
                let _ = self.sender.try_send(Err(format!("{err:#}")));
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Whether the page is still there, and the tail's time is not over.
    fn goes_on(&self) -> bool {
        !self.sender.is_closed() && Instant::now() < self.ends_at
    }

    /// Follows from the present end on, as long as it goes on.
    fn follow(&self) -> anyhow::Result<()> {
        let reader = Reader::open(&self.settings, AtEnd::Wait)?;
        let bounds = reader.all_bounds(&self.followed.topic)?;
        let bounds = bounds.ok_or_else(|| anyhow::anyhow!("there is no topic {}", self.followed.topic))?;
        let ends: Vec<(i32, i64)> = bounds.iter().map(|window| (window.partition, window.to)).collect();
        let reading = TopicReader::start(reader.consumer(), &self.followed.topic, &ends)?;
        while self.goes_on() {
            let Next::Record(record) = reading.next(WAIT)? else {
                continue;
            };
            let seen = Seen::of(&record);
            if self.followed.filter.wants(&seen) {
                self.send(&seen);
            }
        }
        Ok(())
    }

    /// Gives the record to the page, or drops it where too much waits already.
    fn send(&self, seen: &Seen<'_>) {
        if !self.counts.has_room_for(seen.size()) {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let sent = self.sender.try_send(Ok(seen.to_record(&self.followed.topic)));
        if let Err(TrySendError::Full(unsent)) = sent {
            self.counts.take(&unsent);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use tokio::sync::mpsc;

    use kafka_client::ClientSettings;

    use super::{Counts, Followed, Seen, Tail, WAITING_BYTES_MAX, WAITING_MAX, Worker};
    use crate::search::filter::Filter;

    fn worker(ends_at: Instant) -> (Worker, Tail) {
        let (sender, records) = mpsc::channel(WAITING_MAX);
        let counts = Arc::new(Counts::default());
        let worker = Worker {
            settings: ClientSettings::new("127.0.0.1:1"),
            followed: Followed {
                topic: "t".to_owned(),
                filter: Filter::default(),
            },
            sender,
            counts: Arc::clone(&counts),
            ends_at,
        };
        (worker, Tail { records, counts })
    }

    fn seen(value: &[u8]) -> Seen<'_> {
        Seen {
            partition: 0,
            offset: 0,
            timestamp_ms: None,
            key: None,
            value: Some(value),
            headers: Vec::new(),
        }
    }

    #[test]
    fn a_tail_ends_by_itself_also_where_nobody_takes_its_records() {
        let (worker, mut tail) = worker(Instant::now());
        worker.run();
        drop(worker);
        assert!(tail.next_now().is_none());
    }

    #[test]
    fn large_records_wait_up_to_a_number_of_bytes() {
        let (worker, mut tail) = worker(Instant::now() + Duration::from_secs(60));
        let large = vec![b'x'; WAITING_BYTES_MAX / 2 + 1];
        worker.send(&seen(&large));
        worker.send(&seen(&large));
        worker.send(&seen(b"small"));
        assert_eq!(tail.take_dropped(), 1);
        assert!(tail.next_now().is_some() && tail.next_now().is_some());
        assert!(tail.next_now().is_none());
        let larger_than_all = vec![b'x'; WAITING_BYTES_MAX + 1];
        worker.send(&seen(&larger_than_all));
        assert!(tail.next_now().is_some(), "nothing else waits");
    }

    #[test]
    fn what_had_no_place_takes_no_bytes() {
        let (worker, mut tail) = worker(Instant::now() + Duration::from_secs(60));
        for _ in 0..=WAITING_MAX {
            worker.send(&seen(b"1234"));
        }
        assert_eq!(tail.take_dropped(), 1);
        while tail.next_now().is_some() {}
        assert_eq!(tail.counts.waiting_bytes.load(Ordering::Relaxed), 0);
    }
}
