//! Makes changes at a fixed rate. Each change has a time at which it is due, whether or not the changes before it have been answered.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;

/// Makes `rate` changes per second for `seconds`; the clients take turns. Returns how many changes per second were made. If a client still
/// waits for an answer when its next change is due, it makes that change as soon as the answer is there.
///
/// # Errors
/// The first change that failed.
pub(crate) async fn change_at_rate<C>(
    clients: &mut [C],
    rate: u32,
    seconds: u32,
    change: impl AsyncFn(&mut C, u64) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let total = u64::from(rate) * u64::from(seconds);
    let step = clients.len();
    let (start, change) = (Instant::now(), &change);
    let turns = clients.iter_mut().zip(0_u64..).map(|(client, first)| async move {
        for index in (first..total).step_by(step) {
            tokio::time::sleep_until(start + due(index, rate)).await;
            change(client, index).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(turns).await?;
    // The last change was due one interval before the end of the time.
    let elapsed = start.elapsed().max(Duration::from_secs(u64::from(seconds)));
    Ok(total as f64 / elapsed.as_secs_f64())
}

/// How long after the start the change number `index` is due. The first change has the number 0.
fn due(index: u64, rate: u32) -> Duration {
    let rate = u64::from(rate);
    Duration::from_secs(index / rate) + Duration::from_nanos(index % rate * 1_000_000_000 / rate)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use super::{change_at_rate, due};

    #[test]
    fn changes_are_due_at_equal_intervals() {
        assert_eq!(due(0, 200), Duration::ZERO);
        assert_eq!(due(1, 200), Duration::from_millis(5));
        assert_eq!(due(401, 200), Duration::from_millis(2005));
    }

    #[tokio::test]
    async fn every_change_is_made_once() {
        let made = RefCell::new(Vec::new());
        let mut clients = [(), (), ()];
        let rate = change_at_rate(&mut clients, 100, 1, async |(), index| {
            made.borrow_mut().push(index);
            Ok(())
        })
        .await
        .unwrap();
        let mut made = made.into_inner();
        made.sort_unstable();
        assert_eq!(made, (0..100).collect::<Vec<u64>>());
        assert!(rate <= 100.0);
    }
}
