//! Clients that change the outbox while everything is being killed, and remember what they were told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use stack::random::Random;
use tokio_postgres::Client;
use uuid::Uuid;

use super::operators::POISON_BYTES;

/// How many keys each writer has. Nobody else writes these keys, so the rows of a key are committed in the order of their `n`.
const KEYS: usize = 4;
/// After an outage a writer catches up with at most so much.
const BACKLOG_MAX: Duration = Duration::from_secs(1);
/// One row in so many is poison.
const ROWS_A_POISON: u64 = 4_000;
const RECONNECT_AFTER: Duration = Duration::from_millis(20);

/// What the client knows of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The server has answered that the row is committed.
    Committed,
    /// The row was rolled back, its COMMIT was never sent, or the server refused it.
    Failed,
    /// The connection broke during the row's COMMIT.
    Unknown,
}

/// What all writers share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) url: String,
    pub(super) topic: String,
    /// The storm's start. Each row carries the time since then.
    pub(super) start: Instant,
    pub(super) stopping: AtomicBool,
    /// How many rows were written, whether or not they were committed.
    pub(super) changes: AtomicU64,
    /// Whether some rows are larger than their topic takes.
    pub(super) with_poison: bool,
}

/// Everything that one writer did.
#[derive(Debug)]
pub(super) struct Diary {
    pub(super) answers: Vec<(Uuid, Answer)>,
    pub(super) transactions: u64,
    /// The last row of each of the writer's keys. Once these rows are published, all rows are.
    pub(super) barriers: Vec<Uuid>,
}

/// One client.
#[derive(Debug)]
pub(super) struct Writer {
    common: Arc<Common>,
    number: usize,
    next_n: [i64; KEYS],
    random: Random,
    /// The time between two rows.
    interval: Duration,
    diary: Diary,
}

#[derive(Debug)]
struct NewRow {
    id: Uuid,
    key: String,
    payload: String,
}

impl Writer {
    /// A writer that writes a row every `interval`.
    #[must_use]
    pub(super) fn new(common: Arc<Common>, number: usize, seed: u64, interval: Duration) -> Self {
        Self {
            common,
            number,
            next_n: [1; KEYS],
            // The seed is mixed once. For neighbouring seeds the generator gives the same numbers, only shifted.
            random: Random::seeded(Random::seeded(seed.wrapping_add(number as u64)).next_u64()),
            interval,
            diary: Diary {
                answers: Vec::new(),
                transactions: 0,
                barriers: Vec::new(),
            },
        }
    }

    /// Writes until it is told to stop. Then writes the barrier rows.
    pub(super) async fn run(mut self) -> Diary {
        let mut client = self.connect().await;
        let mut due = Instant::now();
        while !self.common.stopping.load(Ordering::Relaxed) {
            tokio::time::sleep_until(due.into()).await;
            due = due.max(Instant::now().checked_sub(BACKLOG_MAX).unwrap_or(due));
            let written = self.transaction(&client).await;
            due += self.interval * written;
            if client.is_closed() {
                client = self.connect().await;
            }
        }
        loop {
            let rows: Vec<NewRow> = (0..KEYS).map(|key| self.row(key, true)).collect();
            if self.committed(&client, &rows).await {
                self.diary.barriers = rows.iter().map(|row| row.id).collect();
                return self.diary;
            }
            client = self.connect().await;
        }
    }

    /// Writes one transaction of a random shape. Returns how many rows it has.
    async fn transaction(&mut self, client: &Client) -> u32 {
        let (shape, count) = (self.random.below(10), 2 + self.random.below(8));
        self.diary.transactions += 1;
        let rows = match shape {
            0..=4 => 1,
            7 => count * 5,
            _ => count,
        };
        let rows: Vec<NewRow> = (0..rows)
            .map(|_| {
                let key = usize::try_from(self.random.below(KEYS as u64)).unwrap_or(0);
                self.row(key, false)
            })
            .collect();
        match shape {
            0..=4 => self.alone(client, &rows).await,
            5 | 6 => drop(self.committed(client, &rows).await),
            7 => self.copied(client, &rows).await,
            8 => self.rolled_back(client, &rows).await,
            _ => self.with_savepoint(client, &rows).await,
        }
        self.common.changes.fetch_add(rows.len() as u64, Ordering::Relaxed);
        u32::try_from(rows.len()).unwrap_or(1)
    }

    /// Writes the rows by one statement without a transaction around it. If the connection breaks, the commit may have been under way.
    async fn alone(&mut self, client: &Client, rows: &[NewRow]) {
        let ended = client.batch_execute(&self.insert(rows)).await;
        self.answered(rows, answer(ended));
    }

