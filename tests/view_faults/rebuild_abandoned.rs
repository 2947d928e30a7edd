//! A rebuild is abandoned while the command that makes it has no connection.

use rig::view_builder_exit;
use rig::view_rig::DEADLINE;
use stack::eventually;

use super::rebuild_positions::{CONTENT, rebuild, rig_with_applied_versions};
use super::trouble::hits_in;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_was_abandoned_while_its_connection_was_lost_does_not_say_that_the_view_is_rebuilt() {
    let (rig, _) = rig_with_applied_versions("rebuild_abandoned").await;
    let before = rig.value(CONTENT).await.expect("a view");
    let (hits, go_on) = (rig.logs().join("hits"), rig.logs().join("go_on"));
    let command = rig
        .faulty_builder("rebuild")
        .env(
            "VIEW_BUILDER_FAILPOINT",
            &format!("rebuild.filled=until:{}@1", go_on.display()),
        )
        .env("VIEW_BUILDER_FAILPOINT_HITS", &hits.to_string_lossy())
        .command_of("rebuild-abandoned", &["rebuild", "item"]);
    command.start().expect("a start");
    eventually(DEADLINE, "the generation is filled", || {
        std::future::ready((hits_in(&hits) >= 1).then_some(()))
    })
    .await;
    let end_sessions = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = 'view_builder' and datname = current_database()";
    rig.query(end_sessions).await.expect("its sessions end");
    let said = rig
        .assert_command(&["rebuild", "item", "--abandon"], view_builder_exit::SUCCESS)
        .await;
    assert!(said.contains("is dropped"), "{said}");
    std::fs::write(&go_on, "").expect("a file");
    let status = command.exited(DEADLINE).await.expect("an end");
    let said = command.log_text();
    assert_eq!(status.code(), Some(view_builder_exit::REFUSED), "{said}");
    assert!(
        said.contains("was dropped meanwhile") && !said.contains("is rebuilt"),
        "{said}"
    );
    assert_eq!(rig.value(CONTENT).await.expect("a view"), before);
    let (code, said) = rebuild(&rig, "item", "", &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(rig.value(CONTENT).await.expect("a view"), before);
}
