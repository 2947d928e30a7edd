//! What a program has written to its outbox.

use serde::de::DeserializeOwned;
use sqlx::Row;

use crate::database::Database;

/// A row of the outbox whose payload is an event `E` of the contract.
#[derive(Debug)]
pub struct OutboxRow<E> {
    pub aggregate_type: String,
    pub aggregate_id: String,
    pub event_type: String,
    pub event: E,
}

impl Database {
    /// All rows of the outbox, oldest first.
    pub async fn outbox<E: DeserializeOwned>(&self) -> Vec<OutboxRow<E>> {
        sqlx::query("select aggregatetype, aggregateid, type, payload::text as payload from outbox order by created_at")
            .fetch_all(&mut self.sql().await)
            .await
            .unwrap()
            .into_iter()
            .map(|row| {
                let payload: String = row.get("payload");
                OutboxRow {
                    aggregate_type: row.get("aggregatetype"),
                    aggregate_id: row.get("aggregateid"),
                    event_type: row.get("type"),
                    event: serde_json::from_str(&payload).expect("an event of the contract"),
                }
            })
            .collect()
    }
}
