//! The stack of docker-compose.yml, started from a copy of the checkout. So it has secrets, settings and volumes of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rig::ledger::Row;
use rig::rest::Rest;
use rig::workload::Answered;
use rig::{Isolation, Ledger, Record, topic};
use stack::scratch::Scratch;
use stack::{checkout, eventually_ok, postgres};

/// The name of the compose project. Its volumes and containers are not those of a stack that somebody has started by hand.
const PROJECT: &str = "outbox-test";
pub(crate) const KAFKA: &str = "localhost:9092";
/// The names of the services that are our programs.
pub(crate) const PROGRAMS: [&str; 6] = [
    "user-api",
    "post-api",
    "users-relay",
    "posts-relay",
    "view-builder",
    "console",
];
/// After a fault, everything must be in its topic or view by then. The longest waits are for Kafka to end the transactions of a killed relay, and
/// for a container to start again.
pub(crate) const RECOVERY: Duration = Duration::from_secs(120);

/// Dropping it removes the containers, the networks and the volumes.
pub(crate) struct Stack {
    directory: Scratch,
}

impl Stack {
    /// Copies the files that git tracks or would add. Starts nothing.
    pub(crate) fn copy() -> Self {
        let version = Command::new("docker").args(["compose", "version"]).output();
        assert!(
            version.is_ok_and(|output| output.status.success()),
            "no container engine with the compose plugin: ./test compose starts one, and so does tests/compose/engine.sh start"
        );
        let directory = Scratch::kept_or_temporary(None, "outbox-compose-").expect("a directory");
        let stack = Self { directory };
        let copy = format!(
            "cd '{}' && git ls-files -z --cached --others --exclude-standard | xargs -0 tar -c --ignore-failed-read | tar -x -C '{}'",
            checkout::root().display(),
            stack.path().display()
        );
        expect_success(&copy, &Command::new("bash").args(["-c", &copy]).output().expect("bash"));
        stack
    }

