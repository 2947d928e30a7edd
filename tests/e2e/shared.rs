//! One pipeline for the tests that kill nothing.

use stack::{Pipeline, PipelineBuilder, PostgresOptions};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

static SHARED: OnceCell<RwLock<Pipeline>> = OnceCell::const_new();

/// The shared pipeline. Its end is the test process's end: see `stack::warden`.
pub(crate) async fn pipeline() -> RwLockReadGuard<'static, Pipeline> {
    lock().await.read().await
}

/// The shared pipeline for a test that stops a part of it for a while; no other test uses it meanwhile.
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

/// How every test's pipeline is made: PostgreSQL of the version in `E2E_POSTGRES` (18 by default).
pub(crate) fn builder() -> PipelineBuilder {
    let version =
        std::env::var("E2E_POSTGRES").map_or(18, |text| text.parse().expect("E2E_POSTGRES is a number from 15 to 18"));
    let options = PostgresOptions {
        version: Some(version),
        ..PostgresOptions::default()
    };
    // What is killed here is a process, never the machine: what the kernel has is safe.
    Pipeline::builder().postgres(options.setting("fsync", "off"))
}
