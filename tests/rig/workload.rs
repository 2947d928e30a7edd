//! Clients that change users and write posts at a steady rate, and remember what they were told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::StatusCode;
use stack::random::Random;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::rest::{Rest, Unexpected, id, user};

/// How many clients there are. Each changes only its own users, one change after the other, so the changes of a user have an order.
const CLIENTS: u32 = 20;

/// A change that a client was told has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Created or updated. `version` is the version in the answer.
    Written {
        id: i64,
        version: i64,
    },
    Deleted {
        id: i64,
    },
}

/// Running clients.
pub struct Workload {
    clients: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    attempts: AtomicU64,
    answers: Mutex<Vec<Answered>>,
}

struct Client {
    rest: Rest,
    random: Random,
    /// The users that should exist, each with the body that was written last.
    users: Vec<(i64, serde_json::Value)>,
}

impl Workload {
    /// Starts clients that together make `per_second` changes per second.
    pub fn start(rest: &Rest, per_second: u32) -> Self {
        let shared = Arc::new(Shared::default());
        let interval = Duration::from_secs(1) * CLIENTS / per_second;
        let clients = (0..CLIENTS)
            .map(|number| {
                let client = Client {
                    rest: rest.clone(),
                    random: Random::seeded(u64::from(number)),
                    users: Vec::new(),
                };
                tokio::spawn(client.run(interval, Arc::clone(&shared)))
            })
            .collect();
        Self { clients, shared }
    }

    /// How many changes were tried so far, whether or not they were answered.
    pub fn attempts(&self) -> u64 {
        self.shared.attempts.load(Ordering::Relaxed)
    }

    /// How many changes were answered with success so far.
    pub fn answered(&self) -> usize {
        self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends the clients. Returns the changes of users that were answered with success.
    pub async fn stop(self) -> Vec<Answered> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client that does not panic");
        }
        let answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.clone()
    }
}

impl Client {
    async fn run(mut self, interval: Duration, shared: Arc<Shared>) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !shared.stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            shared.attempts.fetch_add(1, Ordering::Relaxed);
            if let Some(answer) = self.change().await {
                shared
                    .answers
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(answer);
            }
        }
    }

    /// Makes one change. None: it failed, nobody knows whether it was made, or it was a change of a post.
    async fn change(&mut self) -> Option<Answered> {
        let choice = self.random.below(20);
        if self.users.is_empty() || choice < 8 {
            return self.create().await;
        }
        let index = usize::try_from(self.random.below(self.users.len() as u64)).ok()?;
        match choice {
            8..15 => self.update(index).await,
            15..17 => self.delete(index).await,
            _ => {
                // The answer is not needed, because the test compares the posts with their outbox.
                drop(self.rest.create_post("부하 시험", self.users[index].0).await);
                None
            }
        }
    }

    async fn create(&mut self) -> Option<Answered> {
        let body = user("강감찬", self.random.choose(&["개발팀", "기획팀", "Sales"]), "ACTIVE");
        let answer = self.rest.create_user(&body).await.ok()?;
        self.users.push((id(&answer), body));
        Some(Answered::Written {
            id: id(&answer),
            version: answer["version"].as_i64()?,
        })
    }

    async fn update(&mut self, index: usize) -> Option<Answered> {
        let (id, body) = &mut self.users[index];
        body["name"] = format!("이순신 {}", self.random.below(1000)).into();
        body["status"] = self.random.choose(&["ACTIVE", "INACTIVE"]).into();
        match self.rest.update_user(*id, body).await {
            Ok(answer) => Some(Answered::Written {
                id: *id,
                version: answer["version"].as_i64()?,
            }),
            Err(err) => {
                self.forget_if_gone(index, &err);
                None
            }
        }
    }

    async fn delete(&mut self, index: usize) -> Option<Answered> {
        let id = self.users[index].0;
        match self.rest.delete_user(id).await {
            Ok(()) => {
                self.users.swap_remove(index);
                Some(Answered::Deleted { id })
            }
            Err(err) => {
                self.forget_if_gone(index, &err);
                None
            }
        }
    }

    /// Forgets a user whose deletion was made although its answer was lost.
    fn forget_if_gone(&mut self, index: usize, err: &anyhow::Error) {
        let status = err.downcast_ref::<Unexpected>().map(|answer| answer.status);
        if status == Some(StatusCode::NOT_FOUND) {
            self.users.swap_remove(index);
        }
    }
}
