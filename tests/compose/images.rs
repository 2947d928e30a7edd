//! What the images contain, and what the containers may do.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::project::Stack;

/// The images, each with the largest size that it may have, in MB: the base image and its programs. A debug build or a forgotten toolchain is several
/// times larger. The console's image has three programs.
const IMAGES: [(&str, f64); 5] = [
    ("user-api", 60.0),
    ("post-api", 60.0),
    ("outbox-relay", 60.0),
    ("view-builder", 60.0),
    ("console", 100.0),
];
/// The memory that a container may use, in MiB.
const LIMITS: [(&str, u64); 6] = [
    ("user-api", 64),
    ("post-api", 64),
    ("users-relay", 96),
    ("posts-relay", 96),
    ("view-builder", 128),
    ("console", 128),
];

#[test]
fn images_are_small_and_their_programs_run_as_an_ordinary_user() {
    let stack = Stack::copy();
    stack.run("docker compose build");
    for (image, megabytes_max) in IMAGES {
        let line = format!("docker image inspect --format '{{{{.Config.User}}}} {{{{.Size}}}}' outbox/{image}");
        let answer = stack.run(&line);
        let (user, bytes) = answer.trim().split_once(' ').expect("user and size");
        assert_eq!(user, "65532:65532", "{image}");
        let megabytes = bytes.parse::<f64>().expect("a size") / 1e6;
        println!("image {image}: {megabytes:.1} MB");
        assert!(megabytes < megabytes_max, "{image}: {megabytes:.1} MB");
    }
}

#[test]
fn the_engine_makes_an_image_from_the_source_and_a_change_compiles_one_program() {
    const BUILD: &str = "docker compose -f docker-compose.yml -f tests/compose/built-in-the-engine.yml --progress plain build user-api 2>&1";
    let stack = Stack::copy();
    let begin = Instant::now();
    // The stage fails unless it compiles all five programs.
    stack.run(BUILD);
    println!("built from the source in {:.1} s", begin.elapsed().as_secs_f64());
    let usage = stack.run("docker run --rm outbox-test/user-api-draft --help");
    assert!(usage.contains("Usage: user-api"), "{usage}");
    // After a change in a program, that program is compiled, and no dependency.
    let source = stack.path().join("user-api/src/main.rs");
    let text = std::fs::read_to_string(&source).expect("a source");
    // The text is new in each run. Otherwise the engine would still have the image of an earlier run.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    std::fs::write(&source, format!("{text}\n// A change, {}.\n", now.as_nanos())).expect("a change");
    let begin = Instant::now();
    let log = stack.run(BUILD);
    println!("rebuilt after a change in {:.1} s", begin.elapsed().as_secs_f64());
    let compiled: Vec<&str> = log.lines().filter(|line| line.contains(" Compiling ")).collect();
    assert!(
        compiled.iter().any(|line| line.contains("Compiling user-api ")),
        "{log}"
    );
    for line in &compiled {
        assert!(line.contains("/src/"), "a dependency was compiled again: {line}");
    }
}

/// Asserts that no container can write a file, get more rights, or use more memory than its limit. Asserts also that no password is in an
/// environment, and that no port is open to other machines.
pub(crate) fn assert_confined(stack: &Stack) {
    for (service, mebibytes) in LIMITS {
        let host = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.Memory}}";
        assert_eq!(
            stack.inspect(service, host),
            format!("true [ALL] {}", mebibytes << 20),
            "{service}"
        );
        let environment = stack.inspect(service, "{{.Config.Env}}");
        for role in [
            "postgres",
            "user_api",
            "post_api",
            "outbox_relay",
            "view_builder",
            "console",
            "console_tokens",
        ] {
            let password = std::fs::read_to_string(stack.secret(role)).expect("a password");
            assert!(
                !environment.contains(&password),
                "{service} has the password of {role} in its environment"
            );
        }
    }
    let ports = stack.run("docker ps --filter label=com.docker.compose.project=outbox-test --format '{{.Ports}}'");
    let published = ports.split([',', '\n']).filter(|port| port.contains("->"));
    let published: Vec<&str> = published.map(str::trim).collect();
    assert_eq!(
        published.len(),
        5,
        "Postgres, Kafka, the two APIs and the console: {published:?}"
    );
    assert!(
        published.iter().all(|port| port.starts_with("127.0.0.1:")),
        "{published:?}"
    );
}
