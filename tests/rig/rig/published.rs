//! Compares what a rig's relay has published with the rows of the outbox.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::bail;
use stack::Postgres;

use super::{ARRIVAL_DEADLINE, Rig};
use crate::ledger::{Ledger, Row};
use crate::topic::{self, Ends, Follower, Isolation, Record};

/// While there is nothing new, the broker answers a waiting test so often.
const FOLLOWER_WAIT: Duration = Duration::from_millis(250);

impl Rig {
    /// The rows of the outbox.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn rows(&self) -> Vec<Row> {
        self.rows_on(&self.servers.postgres).await
    }

    /// The rows of the outbox on another server, such as a promoted standby.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn rows_on(&self, postgres: &Postgres) -> Vec<Row> {
        let sql = "select id, aggregateid, payload ->> 'n', payload from outbox";
        let rows = postgres.query(&self.name, sql).await;
        let rows = rows.unwrap_or_else(|err| panic!("{sql}: {err:#}"));
        let row = |row: Vec<Option<String>>| {
            let [Some(id), Some(key), Some(n), Some(payload)] = <[_; 4]>::try_from(row).expect("four columns") else {
                panic!("an outbox row with a null");
            };
            let n = n.parse().expect("a number");
            Row { id, key, n, payload }
        };
        rows.into_iter().map(row).collect()
    }

    /// The records of the topic.
    ///
    /// # Errors
    /// It does not exist or Kafka does not answer.
    pub async fn records(&self, isolation: Isolation) -> anyhow::Result<Vec<Record>> {
        let (servers, topic) = (self.servers.kafka.bootstrap_servers(), self.topic());
        tokio::task::spawn_blocking(move || topic::read(&servers, &topic, isolation)).await?
    }

    /// The rows that are committed, compared with the records that are in the topic now.
    ///
    /// # Errors
    /// As [`records`](Self::records).
    pub async fn ledger(&self, isolation: Isolation) -> anyhow::Result<Ledger> {
        Ok(Ledger::compare(&self.rows().await, &self.records(isolation).await?))
    }

    /// Waits until there is a committed record for each row that is there now. Then it reads the whole topic, and compares.
    ///
    /// # Errors
    /// Records are still missing after `deadline`: the comparison is in the message.
    pub async fn wait_until_published(&self, deadline: Duration) -> anyhow::Result<Ledger> {
        self.wait_until_published_meanwhile(deadline, || Ok(())).await
    }

    /// As [`wait_until_published`](Self::wait_until_published). Some ten times a second it calls `meanwhile`, for example to start a relay again that has ended.
    ///
    /// # Errors
    /// As [`wait_until_published`](Self::wait_until_published), and the first error of `meanwhile`.
    pub async fn wait_until_published_meanwhile(
        &self,
        deadline: Duration,
        mut meanwhile: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Ledger> {
        let started = Instant::now();
        let rows = self.rows().await;
        let mut missing: HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        let mut follower = None;
        while !missing.is_empty() && started.elapsed() < deadline {
            meanwhile()?;
            let (kept, ids) = match self.read_on(follower.take()).await {
                Ok(read) => read,
                // The broker may be busy, or be started again. Within the deadline the next reader begins anew.
                Err(err) if started.elapsed() >= deadline => return Err(err),
                Err(_) => continue,
            };
            follower = Some(kept);
            for id in ids {
                missing.remove(id.as_str());
            }
        }
        let ledger = Ledger::compare(&rows, &self.records(Isolation::Committed).await?);
        if ledger.lost.is_empty() {
            return Ok(ledger);
        }
        bail!(
            "still missing after {} s: {ledger}; {}\n{}",
            deadline.as_secs(),
            self.describe_hidden_records().await,
            self.relay.log_tail(20)
        )
    }

    /// The event ids of the committed records that `follower` has not read yet. Without a follower it begins with the first record.
    async fn read_on(&self, follower: Option<Follower>) -> anyhow::Result<(Follower, Vec<String>)> {
        let (servers, topic) = (self.servers.kafka.bootstrap_servers(), self.topic());
        let read = move || {
            let mut follower = match follower {
                Some(follower) => follower,
                None => Follower::new(&servers, &topic, Isolation::Committed, FOLLOWER_WAIT)?,
            };
            let mut ids = Vec::new();
            follower.read_to_end(|record| ids.extend(record.header("id").map(str::to_owned)))?;
            Ok((follower, ids))
        };
        tokio::task::spawn_blocking(read).await?
    }

    /// Asserts that every row is in the topic exactly once, in order, and nothing else.
    ///
    /// # Panics
    /// It is not so.
    pub async fn assert_exactly_once(&self) -> Ledger {
        let ledger = self.wait_until_published(ARRIVAL_DEADLINE).await;
        let ledger = ledger.unwrap_or_else(|err| panic!("{}: {err:#}", self.name));
        assert!(
            ledger.is_exact(),
            "{}: {ledger}\n{}",
            self.name,
            self.relay.log_tail(20)
        );
        ledger
    }

    /// Says which records open transactions hide in the topics of the rows and of the checkpoints. The text is for people.
    pub async fn describe_hidden_records(&self) -> String {
        let servers = self.servers.kafka.bootstrap_servers();
        let topics = [self.topic(), self.checkpoint_topic()];
        let asked = tokio::task::spawn_blocking(move || {
            let mut hidden = String::new();
            for topic in &topics {
                for Ends { partition, stable, all } in topic::ends(&servers, topic)? {
                    if stable < all {
                        hidden.push_str(&format!(
                            "{topic}/{partition} ends at {all}, and is stable up to {stable}; "
                        ));
                    }
                }
            }
            anyhow::Ok(hidden)
        });
        match asked.await {
            Ok(Ok(hidden)) if hidden.is_empty() => "no open transaction hides a record".to_owned(),
            Ok(Ok(hidden)) => hidden,
            Ok(Err(err)) => format!("what is hidden is not known: {err:#}"),
            Err(err) => format!("what is hidden is not known: {err}"),
        }
    }
}