    async fn committed(&mut self, client: &Client, rows: &[NewRow]) -> bool {
        let begun = client.batch_execute(&format!("begin; {}", self.insert(rows))).await;
        self.commit(client, begun.is_ok(), rows).await
    }

    /// Writes the rows by COPY. They share one WAL record, and so one LSN.
    async fn copied(&mut self, client: &Client, rows: &[NewRow]) {
        let begun = self.copy(client, rows).await;
        self.commit(client, begun.is_ok(), rows).await;
    }

    async fn copy(&self, client: &Client, rows: &[NewRow]) -> Result<(), tokio_postgres::Error> {
        client.batch_execute("begin").await?;
        let copy = "copy outbox (id, aggregatetype, aggregateid, type, payload) from stdin";
        let mut sink = std::pin::pin!(client.copy_in::<_, Bytes>(copy).await?);
        for row in rows {
            let topic = &self.common.topic;
            let line = format!("{}\t{topic}\t{}\tCopied\t{}\n", row.id, row.key, row.payload);
            sink.send(Bytes::from(line)).await?;
        }
        sink.close().await
    }

    async fn rolled_back(&mut self, client: &Client, rows: &[NewRow]) {
        // It does not matter whether the server got the ROLLBACK, because it never got a COMMIT.
        drop(
            client
                .batch_execute(&format!("begin; {}; rollback", self.insert(rows)))
                .await,
        );
        self.answered(rows, Answer::Failed);
    }

    /// Writes three rows. The first one stays, the second one is rolled back to a savepoint, and the third one stays.
    async fn with_savepoint(&mut self, client: &Client, rows: &[NewRow]) {
        let third = rows.len().div_ceil(3);
        let (first, rest) = rows.split_at(third);
        let (undone, last) = rest.split_at(third.min(rest.len()));
        let mut sql = format!("begin; {}; savepoint s", self.insert(first));
        if !undone.is_empty() {
            sql += &format!("; {}; rollback to savepoint s", self.insert(undone));
        }
        if !last.is_empty() {
            sql += &format!("; savepoint t; {}; release savepoint t", self.insert(last));
        }
        let begun = client.batch_execute(&sql).await;
        self.answered(undone, Answer::Failed);
        let kept: Vec<&NewRow> = first.iter().chain(last).collect();
        self.commit(client, begun.is_ok(), kept).await;
    }

    async fn commit<'r>(&mut self, client: &Client, begun: bool, rows: impl IntoIterator<Item = &'r NewRow>) -> bool {
        let answer = if begun {
            answer(client.batch_execute("commit").await)
        } else {
            // If the session survived the failure, it is still inside the transaction.
            drop(client.batch_execute("rollback").await);
            Answer::Failed
        };
        self.answered(rows, answer);
        answer == Answer::Committed
    }

    fn answered<'r>(&mut self, rows: impl IntoIterator<Item = &'r NewRow>, answer: Answer) {
        let answers = rows.into_iter().map(|row| (row.id, answer));
        self.diary.answers.extend(answers);
    }

    fn row(&mut self, key: usize, is_barrier: bool) -> NewRow {
        let id = (u128::from(self.random.next_u64()) << 64) | u128::from(self.random.next_u64());
        let n = self.next_n[key];
        self.next_n[key] += 1;
        let at_us = self.common.start.elapsed().as_micros();
        let rest = if is_barrier {
            ", \"barrier\": true".to_owned()
        } else if self.common.with_poison && self.random.below(ROWS_A_POISON) == 0 {
            format!(", \"pad\": \"{}\"", "x".repeat(POISON_BYTES))
        } else {
            String::new()
        };
        NewRow {
            id: Uuid::from_u128(id),
            key: format!("w{}-k{key}", self.number),
            payload: format!("{{\"n\": {n}, \"at\": {at_us}{rest}}}"),
        }
    }

    fn insert(&self, rows: &[NewRow]) -> String {
        let topic = &self.common.topic;
        let values: Vec<String> = rows
            .iter()
            .map(|row| format!("('{}', '{topic}', '{}', 'Changed', '{}')", row.id, row.key, row.payload))
            .collect();
        format!(
            "insert into outbox (id, aggregatetype, aggregateid, type, payload) values {}",
            values.join(", ")
        )
    }

    async fn connect(&self) -> Client {
        loop {
            if let Ok(client) = stack::postgres::connect(&self.common.url).await {
                return client;
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
    }
}

/// Says what the end of a COMMIT means. Only an error after which the session lives on proves that nothing is committed.
fn answer(ended: Result<(), tokio_postgres::Error>) -> Answer {
    match ended {
        Ok(()) => Answer::Committed,
        Err(err) => match err.as_db_error() {
            Some(refusal) if refusal.severity() == "ERROR" => Answer::Failed,
            _ => Answer::Unknown,
        },
    }
}
