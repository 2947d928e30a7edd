//! The resources that a process has used, as Linux counts them in /proc (proc_pid_stat(5)).

use std::fs;

use anyhow::Context;
use stack::Process;

/// `/proc/PID/stat` counts in hundredths of a second on every Linux (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// A part of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// User and system time of the process, in ticks.
    own_ticks: u64,
    /// User and system time of the process's children that have ended, in ticks.
    ended_children_ticks: u64,
}

/// User and system time of a process since its start, in seconds, with a resolution of 0.01.
///
/// # Errors
/// It has ended.
pub(crate) fn cpu_seconds(process: &Process) -> anyhow::Result<f64> {
    let stat = stat_of(process.id()).with_context(|| format!("{} has ended", process.name()))?;
    Ok(stat.own_ticks as f64 / TICKS_PER_SECOND)
}

/// As [`cpu_seconds`], including all children, also those that have ended. PostgreSQL has a process for each connection.
///
/// # Errors
/// It has ended.
pub(crate) fn cpu_seconds_with_children(process: &Process) -> anyhow::Result<f64> {
    let parent = process.id();
    let stat = stat_of(parent).with_context(|| format!("{} has ended", process.name()))?;
    let children: u64 = fs::read_dir("/proc")?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(stat_of)
        .filter(|child| child.parent == parent)
        .map(|child| child.own_ticks)
        .sum();
    Ok((stat.own_ticks + stat.ended_children_ticks + children) as f64 / TICKS_PER_SECOND)
}

/// As [`cpu_seconds`], for this process.
///
/// # Errors
/// There is no /proc.
pub(crate) fn own_cpu_seconds() -> anyhow::Result<f64> {
    let stat = stat_of(std::process::id()).context("no /proc/PID/stat")?;
    Ok(stat.own_ticks as f64 / TICKS_PER_SECOND)
}

/// The most physical memory that a process has had at once, in MB (10⁶ bytes).
///
/// # Errors
/// It has ended.
pub(crate) fn peak_memory_mb(process: &Process) -> anyhow::Result<f64> {
    status_mb(process, "VmHWM:")
}

/// The physical memory that a process has now, in MB (10⁶ bytes).
///
/// # Errors
/// It has ended.
pub(crate) fn memory_mb(process: &Process) -> anyhow::Result<f64> {
    status_mb(process, "VmRSS:")
}

fn status_mb(process: &Process, field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))
        .with_context(|| format!("{} has ended", process.name()))?;
    let kibibytes = parse_kibibytes(&status, field).with_context(|| format!("no {field} in /proc"))?;
    Ok(kibibytes as f64 * 1024.0 / 1e6)
}

fn stat_of(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The fields follow the name in parentheses. The name itself may contain blanks and parentheses.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The manual numbers the fields from 1. The first field after the name has the number 3.
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own_ticks: ticks(14)? + ticks(15)?,
        ended_children_ticks: ticks(16)? + ticks(17)?,
    })
}

fn parse_kibibytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Stat, parse_kibibytes, parse_stat};

    #[test]
    fn times_are_found_after_a_name_with_blanks() {
        let line = "42 (a (b) c) S 7 42 42 0 -1 4194560 100 200 0 0 11 22 33 44 20 0 5 0 900 1 2";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                parent: 7,
                own_ticks: 33,
                ended_children_ticks: 77
            })
        );
        assert_eq!(parse_stat("42 (short) S 7"), None);
    }

    #[test]
    fn the_peak_is_read_in_kibibytes() {
        assert_eq!(
            parse_kibibytes("VmPeak:\t 9 kB\nVmHWM:\t   25012 kB\nVmRSS:\t 1 kB\n", "VmHWM:"),
            Some(25012)
        );
    }
}
