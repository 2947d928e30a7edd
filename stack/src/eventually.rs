//! Waits until something is true, without guessing how long that takes.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Context;

/// How often [`eventually`] asks again.
const INTERVAL: Duration = Duration::from_millis(50);

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
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            start.elapsed() < deadline,
            "still not so after {} s: {what}",
            deadline.as_secs()
        );
        tokio::time::sleep(INTERVAL).await;
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
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(err) if start.elapsed() >= deadline => {
                return Err(err).with_context(|| format!("still not so after {} s: {what}", deadline.as_secs()));
            }
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}
