//! One pipeline for all tests that kill nothing.

use stack::{Pipeline, PipelineBuilder, PostgresOptions};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

static SHARED: OnceCell<RwLock<Pipeline>> = OnceCell::const_new();

/// The shared pipeline. It ends with the test process: see `stack::warden`.
pub(crate) async fn pipeline() -> RwLockReadGuard<'static, Pipeline> {
    lock().await.read().await
}

/// The shared pipeline for a test that stops a part of it for a while. No other test uses the pipeline meanwhile.
pub(crate) async fn pipeline_alone() -> RwLockWriteGuard<'static, Pipeline> {
    lock().await.write().await
}

async fn lock() -> &'static RwLock<Pipeline> {
    SHARED
        .get_or_init(|| async {
            let pipeline = builder().start().await;
            RwLock::new(pipeline.unwrap_or_else(|err| panic!("the pipeline does not start: {err:#}")))
        })
        .await
}

/// A pipeline with PostgreSQL of the version in `E2E_POSTGRES` (18 by default).
pub(crate) fn builder() -> PipelineBuilder {
    let version =
        std::env::var("E2E_POSTGRES").map_or(18, |text| text.parse().expect("E2E_POSTGRES is a number from 15 to 18"));
    let options = PostgresOptions {
        version: Some(version),
        ..PostgresOptions::default()
    };
    // The tests kill processes, never the machine. So what the kernel has got is safe without fsync.
    Pipeline::builder().postgres(options.setting("fsync", "off"))
}
