//! The views filled by hand, as a measure for view-builder.

use std::time::{Duration, Instant};

use futures_util::future::{try_join_all, try_join3};
use stack::{Pipeline, postgres};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Statement};

use crate::view_cost::{self, BATCH_EVENTS, Changed};

/// The database in which the views are filled by hand.
const BY_HAND: &str = "by_hand";
/// The types of a batch's five arrays.
const PARAMETERS: [Type; 5] = [
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::INT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::TEXT_ARRAY,
];

/// Applies users by hand: with the views' own SQL, and with batches that are in the client's memory already. view-builder's rate is compared with it.
pub(super) struct ByHand {
    client: Client,
    views: Vec<Statement>,
}

impl ByHand {
    /// Makes the views in a database of their own, which has no positions, no dead letters and nothing else of view-builder's.
    pub(super) async fn new(pipeline: &Pipeline) -> anyhow::Result<Self> {
        let server = postgres::connect(&pipeline.database_url("postgres")?).await?;
        server.batch_execute(&format!("create database {BY_HAND}")).await?;
        let client = postgres::connect(&pipeline.database_url(BY_HAND)?).await?;
        let mut views = Vec::new();
        for view in view_cost::install(&client).await? {
            views.push(client.prepare_typed(&view.statement, &PARAMETERS).await?);
        }
        client
            .batch_execute("set synchronous_commit = on; set plan_cache_mode = force_generic_plan")
            .await?;
        Ok(Self { client, views })
    }

    /// Writes everything to disk, so that the next measurement begins with as little to write as the one before.
    pub(super) async fn checkpoint(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute("checkpoint").await?)
    }

    /// Applies so many new users in batches. Returns the rows per second of the views' transactions alone.
    pub(super) async fn add(&self, before: u64, users: u64) -> anyhow::Result<f64> {
        self.checkpoint().await?;
        let (end, mut spent) = (before + users, Duration::ZERO);
        for first in (before + 1..=end).step_by(usize::try_from(BATCH_EVENTS)?) {
            let ids = format!(
                "generate_series({first}::bigint, {})",
                end.min(first + BATCH_EVENTS - 1)
            );
            self.client
                .batch_execute(&view_cost::batch(Changed::Users, &ids, 1))
                .await?;
            spent += self.apply().await?;
        }
        Ok(users as f64 / spent.as_secs_f64())
    }

    /// Sends the table `batch` as parameters, in one round trip as view-builder does. Returns how long that took.
    async fn apply(&self) -> anyhow::Result<Duration> {
        let client = &self.client;
        let sql = "select a1, a2, a3, a4, a5::text[] from batch";
        let row = client.query_one(sql, &[]).await?;
        let [topics, types, entities] = [0, 3, 4].map(|column| row.get::<_, Vec<&str>>(column));
        let [keys, versions] = [1, 2].map(|column| row.get::<_, Vec<i64>>(column));
        let parameters: [&(dyn ToSql + Sync); 5] = [&topics, &keys, &versions, &types, &entities];
        let start = Instant::now();
        let views = self.views.iter().map(|view| client.execute(view, &parameters));
        try_join3(
            client.batch_execute("begin"),
            try_join_all(views),
            client.batch_execute("commit"),
        )
        .await?;
        Ok(start.elapsed())
    }
}
