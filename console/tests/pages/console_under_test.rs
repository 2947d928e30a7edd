//! A console whose pipeline is away.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser as _;
use console::app::App;
use console::settings::{Cli, Role};
use console::web::access::{Access, tokens};
use console::{pages, snapshot};
use reqwest::{Client, RequestBuilder, StatusCode};
use stack::eventually_ok;
use tokio::net::TcpListener;

/// A console whose pipeline is away: one database refuses, and everything else accepts connections and stays silent.
pub(crate) struct Console {
    address: SocketAddr,
    pub(crate) app: App,
    http: Client,
    pub(crate) operator: String,
    pub(crate) reader: String,
    directory: tempfile::TempDir,
    /// The silent part. It keeps its connections.
    _silent: TcpListener,
}

/// What the programs answer to `status --json`.
const STATUS: &str = r#"{"format": 1, "problems": [{"severity": "problem", "stage": "slot", "text": "the slot was dropped", "commands": ["outbox-relay recover --here"], "exit_code": 13}]}"#;

impl Console {
    pub(crate) async fn start(listen: &str) -> Self {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refusing = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let there = silent.local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| -> PathBuf {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let pipeline = file(
            "pipeline.toml",
            &format!(
                r#"
[[outbox]]
name = "users"
database_url = "postgres://console@{refusing}/users_db"
slot = "users_relay"
topics = ["user-events"]
relay = "http://{there}"
[[outbox]]
name = "posts"
database_url = "postgres://console@{there}/views_db"
slot = "posts_relay"
topics = ["post-events"]
relay = "http://{refusing}"
[views]
database_url = "postgres://console@{there}/views_db"
builders = ["http://{there}"]
[views.verify_sources]
user-events = "postgres://console@{refusing}/users_db"
"#
            ),
        );
        let (operator, reader) = (tokens::random_text(), tokens::random_text());
        let lines = [
            tokens::line("kim", Role::Operator, &operator),
            tokens::line("lee", Role::Reader, &reader),
        ];
        let token_file = file("tokens", &lines.join("\n"));
        // Programs that leave a trace where they are run for a change, and say what is wrong where they are asked for their status.
        let trace = directory.path().join("was-run");
        let program = file(
            "program",
            &format!(
                "#!/bin/sh\ncase $1 in status) echo '{STATUS}' ;; *) touch {} ;; esac\n",
                trace.display()
            ),
        );
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let arguments = [
            "console".to_owned(),
            format!("--pipeline={}", pipeline.display()),
            format!("--token-file={}", token_file.display()),
            format!("--kafka={there}"),
            format!("--listen={listen}"),
            format!("--outbox-relay={}", program.display()),
            format!("--view-builder={}", program.display()),
        ];
        let settings = Cli::try_parse_from(arguments).unwrap().serve.check().unwrap();
        let access = Access::new(settings.listen, settings.token_file.clone()).unwrap();
        let app = App::new(settings, access);
        snapshot::begin(&app.settings, &app.store).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = pages::router(app.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let http = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .unwrap();
        Self {
            address,
            app,
            http,
            operator,
            reader,
            directory,
            _silent: silent,
        }
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("http://{}{path}", self.address))
    }

    pub(crate) fn post(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(fields);
        let request = self.http.post(format!("http://{}{path}", self.address));
        request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.finish())
    }

    /// The cookie and the CSRF token of a person who logs in.
    pub(crate) async fn log_in(&self, token: &str) -> (String, String) {
        let answer = self.post("/login", &[("token", token)]).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(
            cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
            "{cookie}"
        );
        let cookie = cookie.split(';').next().unwrap().to_owned();
        let page = self
            .get("/slots")
            .header("cookie", &cookie)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        let csrf = page
            .split("name=\"csrf\" value=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned();
        (cookie, csrf)
    }

    pub(crate) async fn wait_until_all_is_away(&self) {
        let all_away = eventually_ok(Duration::from_secs(20), "all six parts are away", async || {
            let snapshot = self.app.store.snapshot();
            let away = snapshot.away();
            anyhow::ensure!(away.len() >= 6, "{away:?}");
            Ok(())
        });
        all_away.await.unwrap_or_else(|err| panic!("{err:#}"));
    }

    pub(crate) fn program_was_run(&self) -> bool {
        self.directory.path().join("was-run").exists()
    }
}
