//! The console of a pipeline: the file that says where the parts are, the token of an operator, and the program.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::postgres_server::{CONSOLE, VERIFIER};
use super::programs::ROUTER_OPTIONS;
use super::{Pipeline, Ports, USERS_DATABASE, VIEWS_DATABASE};
use crate::scratch::Scratch;
use crate::{Program, checkout, port};

/// Where a key of a topic has its row in the views of this repository.
const VIEW_ROWS: &str = r#"
[[views.row]]
topic = "user-events"
view = "user_view"
table = "public.user_view"
key = "user_id"
version = "version"
changed = "updated_at"
applied = "last_processed_at"

[[views.row]]
topic = "post-events"
view = "activity"
table = "public.activity_post"
key = "post_id"
version = "version"
changed = "updated_at"
"#;

/// The console, and what a person needs to use it.
#[derive(Debug)]
pub struct Console {
    /// Its port is that of `/readyz`. [`Console::url`] has that of the pages.
    pub program: Program,
    page_port: u16,
    directory: Scratch,
}

impl Console {
    /// The address of a page, such as `/events`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.page_port)
    }

    /// The port of the pages.
    #[must_use]
    pub const fn page_port(&self) -> u16 {
        self.page_port
    }

    /// The file with the token that logs in an operator. Only its owner may read it.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.directory.path().join("operator-token")
    }

    /// Writes the files, and makes the program. Does not start it.
    ///
    /// # Errors
    /// A file cannot be written, the program `console` does not make a token, or no port is free.
    pub(super) async fn prepare(
        pipeline: &Pipeline,
        programs: &Path,
        directory: Scratch,
        ports: Ports,
        environment: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let binary = programs.join("console");
        // The file of the pipeline may have passwords.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))?;
        let pipeline_file = directory.path().join("pipeline.toml");
        write_private(&pipeline_file, &settings(pipeline)?)?;
        let token = new_token(&binary).await?;
        write_private(&directory.path().join("operator-token"), &format!("{}\n", token.secret))?;
        let tokens_file = directory.path().join("tokens");
        write_private(&tokens_file, &format!("{}\n", token.line))?;
        let (page_port, admin_port) = (
            port::given_or_free(ports.console)?,
            port::given_or_free(ports.console_admin)?,
        );
        let log = pipeline.logs().join("console.log");
        let program = Program::new("console", &binary, log, admin_port)
            .env("LISTEN", &format!("127.0.0.1:{page_port}"))
            .env("ADMIN_LISTEN", &format!("127.0.0.1:{admin_port}"))
            .env("KAFKA_BOOTSTRAP_SERVERS", pipeline.bootstrap_servers())
            .env("CONSOLE_PIPELINE", &pipeline_file.to_string_lossy())
            .env("CONSOLE_TOKENS", &tokens_file.to_string_lossy())
            .env("VIEWS", &checkout::root().join("sql/views").to_string_lossy())
            .env("ROUTER_OPTIONS", &ROUTER_OPTIONS.join("\n"))
            .env("LOG_FORMAT", "text");
        let variables = environment.iter();
        let program = variables.fold(program, |program, (name, value)| program.env(name, value));
        Ok(Self {
            program,
            page_port,
            directory,
        })
    }
}

/// Writes `text` into a file that only its owner may read.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What the console's file says of the pipeline. Each database has an address for reading, and others for commands, whose roles may do more.
fn settings(pipeline: &Pipeline) -> anyhow::Result<String> {
    let role = |role: &str, database: &str| pipeline.postgres.url_for_role(role, database);
    let outboxes = [
        (
            "users",
            USERS_DATABASE,
            "users_relay",
            "user-events",
            &pipeline.users_relay,
        ),
        (
            "posts",
            VIEWS_DATABASE,
            "posts_relay",
            "post-events",
            &pipeline.posts_relay,
        ),
    ];
    let mut text =
        String::from("# Where the parts of the pipeline are. The quick start writes this file anew each time.\n");
    for (name, database, slot, topic, relay) in outboxes {
        text += &format!(
            "\n[[outbox]]\nname = {}\ndatabase_url = {}\ncommand_database_url = {}\nslot = {}\ntopics = [{}]\nrelay = {}\n",
            quoted(name),
            quoted(&role(CONSOLE, database)?),
            quoted(&role("outbox_relay", database)?),
            quoted(slot),
            quoted(topic),
            quoted(&relay.url("")),
        );
    }
    text += &format!(
        "\n[views]\ndatabase_url = {}\ncommand_database_url = {}\ngroup = \"view-builder\"\nbuilders = [{}]\n",
        quoted(&role(CONSOLE, VIEWS_DATABASE)?),
        quoted(&role("view_builder", VIEWS_DATABASE)?),
        quoted(&pipeline.view_builder.url("")),
    );
    text += VIEW_ROWS;
    text += &format!(
        "\n[views.verify_sources]\nuser-events = {}\npost-events = {}\n",
        quoted(&role(VERIFIER, USERS_DATABASE)?),
        quoted(&role(VERIFIER, VIEWS_DATABASE)?),
    );
    Ok(text)
}

/// `text` as a string of TOML. A string of JSON is one as well.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A new token: what a person types, and the line that makes the console know it.
struct Token {
    secret: String,
    line: String,
}

/// Has the console make a token for an operator.
///
/// # Errors
/// The program cannot be run, fails, or prints something else than a token.
async fn new_token(binary: &Path) -> anyhow::Result<Token> {
    let made = tokio::process::Command::new(binary)
        .args(["token", "quickstart", "--role", "operator"])
        .output()
        .await
        .with_context(|| format!("cannot run {}", binary.display()))?;
    anyhow::ensure!(
        made.status.success(),
        "the console made no token: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    // The line for the file goes to standard output, and the token itself to the person at the terminal.
    let (line, secret) = (
        String::from_utf8_lossy(&made.stdout),
        String::from_utf8_lossy(&made.stderr),
    );
    let line = line.lines().find(|line| line.contains(" sha256:"));
    let secret = secret
        .lines()
        .find(|line| line.starts_with("token of "))
        .and_then(|line| line.split_whitespace().last());
    let (Some(secret), Some(line)) = (secret, line) else {
        anyhow::bail!("the console printed no token and its line");
    };
    Ok(Token {
        secret: secret.to_owned(),
        line: line.to_owned(),
    })
}
