//! A REST program as its tests meet it: the real executable, on a port and a database of its own, reached by HTTP and SQL.

#![allow(dead_code, reason = "each program's tests use their part of it")]

pub(crate) mod gate;

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use url::Url;

/// Longest time that anything in a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An executable, and the role that it runs as.
#[derive(Clone, Copy)]
pub(crate) struct Executable {
    pub(crate) path: &'static str,
    pub(crate) role: &'static str,
}

/// An empty database of one test; dropped with it.
pub(crate) struct Database {
    superuser: Url,
    name: String,
}

impl Database {
    pub(crate) async fn create() -> Self {
        let superuser = std::env::var("TEST_DATABASE_URL")
            .expect("TEST_DATABASE_URL is not set: ./test starts a PostgreSQL and sets it");
        let superuser: Url = superuser.parse().expect("TEST_DATABASE_URL is no URL");
        let mut admin = connect(&superuser).await;
        // Tests that run at once would make the roles at once, which one of them does not survive.
        let mut transaction = admin.begin().await.unwrap();
        transaction.execute("select pg_advisory_xact_lock(7423)").await.unwrap();
        for role in [
            "user_api",
            "post_api",
            "view_builder",
            "outbox_relay",
            "outbox_maintainer",
            "view_verifier",
        ] {
            let statement =
                format!("do $$ begin create role {role} login; exception when duplicate_object then null; end $$");
            transaction.execute(AssertSqlSafe(statement)).await.unwrap();
        }
        transaction.commit().await.unwrap();
        let random: i64 = sqlx::query_scalar("select (random() * 1e15)::bigint")
            .fetch_one(&mut admin)
            .await
            .unwrap();
        let name = format!("test_{}_{random}", std::process::id());
        admin
            .execute(AssertSqlSafe(format!("create database {name}")))
            .await
            .unwrap();
        Self { superuser, name }
    }

    /// URL of the database for the superuser.
    pub(crate) fn url(&self) -> Url {
        let mut url = self.superuser.clone();
        url.set_path(&self.name);
        url
    }

    /// URL of the database with the rights of `role` and no others.
    pub(crate) fn url_as(&self, role: &str) -> Url {
        let mut url = self.url();
        url.query_pairs_mut().append_pair("options[role]", role);
        url
    }

    /// A superuser's connection.
    pub(crate) async fn sql(&self) -> PgConnection {
        connect(&self.url()).await
    }

    /// ANALYZE comes each minute to a busy table, and takes the processor from who writes to it: it samples a tenth of the usual
    /// rows of `table`, and nothing of the outbox and its days.
    pub(crate) async fn assert_samples_are_small(&self, table: &str) {
        let targets: Vec<(String, String, i64)> = sqlx::query_as(
            "select c.relname::text, string_agg(distinct coalesce(a.attstattarget, -1)::text, ' '), count(distinct a.attname)
             from pg_attribute as a join pg_class as c on c.oid = a.attrelid
             where c.relkind in ('r', 'p') and (c.relname = $1 or starts_with(c.relname, 'outbox')) and a.attnum > 0 and not a.attisdropped
             group by c.relname order by c.relname desc",
        )
        .bind(table)
        .fetch_all(&mut self.sql().await)
        .await
        .unwrap();
        let (sampled, outboxes) = targets.split_first().unwrap();
        assert_eq!((sampled.0.as_str(), sampled.1.as_str()), (table, "10"));
        assert!(
            outboxes.len() > 8,
            "the table, its default partition and its days: {outboxes:?}"
        );
        for (name, targets, columns) in outboxes {
            assert_eq!((targets.as_str(), *columns), ("0", 6), "{name}");
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (superuser, name) = (self.superuser.clone(), self.name.clone());
        let dropping = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async {
                    let statement = format!("drop database {name} with (force)");
                    connect(&superuser)
                        .await
                        .execute(AssertSqlSafe(statement))
                        .await
                        .unwrap();
                });
        });
        let dropped = dropping.join();
        assert!(dropped.is_ok() || std::thread::panicking(), "cannot drop {}", self.name);
    }
}

