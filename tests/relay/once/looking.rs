//! Commands that only read, beside a relay that publishes. They read three places one after the other, and this must not look like a broken lineage.

use std::time::Duration;

use rig::{Rig, relay_exit};

use crate::relay::load::Load;

/// Each round reads slot, checkpoint and server in the middle of some hundred commits.
const ROUNDS: u32 = 10;

#[tokio::test]
async fn a_busy_relay_is_whole_for_whoever_looks_at_it() {
    let rig = Rig::initialised("looking").await;
    rig.start().await;
    let url = rig.servers.postgres.url("postgres", rig.name());
    let load = Load::start(&rig, &url, 4, Duration::from_millis(1));
    for _ in 0..ROUNDS {
        load.wait_for_more_rows(100).await;
        rig.init(&[]).await;
        for command in ["check", "status"] {
            rig.relay.run(&[command]).await.unwrap_or_else(|err| panic!("{err:#}"));
        }
        let recover = rig.relay.run_for_status(&["recover"]).await.expect("recover");
        assert_eq!(
            recover.code(),
            Some(relay_exit::NOTHING_TO_RECOVER),
            "{}",
            rig.relay.log_tail(5)
        );
    }
    load.stop().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("an end");
}
