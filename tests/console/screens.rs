//! Each screen in the browser, while every part of the pipeline is up.

use super::{browser, running};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_screen_does_its_task_and_is_for_everybody() {
    let pipeline = running::pipeline().await;
    let report = browser::run(&pipeline, "screens", &[]).await;
    report.unwrap_or_else(|report| panic!("{report}"));
    // The pictures in README and docs/console.md. Each run makes other bytes, so they are made only where somebody asks for them.
    if std::env::var_os("DOCUMENT_PICTURES").is_some() {
        let report = browser::run(&pipeline, "pictures", &[]).await;
        report.unwrap_or_else(|report| panic!("{report}"));
    }
}
