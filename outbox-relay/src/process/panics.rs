//! A panic anywhere ends the process.
//!
//! Parts of the relay live in threads and tasks that nobody waits for: the guard, maintenance, the admin port. One that panicked would leave
//! the others running, and `/readyz` green over a relay that confirms nothing any more. So whoever panics ends all of it: the
//! checkpoint is in Kafka's transaction, and the next start goes on from there as after any other death. Nothing is confirmed on the way.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use service::Readiness;

/// Exit code of a process that a panic ended.
pub const EXIT_CODE: i32 = 70;
/// For how long the process may take to print and to exit in order; then it ends without.
const EXIT_PATIENCE: Duration = Duration::from_millis(900);

static READINESS: OnceLock<Readiness> = OnceLock::new();
static HAS_PANICKED: AtomicBool = AtomicBool::new(false);

/// What is not ready any more once something has panicked.
pub fn report_to(readiness: &Readiness) {
    // There is one in a process.
    let _first = READINESS.set(readiness.clone());
}

/// From now on a panic in any thread or task prints its message and ends the process with [`EXIT_CODE`].
pub fn end_the_process() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        HAS_PANICKED.store(true, Ordering::Release);
        // First of all, since whatever comes may wait for a lock that the thread which panicked holds.
        let watchdog = std::thread::Builder::new().spawn(|| {
            std::thread::sleep(EXIT_PATIENCE);
            exit_at_once();
        });
        say();
        // With a backtrace it may take longer than the process may.
        print(panic);
        if watchdog.is_err() {
            exit_at_once();
        }
        if let Some(readiness) = READINESS.get() {
            readiness.not_ready("relay", "it panicked, and ends");
        }
        std::process::exit(EXIT_CODE);
    }));
}

/// Does not return where a panic is about to end the process: no other exit code may come before its own.
pub fn go_first() {
    while HAS_PANICKED.load(Ordering::Acquire) {
        std::thread::park();
    }
}

/// Ends the process without its exit handlers, which may wait for what the thread that panicked holds.
#[expect(
    unsafe_code,
    reason = "std ends a process at once by SIGABRT only, which is no exit code"
)]
fn exit_at_once() -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(EXIT_CODE) }
}

#[expect(clippy::print_stderr, reason = "the log may be what panicked")]
fn say() {
    eprintln!(
        "outbox-relay: a bug: it panicked; nothing was confirmed to Postgres beyond what is published, and `outbox-relay run` goes on from the checkpoint; please report the message below"
    );
}
