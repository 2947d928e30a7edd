//! The executable: started, asked, stopped.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use sqlx::Executor;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use url::Url;

use crate::answer::{Answer, answer};
use crate::database::Database;
use crate::{PATIENCE, eventually};

/// An executable, and the role that it runs as.
#[derive(Clone, Copy)]
pub struct Executable {
    pub path: &'static str,
    pub role: &'static str,
}

/// A running program. Killed with the test.
pub struct Program {
    base: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    client: reqwest::Client,
    database: Option<Database>,
}

impl Program {
    /// A program that is ready, on a database of its own with its migrations and with `more_sql`.
    pub async fn ready(executable: Executable, more_sql: &'static str) -> Self {
        let database = Database::create().await;
        assert!(migrate(executable, &database.url()).await.success());
        database.sql().await.execute(more_sql).await.unwrap();
        let mut program = Self::start(executable, &database.url_as(executable.role)).await;
        program.database = Some(database);
        program.wait_until_ready().await;
        program
    }

    /// Starts a program, and returns when it has begun to listen. It need not be ready.
    pub async fn start(executable: Executable, database_url: &Url) -> Self {
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

    pub async fn wait_until_ready(&self) {
        eventually("the program is ready", async || {
            self.get("/readyz").await.status == StatusCode::OK
        })
        .await;
    }

    /// The program's own database.
    pub fn database(&self) -> &Database {
        self.database.as_ref().unwrap()
    }

    /// The log's lines so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        answer(self.request(Method::DELETE, path)).await
    }

    /// Sends `body` as it is, as JSON.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self.request(method, path);
        answer(request.header("content-type", "application/json").body(body)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, body.to_string()).await
    }

    /// Sends the bytes of `request` as they are. Returns all that is answered until the program closes the connection.
    pub async fn raw(&self, request: &[u8]) -> String {
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
    pub fn address(&self) -> &str {
        self.base.strip_prefix("http://").unwrap()
    }

    /// The most physical memory that the program has had at once, in KiB (`VmHWM` of proc_pid_status(5)).
    pub fn peak_memory_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    /// Asks the program to stop.
    pub async fn terminate(&self) {
        let pid = self.child.id().unwrap().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(killed.unwrap().success());
    }

    /// How the program ended, and how long that took from now.
    pub async fn ended(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        (status.expect("does not end").unwrap(), started.elapsed())
    }
}

/// Runs `migrate` to its end.
pub async fn migrate(executable: Executable, database_url: &Url) -> ExitStatus {
    Command::new(executable.path)
        .arg("migrate")
        .env("DATABASE_URL", database_url.as_str())
        .stdout(Stdio::null())
        .status()
        .await
        .unwrap()
}
