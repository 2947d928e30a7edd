//! Waits until something is true, without guessing how long that takes.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Pauses between two questions. They grow by half each time: what is soon true is soon seen, and a long wait costs little. Each question may
/// cost a new process of PostgreSQL's or a new consumer, and many tests wait at the same time.
struct Pauses(Duration);

impl Pauses {
    const FIRST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_millis(200);

    fn new() -> Self {
        Self(Self::FIRST)
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 3 / 2).min(Self::LONGEST);
    }
}

/// Asks again and again until the answer is `Some`. Returns the value in it.
///
/// # Panics
/// When `deadline` has passed; the message is `what`.
pub async fn eventually<T, F, Fut>(deadline: Duration, what: &str, mut ask: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    let mut pauses = Pauses::new();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            start.elapsed() < deadline,
            "still not so after {} s: {what}",
            deadline.as_secs()
        );
        pauses.pause().await;
    }
}

/// As [`eventually`], but for a question that fails until it succeeds.
///
/// # Errors
/// The last failure, when `deadline` has passed.
pub async fn eventually_ok<T, F, Fut>(deadline: Duration, what: &str, mut ask: F) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = anyhow::Result<T>>,
{
    let start = Instant::now();
    let mut pauses = Pauses::new();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(err) if start.elapsed() >= deadline => {
                return Err(err).with_context(|| format!("still not so after {} s: {what}", deadline.as_secs()));
            }
            Err(_) => pauses.pause().await,
        }
    }
}
