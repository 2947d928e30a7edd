//! Containers are killed, scaled, taken down and brought back while clients change users. Nothing is lost, doubled or out of order, and no container
//! needs more memory than it has.

use std::time::{Duration, Instant};

use rig::Workload;
use rig::rest::{id, user};
use stack::{eventually, eventually_ok};

use super::project::{PROGRAMS, RECOVERY, Stack, assert_answered_changes_are_in_outbox};

const CHANGES_PER_SECOND: u32 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_scaled_or_taken_down_loses_and_doubles_nothing() {
    let stack = Stack::up();
    let workload = Workload::start(&Stack::rest(), CHANGES_PER_SECOND);
    for (service, up_arguments) in PROGRAMS
        .map(|program| (program, format!("--no-deps {program}")))
        .into_iter()
        // `up` runs all jobs again, beside relays that go on running.
        .chain(["kafka", "postgres"].map(|server| (server, String::new())))
    {
        let begin = Instant::now();
        wait_for_answers(&workload, 200).await;
        stack.run(&format!("docker compose kill {service}"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Running containers stay. `--wait` would give up at once if a container is still unhealthy.
        stack.run(&format!("docker compose up --detach --no-recreate {up_arguments}"));
        stack.wait_until_healthy().await;
        assert_new_user_reaches_view(&format!("{service} was killed")).await;
        println!(
            "{service} was killed and is back: {:.1} s",
            begin.elapsed().as_secs_f64()
        );
    }

    stack.run("docker compose up --detach --wait --no-recreate --scale view-builder=3");
    assert_eq!(stack.containers("view-builder").len(), 3);
    wait_for_answers(&workload, 300).await;
    wait_until_shared_by(&stack, 3).await;
    assert_new_user_reaches_view("there are three builders").await;
    stack.run("docker compose kill --signal SIGKILL view-builder");
    stack.run("docker compose up --detach --no-recreate --scale view-builder=3");
    stack.wait_until_healthy().await;
    assert_new_user_reaches_view("three builders were killed").await;
    stack.run("docker compose up --detach --wait --no-recreate --scale view-builder=1");

    let peaks = stack.run(&format!(
        "docker stats --no-stream --format '{{{{.Name}}}} {{{{.MemUsage}}}}' {}",
        ids(&stack)
    ));
    println!("memory under load:\n{peaks}");
    for service in PROGRAMS {
        assert_eq!(
            stack.inspect(service, "{{.State.OOMKilled}}"),
            "false",
            "{service} was out of memory"
        );
    }

    stack.run("docker compose down");
    let attempts_while_down = workload.attempts();
    stack.run("docker compose up --detach --wait");
    assert_new_user_reaches_view("everything was down").await;
    assert!(workload.attempts() > attempts_while_down, "the clients have gone on");

    let answers = workload.stop().await;
    let rows = stack.assert_published_exactly_once("users_db", "user-events").await;
    assert_answered_changes_are_in_outbox(&rows, &answers);
    stack
        .assert_published_exactly_once("materialized_view_db", "post-events")
        .await;
    println!("{}", stack.run("docker compose run --rm verify"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_confined_started_again_when_they_die_and_end_well_when_told() {
    let stack = Stack::up();
    super::images::assert_confined(&stack);
    for service in PROGRAMS {
        let pid = stack.inspect(service, "{{.State.Pid}}");
        // The kill comes from outside the engine, so that the engine takes it for a crash and not for an order.
        stack.run(&format!("kill -KILL {pid}"));
        eventually(
            RECOVERY,
            "the engine has started it again, and it is healthy",
            async || {
                let state = stack.inspect(service, "{{.RestartCount}} {{.State.Health.Status}}");
                (state == "1 healthy").then_some(())
            },
        )
        .await;
    }
    assert_new_user_reaches_view("each has crashed").await;
    stack.run("docker compose stop");
    for service in PROGRAMS {
        assert_eq!(
            stack.inspect(service, "{{.State.ExitCode}}"),
            "0",
            "{service} after SIGTERM"
        );
    }
}

fn ids(stack: &Stack) -> String {
    PROGRAMS.map(|service| stack.containers(service).join(" ")).join(" ")
}

/// Waits until the clients have got so many more answers.
async fn wait_for_answers(workload: &Workload, count: usize) {
    let before = workload.answered();
    eventually(RECOVERY, "the clients are answered", || {
        std::future::ready((workload.answered() >= before + count).then_some(()))
    })
    .await;
}

/// Creates a user, and waits until the user is in the view.
pub(crate) async fn assert_new_user_reaches_view(when: &str) {
    let rest = Stack::rest();
    let created = eventually_ok(RECOVERY, "user-api takes a user", async || {
        rest.create_user(&user("유관순", "확인", "ACTIVE")).await
    });
    let created = created.await.unwrap_or_else(|err| panic!("{when}: {err:#}"));
    let path = format!("/users/{}", id(&created));
    let seen = eventually_ok(RECOVERY, "the view has the user", async || rest.get_posts(&path).await);
    seen.await.unwrap_or_else(|err| panic!("{when}: {err:#}"));
}

/// Asks Kafka's own tool until so many members of the group have partitions.
async fn wait_until_shared_by(stack: &Stack, members: usize) {
    let line = "docker exec kafka kafka-consumer-groups --bootstrap-server localhost:9092 --group view-builder --describe --members";
    eventually(RECOVERY, "the builders share the partitions", async || {
        let table = stack.run(line);
        let sharing = table.lines().filter(|line| {
            let partitions = line.split_whitespace().nth(4).and_then(|text| text.parse::<u32>().ok());
            line.starts_with("view-builder") && partitions.is_some_and(|partitions| partitions > 0)
        });
        (sharing.count() == members).then_some(())
    })
    .await;
}