    /// Builds the images from a copy, starts everything, and waits until everything is healthy.
    pub(crate) fn up() -> Self {
        let stack = Self::copy();
        stack.run("deploy/docker/make-secrets.sh");
        stack.run("docker compose up --build --detach --wait --quiet-pull");
        stack
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a command line by bash in the copy. Panics if it fails. Returns what it printed.
    pub(crate) fn run(&self, line: &str) -> String {
        expect_success(line, &self.command(line).output().expect("bash"))
    }

    /// As [`Stack::run`], but on a terminal, which `docker exec -it` demands.
    pub(crate) fn run_on_a_terminal(&self, script: &str) -> String {
        let file = self.path().join("script.sh");
        // The terminal is so large that psql does not start a pager.
        std::fs::write(&file, format!("stty rows 500 columns 250\n{script}")).expect("a script");
        self.run("script --quiet --return --command 'bash -e script.sh' /dev/null")
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-c", line])
            .current_dir(self.path())
            .env("COMPOSE_PROJECT_NAME", PROJECT)
            // Without this, the plugin draws progress bars over the output of the commands.
            .env("COMPOSE_PROGRESS", "plain")
            .stdin(Stdio::null());
        command
    }

    /// The ids of a service's containers.
    pub(crate) fn containers(&self, service: &str) -> Vec<String> {
        let ids = self.run(&format!("docker compose ps --all --quiet {service}"));
        ids.lines().map(str::to_owned).collect()
    }

    /// Waits until every container is healthy, or has done its job and ended.
    pub(crate) async fn wait_until_healthy(&self) {
        eventually_ok(RECOVERY, "all containers are healthy", async || {
            let states =
                self.run("docker compose ps --all --format '{{.Service}} {{.State}} {{.ExitCode}} {{.Health}}'");
            let unwell = states
                .lines()
                .find(|line| !line.ends_with(" running 0 healthy") && !line.trim_end().ends_with(" exited 0"));
            anyhow::ensure!(unwell.is_none(), "{}", unwell.unwrap_or_default());
            anyhow::Ok(())
        })
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    }

    /// Asks the engine about the only container of a service. `template` is the Go template of the answer.
    pub(crate) fn inspect(&self, service: &str, template: &str) -> String {
        let [container] = &self.containers(service)[..] else {
            panic!("{service} has several containers or none");
        };
        let line = format!("docker inspect --format '{template}' {container}");
        self.run(&line).trim().to_owned()
    }

    pub(crate) fn rest() -> Rest {
        Rest::at("http://localhost:8081", "http://localhost:8082")
    }

    /// Connects to a database as the superuser, through the published port.
    pub(crate) async fn connect(&self, name: &str) -> tokio_postgres::Client {
        let password = std::fs::read_to_string(self.secret("postgres")).expect("the superuser's password");
        let url = format!("postgres://postgres:{password}@localhost:15432/{name}");
        eventually_ok(RECOVERY, "postgres answers", async || postgres::connect(&url).await)
            .await
            .expect("postgres")
    }

    pub(crate) fn secret(&self, role: &str) -> PathBuf {
        self.path().join("secrets").join(role)
    }

    /// Waits until the topic has as many records as the outbox has rows. Asserts that each row is there exactly once. Returns the rows.
    pub(crate) async fn assert_published_exactly_once(&self, database: &str, topic: &'static str) -> Vec<Row> {
        let rows = self.outbox_rows(database).await;
        let wanted = rows.len();
        let records = eventually_ok(RECOVERY, "every row is published", async || {
            let records = read_topic(topic).await?;
            anyhow::ensure!(
                records.len() >= wanted,
                "{} of {wanted} rows are in {topic}",
                records.len()
            );
            anyhow::Ok(records)
        })
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
        // If a row is published twice, the second record may come a moment later.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let later = read_topic(topic).await.expect("records");
        assert_eq!(later.len(), records.len(), "records that came later in {topic}");
        let ledger = Ledger::compare(&rows, &later);
        println!("{topic}: {ledger}");
        assert!(ledger.is_exact(), "{topic}: {ledger}");
        rows
    }

    async fn outbox_rows(&self, database: &str) -> Vec<Row> {
        let sql = "select id::text, aggregateid, (payload ->> 'version')::bigint, payload::text from outbox";
        let rows = self.connect(database).await.query(sql, &[]).await.expect("the outbox");
        rows.iter()
            .map(|row| Row {
                id: row.get(0),
                key: row.get(1),
                n: row.get(2),
                payload: row.get(3),
            })
            .collect()
    }
}

/// Asserts that each change whose client got an answer is one row of the outbox.
pub(crate) fn assert_answered_changes_are_in_outbox(rows: &[Row], answers: &[Answered]) {
    assert!(!answers.is_empty(), "nobody was answered");
    for answer in answers {
        let found = rows.iter().filter(|row| match answer {
            Answered::Written { id, version } => row.key == id.to_string() && row.n == *version,
            Answered::Deleted { id } => row.key == id.to_string() && row.payload.contains("USER_DELETED"),
        });
        assert_eq!(found.count(), 1, "rows of the outbox for {answer:?}");
    }
}

async fn read_topic(topic: &'static str) -> anyhow::Result<Vec<Record>> {
    tokio::task::spawn_blocking(move || topic::read(KAFKA, topic, Isolation::Committed)).await?
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self
                .command("docker compose ps --all; docker compose logs --no-color --tail 15")
                .output();
            println!(
                "{}",
                logs.map_or_else(|err| err.to_string(), |output| output_text(&output))
            );
        }
        let line = "docker compose --profile '*' down --volumes --remove-orphans --timeout 10";
        match self.command(line).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => println!("{line}: {}", output_text(&output)),
            Err(err) => println!("{line}: {err}"),
        }
    }
}

/// Panics if the command failed. Returns what it printed.
fn expect_success(line: &str, output: &Output) -> String {
    assert!(
        output.status.success(),
        "{line} ended with {}:\n{}",
        output.status,
        output_text(output)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both what a command printed and its errors.
fn output_text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
