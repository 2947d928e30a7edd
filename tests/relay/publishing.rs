//! Publishing without any fault.

use rig::Rig;

#[tokio::test]
async fn rows_that_were_there_and_rows_that_come_are_published_once_and_in_order() {
    let rig = Rig::new("publishing").await;
    rig.insert_each(50).await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(200).await;
    rig.insert_together(12_000).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}