async fn connect(url: &Url) -> PgConnection {
    let options: PgConnectOptions = url.as_str().parse().unwrap();
    PgConnection::connect_with(&options)
        .await
        .expect("cannot connect to TEST_DATABASE_URL")
}

/// A running program. Killed with the test.
pub(crate) struct Program {
    base: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    client: reqwest::Client,
    database: Option<Database>,
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|err| panic!("{err}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no header {name}: {self:?}"))
            .to_str()
            .unwrap()
    }

    /// Asserts that this is a problem with that status, and returns its body.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        problem
    }

    /// Asserts that this is a 422, and returns the fields that it names.
    #[track_caller]
    pub(crate) fn wrong_fields(&self) -> Vec<String> {
        self.problem(422)["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| error["field"].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Program {
    /// A program that is ready, on a database of its own with its migrations and with `more_sql`.
    pub(crate) async fn ready(executable: Executable, more_sql: &'static str) -> Self {
        let database = Database::create().await;
        assert!(migrate(executable, &database.url()).await.success());
        database.sql().await.execute(more_sql).await.unwrap();
        let mut program = Self::start(executable, &database.url_as(executable.role)).await;
        program.database = Some(database);
        program.wait_until_ready().await;
        program
    }

    /// A program that has only begun to listen.
    pub(crate) async fn start(executable: Executable, database_url: &Url) -> Self {
        let mut child = Command::new(executable.path)
            .env("DATABASE_URL", database_url.as_str())
            .env("LISTEN", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .env("LOG", "info")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::<String>::new()));
        let mut address = None;
        while address.is_none() {
            let line = lines.next_line().await.unwrap().expect("ended at once");
            let entry: Value = serde_json::from_str(&line).unwrap();
            address = entry["http.listen"].as_str().map(str::to_owned);
            log.lock().unwrap().push(line);
        }
        let kept = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().push(line);
            }
        });
        Self {
            base: format!("http://{}", address.unwrap()),
            child,
            log,
            client: reqwest::Client::new(),
            database: None,
        }
    }

    pub(crate) async fn wait_until_ready(&self) {
        eventually("the program is ready", async || {
            self.get("/readyz").await.status == StatusCode::OK
        })
        .await;
    }

    /// The program's own database.
    pub(crate) fn database(&self) -> &Database {
        self.database.as_ref().unwrap()
    }

    /// The log's lines so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        answer(self.request(Method::DELETE, path)).await
    }

    /// Sends `body` as it is, as JSON.
    pub(crate) async fn send(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self.request(method, path);
        answer(request.header("content-type", "application/json").body(body)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, body.to_string()).await
    }

    /// Sends `request` byte by byte as it is, and gives all that is answered until the program closes the connection.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let address = self.base.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("the connection stays open")
            .unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// The program's address, for a client of the test's own.
    pub(crate) fn address(&self) -> &str {
        self.base.strip_prefix("http://").unwrap()
    }

    /// The most physical memory that the program has had at once, in KiB (`VmHWM` of proc_pid_status(5)).
    pub(crate) fn peak_memory_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    /// Asks the program to stop.
    pub(crate) async fn terminate(&self) {
        let pid = self.child.id().unwrap().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(killed.unwrap().success());
    }

    /// How the program ended, and how long that took from now.
    pub(crate) async fn ended(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        (status.expect("does not end").unwrap(), started.elapsed())
    }
}

/// Runs `migrate` to its end.
pub(crate) async fn migrate(executable: Executable, database_url: &Url) -> ExitStatus {
    Command::new(executable.path)
        .arg("migrate")
        .env("DATABASE_URL", database_url.as_str())
        .stdout(Stdio::null())
        .status()
        .await
        .unwrap()
}

pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    let response = request.timeout(PATIENCE).send().await.unwrap();
    Answer {
        status: response.status(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
}

/// Waits until `holds`, within [`PATIENCE`].
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
