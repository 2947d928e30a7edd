//! What docs/docker.md tells an operator to do: commands in the stack's own images, and servers from elsewhere.

use rig::rest::user;

use super::project::{PROGRAMS, Stack};

/// Commands of the page, each with a text that it must print.
const COMMANDS: [(&str, &str); 7] = [
    (
        "docker compose run --rm users-relay-init check",
        "continues the checkpoint",
    ),
    ("docker compose run --rm posts-relay-init status", "not yet published"),
    ("docker compose exec -T view-builder view-builder status", "user-events"),
    ("docker compose exec -T view-builder view-builder dead-letters list", ""),
    (
        "docker compose run --rm --volume \"$PWD/sql/views:/views:ro\" --env VIEWS=/views view-builder rebuild user_view",
        "user_view",
    ),
    ("scripts/kafka-replay.sh -t user-events", "1: {"),
    (
        "scripts/kafka-replay.sh -t user-events -r view-builder -y",
        "Reset complete",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_in_the_images_and_servers_may_be_somebody_elses() {
    let stack = Stack::up();
    let rest = Stack::rest();
    rest.create_user(&user("장보고", "해운", "ACTIVE"))
        .await
        .expect("a user");
    super::faults::assert_new_user_reaches_view("everything is up").await;
    for (line, wanted) in COMMANDS {
        let answer = stack.run(line);
        println!("$ {line}\n{answer}");
        assert!(answer.contains(wanted), "{line} printed no {wanted}:\n{answer}");
    }

    // From now on the running servers belong to nobody in this project, because the compose files leave them out.
    stack.run(&format!("docker compose rm --stop --force {}", PROGRAMS.join(" ")));
    std::fs::write(stack.secret("kafka_password"), "").expect("an empty password");
    let files = "-f docker-compose.yml -f deploy/docker/own-postgres.yml -f deploy/docker/own-kafka.yml";
    let services = stack.run(&format!("docker compose {files} config --services"));
    assert!(
        !services
            .lines()
            .any(|service| service == "postgres" || service == "kafka"),
        "{services}"
    );
    stack.run(&format!("docker compose {files} up --detach --wait"));
    super::faults::assert_new_user_reaches_view("the servers are somebody else's").await;
}
