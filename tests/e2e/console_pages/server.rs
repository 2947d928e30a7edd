//! One pipeline with a console for all tests of the pages. Users' e-mails are masked.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use serde_json::{Value, json};
use stack::pipeline::Console;
use stack::{Pipeline, eventually_ok};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::page::Page;

pub(super) const DEADLINE: Duration = Duration::from_secs(60);

static SHARED: OnceCell<RwLock<Server>> = OnceCell::const_new();

pub(super) struct Server {
    pub(super) pipeline: Pipeline,
}

/// The pipeline, for a test that stops nothing.
pub(super) async fn shared() -> RwLockReadGuard<'static, Server> {
    lock().await.read().await
}

/// The pipeline for a test that stops a part of it for a while. No other test uses it meanwhile.
pub(super) async fn alone() -> RwLockWriteGuard<'static, Server> {
    lock().await.write().await
}

async fn lock() -> &'static RwLock<Server> {
    SHARED
        .get_or_init(|| async {
            let server = Server::start().await;
            RwLock::new(server.unwrap_or_else(|err| panic!("the pipeline does not start: {err:#}")))
        })
        .await
}

impl Server {
    async fn start() -> anyhow::Result<Self> {
        let pipeline = crate::e2e::shared::builder().console(None).prepare().await?;
        let file = pipeline.console.as_ref().map(Console::token_file).unwrap_or_default();
        let file = file.with_file_name("pipeline.toml");
        let settings = std::fs::read_to_string(&file)?;
        std::fs::write(&file, format!("mask = [\"user.email\"]\n{settings}"))?;
        pipeline.start_programs().await?;
        Ok(Self { pipeline })
    }

    pub(super) fn console(&self) -> &Console {
        self.pipeline.console.as_ref().expect("a console")
    }

    /// The page at this address, as somebody gets it who has not logged in. On a busy machine Kafka or Postgres may need longer than a page waits. Then the page says so (503), and a
    /// person loads it again.
    pub(super) async fn get(&self, address: &str) -> Page {
        let page = eventually_ok(DEADLINE, "a page", || async {
            let answer = reqwest::get(self.console().url(address)).await?;
            let page = Page::read(address, answer).await;
            anyhow::ensure!(page.status != 503, "{address}: {}", page.text);
            Ok(page)
        });
        page.await.unwrap_or_else(|err| panic!("{err:#}"))
    }

    /// Creates a user. Returns its id.
    pub(super) async fn create_user(&self, name: &str, department: &str) -> i64 {
        let user = json!({"name": name, "email": format!("{name}@secret.example"), "department": department, "status": "ACTIVE"});
        let answer = reqwest::Client::new()
            .post(self.pipeline.user_api.url("/api/users"))
            .json(&user)
            .send()
            .await;
        let user: Value = answer.expect("an answer").json().await.expect("a user");
        user["id"].as_i64().expect("an id")
    }

    /// The only value that `sql` gives in the users' database.
    pub(super) async fn in_users(&self, sql: &str) -> String {
        crate::e2e::rows::single(&crate::e2e::rows::in_users(&self.pipeline, sql).await).to_owned()
    }

    /// The only value that `sql` gives in the views' database.
    pub(super) async fn in_views(&self, sql: &str) -> String {
        crate::e2e::rows::single(&crate::e2e::rows::in_views(&self.pipeline, sql).await).to_owned()
    }

    /// Writes records past the relay, as any program with access to Kafka could.
    pub(super) fn produce(&self, records: &[Sent<'_>]) {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.pipeline.bootstrap_servers())
            .set("partitioner", "murmur2_random");
        let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
        for sent in records {
            let headers = sent.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
                headers.insert(Header {
                    key: name,
                    value: Some(*value),
                })
            });
            let record = BaseRecord::to(sent.topic)
                .key(sent.key)
                .payload(sent.value)
                .headers(headers);
            if let Err((err, _)) = producer.send(record) {
                panic!("not sent: {err}");
            }
        }
        producer.flush(DEADLINE).expect("all is sent");
    }
}

/// A record that a test writes.
pub(super) struct Sent<'s> {
    pub(super) topic: &'s str,
    pub(super) key: &'s [u8],
    pub(super) value: &'s [u8],
    pub(super) headers: Vec<(&'s str, &'s [u8])>,
}
