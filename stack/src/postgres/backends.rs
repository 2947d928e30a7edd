//! The processes that a server has for its connections.

use std::fs;

use rustix::process::Pid;

/// The processes whose parent is `parent`.
pub(super) fn children_of(parent: u32) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| stat_of(*pid).is_some_and(|(_, its_parent)| its_parent == parent))
        .filter_map(Pid::from_raw)
        .collect()
}

/// Whether the process still holds anything. A zombie does not.
pub(super) fn is_alive(pid: Pid) -> bool {
    stat_of(pid.as_raw_nonzero().get()).is_some_and(|(state, _)| state != 'Z')
}

/// State and parent of a process. In the file they follow the name in parentheses (proc_pid_stat(5)).
fn stat_of(pid: i32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}
