//! Ports on the loopback interface.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};

use crate::random::Random;
use crate::{cache, process};

/// Free ports are taken from here on. They are below the range that Linux usually uses for outgoing connections (32768 and up). A client that keeps
/// trying to reach a part that is being restarted could otherwise get that very port as its own.
const FIRST: u16 = 20_000;
const BLOCKS: u16 = 60;
/// A process takes whole blocks of ports, so that no other process can take the port of a part that is being restarted.
const BLOCK_PORTS: u16 = 200;

static OWNED: Mutex<Owned> = Mutex::new(Owned::nothing());

/// The blocks of this process.
struct Owned {
    /// The ports that were not handed out yet.
    ports: VecDeque<u16>,
    /// The lock of each block. It is held as long as the process lives.
    locks: Vec<File>,
}

impl Owned {
    const fn nothing() -> Self {
        Self {
            ports: VecDeque::new(),
            locks: Vec::new(),
        }
    }

    /// Takes a block that no other process has.
    ///
    /// # Errors
    /// None is left, or the locks cannot be made.
    fn take_block(&mut self) -> anyhow::Result<()> {
        // The search begins at a random block. The first blocks may still be known to a client of an earlier run that is just ending.
        let begin = Random::from_entropy().below(u64::from(BLOCKS));
        let begin = u16::try_from(begin).unwrap_or_default();
        for block in (0..BLOCKS).map(|place| (begin + place) % BLOCKS) {
            if let Some(lock) = lock(block)? {
                let first = FIRST + block * BLOCK_PORTS;
                self.ports.extend(first..first + BLOCK_PORTS);
                self.locks.push(lock);
                return Ok(());
            }
        }
        bail!("no free port between {FIRST} and {}", FIRST + BLOCKS * BLOCK_PORTS - 1);
    }
}

/// Tries to lock a block. None: another process has it.
fn lock(block: u16) -> anyhow::Result<Option<File>> {
    let directory = cache::directory()?.join("ports");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let file = process::append(&directory.join(format!("{block}.lock")))?;
    Ok(file.try_lock().is_ok().then_some(file))
}

/// Whether a program could listen on 127.0.0.1:`port` right now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// A free port that this process has not handed out before, and that no other process hands out.
///
/// # Errors
/// All are taken, or the cache is not writable.
pub fn free() -> anyhow::Result<u16> {
    let mut owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        while let Some(port) = owned.ports.pop_front() {
            if is_free(port) {
                return Ok(port);
            }
        }
        owned.take_block()?;
    }
}

/// Returns `wanted`, or a free port if `wanted` is 0.
///
/// # Errors
/// None is free.
pub fn given_or_free(wanted: u16) -> anyhow::Result<u16> {
    if wanted == 0 { free() } else { Ok(wanted) }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_PORTS, FIRST, free, lock};

    #[test]
    fn a_block_belongs_to_one_process_at_a_time() {
        let port = free().expect("a port");
        let block = (port - FIRST) / BLOCK_PORTS;
        assert!(
            lock(block).expect("a file").is_none(),
            "the block of port {port} is taken"
        );
    }
}
