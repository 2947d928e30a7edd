//! What the tests share: servers, relays, APIs and a load. Each test has its own builders, its own group, and its own database for the views.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use stack::pipeline::USERS_DATABASE;
use stack::{Pipeline, PostgresOptions};
use tokio::sync::OnceCell;

use super::load::Load;

/// The next id of a user that no table has. Events of such users cannot be applied.
static NEXT_BAD_KEY: AtomicI64 = AtomicI64::new(1_000_000_000_001);

/// A running pipeline. Its own view-builder is stopped.
pub(crate) struct Site {
    // This field is dropped first, because the load needs the pipeline.
    pub load: Load,
    pub pipeline: Pipeline,
}

impl Site {
    /// The site whose servers no test stops. It ends with the process, see `stack::warden`.
    pub(crate) async fn shared() -> Arc<Self> {
        static SHARED: OnceCell<Arc<Site>> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async { Arc::new(Self::start().await) })
            .await
            .clone()
    }

    pub(crate) async fn start() -> Self {
        let options = PostgresOptions {
            version: Some(rig::servers::postgres_version()),
            ..PostgresOptions::default()
        };
        // The tests kill processes, never the machine. So what the kernel has got is safe without fsync.
        let options = options.setting("fsync", "off").setting("max_connections", "300");
        let pipeline = Pipeline::builder().postgres(options).start().await;
        let pipeline = pipeline.unwrap_or_else(|err| panic!("the pipeline does not start: {err:#}"));
        pipeline.view_builder.stop().await.expect("a clean end");
        Self {
            load: Load::start(&pipeline),
            pipeline,
        }
    }

    /// The rows that `sql` gives in `database`.
    pub(crate) async fn query(&self, database: &str, sql: &str) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        self.pipeline.postgres()?.query(database, sql).await
    }

    /// Publishes an event that no view can apply. Returns its key.
    pub(crate) async fn write_bad_event(&self) -> i64 {
        let key = NEXT_BAD_KEY.fetch_add(1, Ordering::Relaxed);
        self.write_bad_event_of(key).await;
        key
    }

    /// As [`Site::write_bad_event`], for this key.
    pub(crate) async fn write_bad_event_of(&self, key: i64) {
        let sql = format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             values ('user', '{key}', 'USER_CREATED', '{{\"userId\": {key}}}')"
        );
        self.query(USERS_DATABASE, &sql)
            .await
            .expect("an outbox that takes a row");
    }

    /// All rows of `relation` as JSON.
    pub(crate) async fn rows_as_json(&self, database: &str, relation: &str) -> anyhow::Result<String> {
        let sql = format!("select coalesce(json_agg(row_to_json(r)), '[]')::text from ({relation}) as r");
        let rows = self.query(database, &sql).await?;
        Ok(rows.into_iter().flatten().flatten().next().unwrap_or_default())
    }
}
