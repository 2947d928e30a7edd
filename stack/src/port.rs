//! Ports on the loopback interface.

use std::collections::VecDeque;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::bail;

use crate::random::Random;

/// Free ports are taken from here: below Linux's usual range for outgoing connections (32768 and up), where a client that keeps
/// trying to reach a part that is being restarted could be given that very port as its own.
const FIRST: u16 = 20_000;
const BLOCKS: u16 = 60;
/// A process takes ports block by block, and has its blocks to itself. Otherwise another process could take the port of a part that is being restarted.
const BLOCK_PORTS: u16 = 200;

static OWNED: Mutex<Owned> = Mutex::new(Owned::nothing());

/// The blocks of this process.
struct Owned {
    /// Those that were not handed out yet.
    ports: VecDeque<u16>,
    /// One for each block, for as long as the process lives.
    locks: Vec<File>,
}

impl Owned {
    const fn nothing() -> Self {
        Self {
            ports: VecDeque::new(),
            locks: Vec::new(),
        }
    }

    /// Takes a block that no process has; none is left: `false`.
    fn take_block(&mut self) -> bool {
        // Not always the first ones: a client of an earlier run that is just ending could still know their ports.
        let begin = Random::from_entropy().below(u64::from(BLOCKS));
        let begin = u16::try_from(begin).unwrap_or_default();
        let mut blocks = (0..BLOCKS).map(|place| (begin + place) % BLOCKS);
        let claimed = blocks.find_map(|block| Some((block, lock(block)?)));
        let Some((block, lock)) = claimed else { return false };
        let first = FIRST + block * BLOCK_PORTS;
        self.ports.extend(first..first + BLOCK_PORTS);
        self.locks.push(lock);
        true
    }
}

/// The lock of a block; none: another process has it.
fn lock(block: u16) -> Option<File> {
    let path = std::env::temp_dir().join(format!("outbox-ports-{block}.lock"));
    let file = File::options().create(true).append(true).open(path).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Whether somebody could listen on 127.0.0.1:`port` right now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// A free port that this process has not handed out before, and that no other process hands out.
///
/// # Errors
/// All are taken.
pub fn free() -> anyhow::Result<u16> {
    let mut owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        while let Some(port) = owned.ports.pop_front() {
            if is_free(port) {
                return Ok(port);
            }
        }
        if !owned.take_block() {
            bail!("no free port between {FIRST} and {}", FIRST + BLOCKS * BLOCK_PORTS - 1);
        }
    }
}

/// `wanted`, or a free port where `wanted` is 0.
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
        assert!(lock(block).is_none(), "the block of port {port} is taken");
    }
}
