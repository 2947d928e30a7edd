//! The wish to stop, seen by every task of a program.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A handle that tells when the program is to stop. All clones see the same wish. Once it is made, it stays.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Makes the wish to stop.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

impl Shutdown {
    /// A handle and its trigger. This is for tests, and for programs that stop for reasons of their own.
    #[must_use]
    pub fn manual() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (Trigger(sender), Self(receiver))
    }

    /// Triggered by SIGTERM or SIGINT. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The operating system refused to install a signal handler.
    pub fn on_signals() -> std::io::Result<Self> {
        let (trigger, shutdown) = Self::manual();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            trigger.fire();
            // The sender stays alive, so that a waiting handle never mistakes its end for a wish.
            std::future::pending::<()>().await;
        });
        Ok(shutdown)
    }

    /// Whether the program is to stop.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the program is to stop. Cancel-safe.
    pub async fn triggered(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            // The trigger is gone and was never fired.
            std::future::pending::<()>().await;
        }
    }
}

impl Trigger {
    /// Tells every handle to stop.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::Shutdown;

    #[tokio::test]
    async fn every_clone_sees_the_wish_once_made() {
        let (trigger, mut first) = Shutdown::manual();
        let mut second = first.clone();
        assert!(!first.is_triggered());
        trigger.fire();
        first.triggered().await;
        second.triggered().await;
        assert!(second.is_triggered());
    }
}
