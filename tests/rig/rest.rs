//! A client of user-api and post-api.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stack::Pipeline;

/// A limit that no answer reaches, even while a server's database is just coming back.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A client of both APIs.
#[derive(Clone, Debug)]
pub struct Rest {
    client: reqwest::Client,
    users: String,
    posts: String,
}

impl Rest {
    pub fn of(pipeline: &Pipeline) -> Self {
        Self::at(&pipeline.user_api.url(""), &pipeline.post_api.url(""))
    }

    /// A client of the programs at these URLs, such as `http://localhost:8081`.
    pub fn at(user_api: &str, post_api: &str) -> Self {
        let client = reqwest::Client::builder().timeout(TIMEOUT).build();
        Self {
            client: client.expect("an HTTP client"),
            users: format!("{user_api}/api/users"),
            posts: format!("{post_api}/api/posts"),
        }
    }

    /// Creates a user. Returns the answer.
    pub async fn create_user(&self, body: &Value) -> anyhow::Result<Value> {
        self.send(Method::POST, &self.users, Some(body), StatusCode::CREATED)
            .await
    }

    pub async fn update_user(&self, id: i64, body: &Value) -> anyhow::Result<Value> {
        self.send(Method::PUT, &format!("{}/{id}", self.users), Some(body), StatusCode::OK)
            .await
    }

    pub async fn delete_user(&self, id: i64) -> anyhow::Result<()> {
        let url = format!("{}/{id}", self.users);
        self.send(Method::DELETE, &url, None, StatusCode::NO_CONTENT)
            .await
            .map(drop)
    }

    /// Creates a post. Returns the answer.
    pub async fn create_post(&self, title: &str, author: i64) -> anyhow::Result<Value> {
        let body = json!({"title": title, "content": "내용", "authorId": author});
        self.send(Method::POST, &self.posts, Some(&body), StatusCode::CREATED)
            .await
    }

    pub async fn update_post(&self, id: i64, title: &str, author: i64) -> anyhow::Result<Value> {
        let body = json!({"title": title, "content": "내용", "authorId": author});
        let url = format!("{}/{id}", self.posts);
        self.send(Method::PUT, &url, Some(&body), StatusCode::OK).await
    }

    pub async fn delete_post(&self, id: i64) -> anyhow::Result<()> {
        let url = format!("{}/{id}", self.posts);
        self.send(Method::DELETE, &url, None, StatusCode::NO_CONTENT)
            .await
            .map(drop)
    }

    pub async fn post(&self, id: i64) -> anyhow::Result<Value> {
        self.get_posts(&format!("/{id}")).await
    }

    /// The answer to `GET /api/posts` and `path`.
    pub async fn get_posts(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::GET, &format!("{}{path}", self.posts), None, StatusCode::OK)
            .await
    }

    /// Changes users by `method` at `/api/users` and `path`. Returns the answer, and the version of the event that the change wrote.
    pub async fn change_users(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<(Value, i64)> {
        let url = format!("{}{path}", self.users);
        let (status, headers, text) = self.exchange(method.clone(), &url, body).await?;
        ensure!(status.is_success(), "{method} {url}: {status}: {text}");
        let version = headers.get("event-version").context("no header Event-Version")?;
        let version = version.to_str()?.parse()?;
        let body = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text)?
        };
        Ok((body, version))
    }

    /// The status and the answer of `GET /api/posts` and `path`, whatever the status is.
    pub async fn ask_posts(&self, path: &str) -> anyhow::Result<(StatusCode, Value)> {
        let url = format!("{}{path}", self.posts);
        let (status, _, text) = self.exchange(Method::GET, &url, None).await?;
        Ok((status, serde_json::from_str(&text)?))
    }

    async fn send(&self, method: Method, url: &str, body: Option<&Value>, wanted: StatusCode) -> anyhow::Result<Value> {
        let (status, _, text) = self.exchange(method.clone(), url, body).await?;
        if status != wanted {
            bail!(Unexpected {
                status,
                text: format!("{method} {url}: {text}")
            });
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{method} {url} answered no JSON: {text}"))
    }

    async fn exchange(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, HeaderMap, String)> {
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        Ok((status, headers, answer.text().await?))
    }
}

/// The error for an answer that has another status than the test wants.
#[derive(Debug)]
pub struct Unexpected {
    pub status: StatusCode,
    text: String,
}

impl std::fmt::Display for Unexpected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.status, self.text)
    }
}

impl std::error::Error for Unexpected {}

/// The body of a user whose e-mail address nobody else has.
pub fn user(name: &str, department: &str, status: &str) -> Value {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let email = format!("user{number}.{}@example.com", std::process::id());
    json!({"name": name, "email": email, "department": department, "status": status})
}

/// The `id` of an answer.
pub fn id(answer: &Value) -> i64 {
    answer["id"].as_i64().expect("an id")
}
