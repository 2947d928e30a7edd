//! What the loop waits for, and for how long at most.
//!
//! There are three reasons to wait: everything that was read is decoded, Kafka has to answer before more may be sent, or an operator has paused the
//! relay. [`Streaming::wait`] is the one place where the loop sleeps. Each reason only says whether the socket is read meanwhile, and when to wake up.

use std::time::Duration;

use anyhow::Context as _;
use service::Shutdown;
use tokio::time::{Instant, sleep_until};

use super::Streaming;
use crate::intake::batch::Situation;
use crate::process::faults;
use crate::process::stop::RelayError;
use crate::relay::unpublished::seconds_since;

/// Longest wait: the loop looks at least this often whether server, guard and topics are still as they should be.
const TICK: Duration = Duration::from_secs(1);
/// The socket is not read for so long after a commit was ordered. The kernel gathers what comes, and the next read gets it in one piece.
const KERNEL_GATHERS_FOR: Duration = Duration::from_millis(50);
/// How much is read ahead while a commit is under way, in bytes. This bounds the relay's memory while Kafka is slow.
const READ_AHEAD_BYTES: usize = 4 << 20;
/// Longest wait while no more may be read ahead. It is shorter than a tick: a status that becomes due during the wait is late by at most this.
const WAIT_WHILE_READ_AHEAD_IS_FULL: Duration = Duration::from_millis(200);
/// While catching up, a short nap lets the server send more at once: a third less CPU, a quarter more rows.
const NAP: Duration = Duration::from_micros(500);
/// A read that got this many bytes needs no nap before the next one.
const NAP_BELOW_BYTES: usize = 64 * 1024;
/// A source transaction with more rows than this is a large one.
const LARGE_TRANSACTION_ROWS: u64 = 1_000;
/// A relay whose newest row committed longer ago is catching up.
const CATCHING_UP_AFTER_SECONDS: f64 = 1.0;

/// What is done with the socket during a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    Read,
    LeaveAlone,
}

/// Whether the relay was paused when the loop asked. The wait does not ask a second time: it would not notice a `resume` that comes between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    On,
    Off,
}

impl Streaming<'_> {
    /// Everything that was read is decoded: closes the batch, or reads more.
    pub(super) async fn read_or_close_batch(&mut self, shutdown: &mut Shutdown) -> Result<(), RelayError> {
        self.stream.reserve_for_next_frame().context("replication stream")?;
        let is_behind = self.is_behind();
        self.nap_while_catching_up(is_behind);
        let read = self.stream.try_read()?;
        if let Some(bytes) = read {
            faults::point("receive.after")?;
            self.note_read(bytes);
        } else {
            self.last_read_bytes = 0;
        }
        let situation = Situation {
            is_silent: read.is_none(),
            is_between_transactions: self.intake.progress.is_between_transactions(),
            is_behind,
        };
        if self.intake.batch.should_close(situation) {
            return self.close_batch();
        }
        if read.is_some() {
            return Ok(());
        }
        if self.idle_checkpoint_is_due() {
            return self.close_batch();
        }
        let until = match self.intake.batch.closes_at(is_behind) {
            Some(batch_due) => Instant::from_std(batch_due).min(self.next_tick()),
            None => self.next_tick(),
        };
        self.wait(Socket::Read, until, Pause::Off, shutdown).await
    }

    /// Waits, since nothing may be sent before Kafka has acknowledged or committed what was sent.
    pub(super) async fn wait_for_kafka(&mut self, shutdown: &mut Shutdown) -> Result<(), RelayError> {
        let ordered_at = self.publisher.ending_since();
        let kernel_gathers = ordered_at.is_some_and(|ordered_at| ordered_at.elapsed() < KERNEL_GATHERS_FOR);
        if kernel_gathers {
            let until = Instant::now() + KERNEL_GATHERS_FOR;
            return self.wait(Socket::LeaveAlone, until, Pause::Off, shutdown).await;
        }
        if !self.may_read_ahead() {
            let until = Instant::now() + WAIT_WHILE_READ_AHEAD_IS_FULL;
            return self.wait(Socket::LeaveAlone, until, Pause::Off, shutdown).await;
        }
        self.wait(Socket::Read, self.next_tick(), Pause::Off, shutdown).await
    }

    /// Ends the open transaction of a relay that an operator has paused, and then only answers Postgres, so that the relay keeps the slot.
    pub(super) async fn wait_while_paused(&mut self, shutdown: &mut Shutdown) -> Result<(), RelayError> {
        if !self.intake.batch.is_empty() && self.publisher.can_send() {
            return self.close_batch();
        }
        let socket = if self.may_read_ahead() {
            Socket::Read
        } else {
            Socket::LeaveAlone
        };
        self.wait(socket, self.next_tick(), Pause::On, shutdown).await
    }

    /// Waits for the first thing that happens, and takes note of it.
    async fn wait(
        &mut self,
        socket: Socket,
        until: Instant,
        pause: Pause,
        shutdown: &mut Shutdown,
    ) -> Result<(), RelayError> {
        if socket == Socket::LeaveAlone {
            // While we don't read the socket we can't see keepalives, so the silence must not count as a timeout.
            self.last_heard_at = Instant::now();
        }
        tokio::select! {
            commit_step = self.publisher.next_commit_step() => self.note_commit_step(commit_step?)?,
            bytes = self.stream.read(), if socket == Socket::Read => self.note_read(bytes?),
            // The producers may have broken during the pause, so the next turn looks at them before it uses them.
            () = self.pause.changed(), if pause == Pause::On => self.status_due = Instant::now(),
            () = sleep_until(until) => {}
            () = shutdown.triggered() => {}
        }
        Ok(())
    }

    /// Blocks this thread on purpose: it has nothing else to do, and the runtime's timers are too coarse for it.
    fn nap_while_catching_up(&self, is_behind: bool) {
        let last_read_was_small = self.last_read_bytes > 0 && self.last_read_bytes < NAP_BELOW_BYTES;
        if is_behind && last_read_was_small && self.stream.buffers_while_napping() {
            std::thread::sleep(NAP);
        }
    }

    fn note_read(&mut self, bytes: usize) {
        self.last_read_bytes = bytes;
        self.last_heard_at = Instant::now();
    }

    fn may_read_ahead(&self) -> bool {
        self.stream.buffer().len() < READ_AHEAD_BYTES
    }

    fn next_tick(&self) -> Instant {
        self.status_due.min(Instant::now() + TICK)
    }

    fn is_behind(&self) -> bool {
        self.intake.progress.open_rows() > LARGE_TRANSACTION_ROWS
            || (self.intake.newest_commit_us > 0
                && seconds_since(self.intake.newest_commit_us) > CATCHING_UP_AFTER_SECONDS
                && self.last_read_bytes > 0)
    }
}
