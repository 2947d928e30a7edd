//! `resume` loses its connection while it tries the view's SQL.

use rig::view_builder_exit;
use rig::view_rig::DEADLINE;

use super::odd::{self, good, wait_until_value_is};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_that_lost_its_connection_does_not_say_that_postgres_refuses_the_view() {
    let (rig, topic) = odd::rig("resume_interrupted").await;
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    rig.produce(&topic, good(&topic, 0..10)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, "select count(*) from odd", "10").await;
    rig.assert_command(&["pause", "odd"], view_builder_exit::SUCCESS).await;
    let resume = rig
        .faulty_builder("resume")
        .env("VIEW_BUILDER_FAILPOINT", "resume.checks=error@1")
        .env(
            "VIEW_BUILDER_FAILPOINT_HITS",
            &rig.logs().join("hits").to_string_lossy(),
        )
        .command_of("resume-interrupted", &["resume", "odd"]);
    resume.start().expect("a start");
    let status = resume.exited(DEADLINE).await.expect("an end");
    let said = resume.log_text();
    assert_eq!(status.code(), Some(view_builder_exit::FAILED), "{said}");
    assert!(
        said.contains("nothing is changed") && !said.contains("still refuses"),
        "{said}"
    );
    rig.assert_command(&["resume", "odd"], view_builder_exit::SUCCESS).await;
    builder.stop().await.expect("a clean end");
}
