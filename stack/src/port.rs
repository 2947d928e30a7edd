//! Ports on the loopback interface.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::bail;

use crate::random::Random;

/// Free ports are taken from here: below Linux's usual range for outgoing connections (32768 and up), where a client that keeps
/// trying to reach a part that is being restarted could be given that very port as its own.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

static HANDED_OUT: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// Whether somebody could listen on 127.0.0.1:`port` right now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// A free port that this process has not handed out before.
///
/// # Errors
/// All are taken.
pub fn free() -> anyhow::Result<u16> {
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    let handed_out = handed_out.get_or_insert_default();
    let mut random = Random::from_entropy();
    for _ in 0..10_000 {
        let port = FIRST + u16::try_from(random.below(u64::from(LAST - FIRST + 1)))?;
        if handed_out.insert(port) && is_free(port) {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {LAST}")
}

/// `wanted`, or a free port where `wanted` is 0.
///
/// # Errors
/// None is free.
pub fn given_or_free(wanted: u16) -> anyhow::Result<u16> {
    if wanted == 0 { free() } else { Ok(wanted) }
}
