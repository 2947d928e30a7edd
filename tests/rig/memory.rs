//! The physical memory of a process (proc_pid_status(5)).

use stack::Program;

/// The most memory that a running program has had since its start, in MB (10⁶ bytes).
///
/// # Panics
/// It does not run.
#[must_use]
pub fn peak_mb(program: &Program) -> f64 {
    let process = program.process().expect("a started program");
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).expect("a running program");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kibibytes.expect("VmHWM in kB") * 1024.0 / 1e6
}
