//! A client that reads with the version in the answer to its write always reads its own write.

use std::time::{Duration, Instant};

use anyhow::bail;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use stack::Pipeline;
use stack::random::Random;

use super::{rows, shared};
use rig::rest::{Rest, id, user};

/// So many clients. Each changes only its own users, so it knows what a read must show: what it wrote last.
const CLIENTS: u64 = 16;
const PAIRS: u64 = 10_000;
/// With so many pairs, hundreds of stale reads occur.
const PLAIN_PAIRS: u64 = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_reads_with_the_version_of_their_write_show_it() {
    let pipeline = shared::pipeline_alone().await;
    rows::assert_view_equals_users(&pipeline, Duration::from_secs(60)).await;
    let plain = run(&pipeline, PLAIN_PAIRS, false).await;
    assert!(
        plain.stale > 0,
        "reads without a version are never stale, so this test shows nothing"
    );
    rows::assert_view_equals_users(&pipeline, Duration::from_secs(60)).await;

    let start = Instant::now();
    let asked = run(&pipeline, PAIRS, true).await;
    assert_eq!((asked.pairs, asked.stale), (PAIRS, 0), "{}", rows::logs(&pipeline));
    println!(
        "{} pairs in {:?}: 0 stale; without minVersion {} of {} were stale",
        asked.pairs,
        start.elapsed(),
        plain.stale,
        plain.pairs
    );
}

struct Tally {
    pairs: u64,
    stale: u64,
}

/// Makes `pairs` writes, each followed by a read. If `names_version`, the read names the version of the write.
async fn run(pipeline: &Pipeline, pairs: u64, names_version: bool) -> Tally {
    let clients = (0..CLIENTS).map(|number| {
        let client = Client {
            rest: Rest::of(pipeline),
            random: Random::seeded(number),
            department: format!("읽기 {names_version} {number}"),
            users: Vec::new(),
            post: None,
        };
        tokio::spawn(client.run(pairs / CLIENTS, names_version))
    });
    let mut all = Tally { pairs: 0, stale: 0 };
    for client in clients.collect::<Vec<_>>() {
        let tally = client.await.expect("a client that does not panic");
        let tally = tally.unwrap_or_else(|err| panic!("{err:#}\n{}", rows::logs(pipeline)));
        all.pairs += tally.pairs;
        all.stale += tally.stale;
    }
    all
}

struct Client {
    rest: Rest,
    random: Random,
    department: String,
    /// The users that should exist, each with the body that was written last.
    users: Vec<(i64, Value)>,
    /// A post of the first user. This user is never deleted.
    post: Option<i64>,
}

/// A user that was just written, with the version of that write. Without a body the user was deleted.
struct Written {
    id: i64,
    version: i64,
    body: Option<Value>,
}

impl Client {
    async fn run(mut self, pairs: u64, names_version: bool) -> anyhow::Result<Tally> {
        let mut stale = 0;
        for _ in 0..pairs {
            let written = self.write().await?;
            if !self.shows(&written, names_version).await? {
                stale += 1;
            }
        }
        Ok(Tally { pairs, stale })
    }

    async fn write(&mut self) -> anyhow::Result<Written> {
        let choice = self.random.below(10);
        if self.users.len() < 2 || choice < 3 {
            let body = user("강감찬", &self.department, "ACTIVE");
            let (created, version) = self.rest.change_users(Method::POST, "", Some(&body)).await?;
            let id = id(&created);
            if self.post.is_none() {
                let post = self.rest.create_post("읽기", id).await?;
                self.post = post["id"].as_i64();
            }
            self.users.push((id, body.clone()));
            return Ok(Written {
                id,
                version,
                body: Some(body),
            });
        }
        if choice < 8 {
            let index = usize::try_from(self.random.below(self.users.len().min(5) as u64))?;
            let (id, body) = &mut self.users[index];
            body["name"] = format!("이순신 {}", self.random.next_u64()).into();
            let path = format!("/{id}");
            let (_, version) = self.rest.change_users(Method::PUT, &path, Some(body)).await?;
            return Ok(Written {
                id: *id,
                version,
                body: Some(body.clone()),
            });
        }
        let (id, _) = self.users.swap_remove(self.users.len() - 1);
        let (_, version) = self.rest.change_users(Method::DELETE, &format!("/{id}"), None).await?;
        Ok(Written {
            id,
            version,
            body: None,
        })
    }

    /// Whether a read shows what was written. It reads the user, the list of the user's department, or the user's post.
    async fn shows(&mut self, written: &Written, names_version: bool) -> anyhow::Result<bool> {
        let Written { id, version, body } = written;
        let query = |least: String| {
            if names_version {
                format!("?minVersion={least}&wait=10000")
            } else {
                String::new()
            }
        };
        let name = body.as_ref().map(|body| &body["name"]);
        if let Some(post) = self.post
            && self.users.first().is_some_and(|(author, _)| author == id)
            && self.random.below(2) == 0
        {
            let path = format!("/{post}{}", query(version.to_string()));
            return match self.rest.ask_posts(&path).await? {
                (StatusCode::OK, post) => Ok(Some(&post["authorName"]) == name),
                (status, answer) => bail!("GET {path}: {status}: {answer}"),
            };
        }
        if self.random.below(4) == 0 {
            let path = format!(
                "/users/department/{}{}",
                self.department,
                query(format!("{id}:{version}"))
            );
            let (status, list) = self.rest.ask_posts(&path).await?;
            let Some(list) = list.as_array().filter(|_| status == StatusCode::OK) else {
                bail!("GET {path}: {status}: {list}");
            };
            let wanted = Value::from(*version);
            let shown = list.iter().find(|user| user["userId"] == *id);
            return Ok(shown.map(|user| (&user["version"], &user["name"])) == name.map(|name| (&wanted, name)));
        }
        let path = format!("/users/{id}{}", query(version.to_string()));
        match (self.rest.ask_posts(&path).await?, name) {
            ((StatusCode::OK, user), Some(name)) => Ok(user["version"] == *version && user["name"] == *name),
            ((StatusCode::OK, _), None) | ((StatusCode::NOT_FOUND, _), Some(_)) => Ok(false),
            ((StatusCode::NOT_FOUND, _), None) => Ok(true),
            ((status, answer), _) => bail!("GET {path}: {status}: {answer}"),
        }
    }
}
