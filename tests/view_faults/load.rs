//! Clients that create, change and delete users and posts at a small, steady rate, until they are told to pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use stack::Pipeline;
use stack::random::Random;

use rig::rest::{Rest, Unexpected, id, user};

const CLIENTS: u64 = 6;
/// The time between two changes of one client.
const INTERVAL: Duration = Duration::from_millis(400);
/// If a client has so many users or posts, it deletes as often as it creates.
const OWNED_BEFORE_DELETING: usize = 15;

/// Running clients. They have a thread of their own, because each of the tests that share them has its own runtime.
pub(crate) struct Load {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// How many tests want a pause.
    pauses: AtomicU64,
    /// How many changes are being made.
    under_way: AtomicU64,
    changes: AtomicU64,
}

/// As long as one of these exists, nothing changes.
pub(crate) struct Pause<'a>(&'a Shared);

impl Load {
    pub(crate) fn start(pipeline: &Pipeline) -> Self {
        let shared = Arc::new(Shared::default());
        let (clients, rest) = (Arc::clone(&shared), Rest::of(pipeline));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let all = (0..CLIENTS).map(|number| Client::new(number, &rest).run(Arc::clone(&clients)));
            runtime
                .expect("a runtime")
                .block_on(futures_util::future::join_all(all));
        });
        Self { shared }
    }

    /// How many changes were answered with success.
    pub(crate) fn changes(&self) -> u64 {
        self.shared.changes.load(Ordering::SeqCst)
    }

    /// Waits until no change is being made. No change begins before the returned value is dropped.
    pub(crate) async fn pause(&self) -> Pause<'_> {
        self.shared.pauses.fetch_add(1, Ordering::SeqCst);
        let pause = Pause(&self.shared);
        while self.shared.under_way.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        pause
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.pauses.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Client {
    rest: Rest,
    random: Random,
    /// Each user with the body that was written last.
    users: Vec<(i64, serde_json::Value)>,
    posts: Vec<i64>,
}

impl Client {
    fn new(number: u64, rest: &Rest) -> Self {
        Self {
            rest: rest.clone(),
            random: Random::seeded(number),
            users: Vec::new(),
            posts: Vec::new(),
        }
    }

    async fn run(mut self, shared: Arc<Shared>) {
        while !shared.stop.load(Ordering::SeqCst) {
            tokio::time::sleep(INTERVAL).await;
            // This order matters: whoever pauses first raises `pauses`, and then reads `under_way`.
            shared.under_way.fetch_add(1, Ordering::SeqCst);
            if shared.pauses.load(Ordering::SeqCst) == 0 && self.change().await.is_ok() {
                shared.changes.fetch_add(1, Ordering::SeqCst);
            }
            shared.under_way.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Makes one change. If the answer is lost, the change may have been made; the tables show that.
    async fn change(&mut self) -> anyhow::Result<()> {
        match self.random.below(20) {
            0..6 => self.change_users().await,
            6..11 if !self.users.is_empty() => {
                let index = self.random_index(self.users.len());
                let (id, body) = &mut self.users[index];
                body["department"] = self.random.choose(&["개발팀", "기획팀", "Sales"]).into();
                body["status"] = self.random.choose(&["ACTIVE", "INACTIVE"]).into();
                let answer = self.rest.update_user(*id, body).await.map(drop);
                if is_not_found(&answer) {
                    self.users.swap_remove(index);
                }
                answer
            }
            11..16 => self.change_posts().await,
            _ if !self.posts.is_empty() => {
                let index = self.random_index(self.posts.len());
                let post = self.posts[index];
                let author = self.users.first().map_or(1, |(id, _)| *id);
                self.rest.update_post(post, "고친 글", author).await.map(drop)
            }
            _ => self.change_users().await,
        }
    }

    async fn change_users(&mut self) -> anyhow::Result<()> {
        if self.users.len() < OWNED_BEFORE_DELETING || self.random.below(2) == 0 {
            let department = self.random.choose(&["개발팀", "기획팀", "Sales"]);
            let body = user("강감찬", department, "ACTIVE");
            let answer = self.rest.create_user(&body).await?;
            self.users.push((id(&answer), body));
            return Ok(());
        }
        let index = self.random_index(self.users.len());
        let answer = self.rest.delete_user(self.users[index].0).await;
        if answer.is_ok() || is_not_found(&answer) {
            self.users.swap_remove(index);
        }
        answer
    }

    async fn change_posts(&mut self) -> anyhow::Result<()> {
        if self.posts.len() < OWNED_BEFORE_DELETING || self.random.below(2) == 0 {
            let Some((author, _)) = self.users.first() else {
                return self.change_users().await;
            };
            let answer = self.rest.create_post("부하 시험", *author).await?;
            self.posts.push(id(&answer));
            return Ok(());
        }
        let index = self.random_index(self.posts.len());
        // The client forgets the post in any case: it is gone, or nobody knows.
        let post = self.posts.swap_remove(index);
        self.rest.delete_post(post).await
    }

    /// A random index of a list with `count` entries.
    fn random_index(&mut self, count: usize) -> usize {
        usize::try_from(self.random.below(count as u64)).unwrap_or_default()
    }
}

/// Whether the API answered that there is no such user. Then a former deletion was made although its answer was lost.
fn is_not_found(answer: &anyhow::Result<()>) -> bool {
    let refusal = answer.as_ref().err().and_then(|err| err.downcast_ref::<Unexpected>());
    refusal.is_some_and(|answer| answer.status == StatusCode::NOT_FOUND)
}
