//! Runs the quick start as a person does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use stack::process::{Ending, Process};
use stack::{eventually, port};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(120);
const SIGTERM: &str = "TERM";
const SIGKILL: &str = "KILL";

/// A running `quickstart` on free ports, with its temporary files in a directory of its own.
struct QuickStart {
    process: Process,
    directory: TempDir,
}

impl QuickStart {
    fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // The user that PostgreSQL runs as must be able to reach its data in this directory.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), everybody).expect("permissions");
        let mut command = Command::new(program());
        for flag in [
            "postgres",
            "kafka",
            "user-api",
            "post-api",
            "users-relay",
            "posts-relay",
            "view-builder",
            "console",
            "console-admin",
        ] {
            command.arg(format!("--{flag}-port=0"));
        }
        command.args(arguments).env("TMPDIR", directory.path());
        let process = Process::spawn(
            "quickstart",
            &mut command,
            &directory.path().join("output"),
            Ending::Kill,
        );
        Self {
            process: process.expect("a quick start"),
            directory,
        }
    }

    fn output(&self) -> String {
        fs::read_to_string(self.directory.path().join("output")).unwrap_or_default()
    }

    async fn wait_ready(&self) {
        eventually(DEADLINE, "the quick start says that everything is up", || {
            assert!(self.process.is_running(), "{}", self.output());
            std::future::ready(self.output().contains("Everything is up").then_some(()))
        })
        .await;
    }

    async fn exit_code(&self) -> Option<i32> {
        let ended = tokio::time::timeout(DEADLINE, self.process.exited()).await;
        ended
            .unwrap_or_else(|_| panic!("it still runs: {}", self.output()))
            .code()
    }

    /// All processes that the quick start has started: their command line or their environment names its temporary directory.
    fn left(&self) -> Vec<String> {
        let own = self.directory.path().to_string_lossy().into_owned();
        let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
        let started = processes.filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let both = [line.as_slice(), b"\0", environment.as_slice()].concat();
            let text = String::from_utf8_lossy(&both).into_owned();
            (!line.is_empty() && text.contains(&own)).then(|| String::from_utf8_lossy(&line).replace('\0', " "))
        });
        started.collect()
    }

    async fn assert_nothing_is_left(&self) {
        eventually(
            Duration::from_secs(30),
            "all that it started has ended, and its files are gone",
            || {
                let files = fs::read_dir(self.directory.path()).expect("the directory").count();
                // The one file that is left is the output, which belongs to the test.
                std::future::ready((self.left().is_empty() && files == 1).then_some(()))
            },
        )
        .await;
    }
}

#[tokio::test]
async fn users_of_the_quick_start_are_created_counted_and_measured() {
    let quickstart = QuickStart::start(&["--users", "500", "--exit"]);
    assert_eq!(quickstart.exit_code().await, Some(0), "{}", quickstart.output());
    let output = quickstart.output();
    for (name, value) in [("users created", "500"), ("failed", "0"), ("rows in the view", "500")] {
        let line = output
            .lines()
            .find(|line| line.trim_start().starts_with(name) && line.trim_end().ends_with(&format!(" {value}")));
        assert!(line.is_some(), "{name} {value} in\n{output}");
    }
    assert!(
        output.contains("commit to view p99") && !output.contains("not known"),
        "{output}"
    );
    quickstart.assert_nothing_is_left().await;
}

#[tokio::test]
async fn sigterm_ends_all_of_the_quick_start() {
    let quickstart = QuickStart::start(&[]);
    quickstart.wait_ready().await;
    assert!(
        quickstart.left().len() > 8,
        "its parts are seen: {:?}",
        quickstart.left()
    );
    send(SIGTERM, quickstart.process.id());
    assert_eq!(quickstart.exit_code().await, Some(0), "{}", quickstart.output());
    quickstart.assert_nothing_is_left().await;
}

#[tokio::test]
async fn the_death_of_one_program_ends_the_quick_start_and_shows_why() {
    let quickstart = QuickStart::start(&[]);
    quickstart.wait_ready().await;
    let own = quickstart.directory.path().to_string_lossy().into_owned();
    send(SIGKILL, pid_of("view-builder", &own));
    assert_eq!(quickstart.exit_code().await, Some(1), "{}", quickstart.output());
    assert!(
        quickstart.output().contains("view-builder ended by itself"),
        "{}",
        quickstart.output()
    );
    quickstart.assert_nothing_is_left().await;
}

#[tokio::test]
async fn sigkill_of_the_quick_start_leaves_nothing_behind() {
    let quickstart = QuickStart::start(&[]);
    quickstart.wait_ready().await;
    send(SIGKILL, quickstart.process.id());
    assert_eq!(quickstart.exit_code().await, None);
    quickstart.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_taken_port_is_one_clear_line() {
    let taken = port::free().expect("a port");
    let _listener = std::net::TcpListener::bind(("127.0.0.1", taken)).expect("the port");
    let quickstart = QuickStart::start(&[&format!("--user-api-port={taken}")]);
    assert_eq!(quickstart.exit_code().await, Some(1));
    let output = quickstart.output();
    assert!(output.contains(&format!("{taken} (--user-api-port)")), "{output}");
    assert_eq!(output.trim().lines().count(), 1, "{output}");
}

#[tokio::test]
async fn kept_data_is_continued_the_next_time() {
    let kept = tempfile::tempdir().expect("a directory");
    let data = kept.path().to_string_lossy().into_owned();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(kept.path(), everybody).expect("permissions");
    for _ in 0..2 {
        let quickstart = QuickStart::start(&["--data", &data, "--users", "50", "--exit"]);
        assert_eq!(quickstart.exit_code().await, Some(0), "{}", quickstart.output());
        quickstart.assert_nothing_is_left().await;
    }
    let third = QuickStart::start(&["--data", &data]);
    third.wait_ready().await;
    let users = third
        .output()
        .lines()
        .find_map(|line| line.trim().strip_prefix("users ").map(|url| url.trim().to_owned()));
    let answer = reqwest::get(users.expect("the users' URL")).await.expect("an answer");
    let users: serde_json::Value = answer.json().await.expect("users");
    assert_eq!(users.as_array().map(Vec::len), Some(100));
    let refused = QuickStart::start(&["--data", &data]);
    assert_eq!(refused.exit_code().await, Some(1));
    assert!(
        refused.output().contains("another quick start uses"),
        "{}",
        refused.output()
    );
}

/// The path of the program. Cargo puts it beside the directory of the tests.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("this test");
    let directory = own.ancestors().nth(2).expect("the target directory");
    let program = directory.join("quickstart");
    assert!(
        program.exists(),
        "quickstart is not built: cargo build --release --workspace --bins"
    );
    program
}

/// The id of the process `name` whose environment names `directory`.
fn pid_of(name: &str, directory: &str) -> u32 {
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let found = processes.filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let program = line.split(|byte| *byte == 0).next()?;
        let program = Path::new(std::str::from_utf8(program).ok()?).file_name()?.to_owned();
        let environment = fs::read(entry.path().join("environ")).ok()?;
        let ours = String::from_utf8_lossy(&environment).contains(directory);
        (program == name && ours).then(|| entry.file_name().to_str()?.parse().ok())?
    });
    let pids: Vec<u32> = found.collect();
    assert_eq!(pids.len(), 1, "one {name} of this quick start");
    pids[0]
}

fn send(signal: &str, pid: u32) {
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -s {signal} {pid}")])
        .status();
    assert!(sent.expect("a shell").success());
}
