//! A small shell that ends what is left when this process has died, however it died.
//!
//! A destructor does not run when a process is killed by SIGKILL or ends by `exit`, and Linux's parent-death signal follows
//! the *thread* that forked, which in a test or a thread pool ends long before the process. So one shell, in a process group
//! of its own, reads what to clean up from a pipe. When this process is gone the kernel closes the pipe; then the
//! shell signals every process group that it was told of, waits for their ends, and removes the temporary directories.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Reads `group SIGNAL PGID`, `forget PGID` and `directory PATH` until the pipe closes; then cleans up, for 10 s at most before SIGKILL.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups=
while read -r verb what; do
    case $verb in
    group) groups="$groups ${what% *}:${what#* }" ;;
    forget)
        kept=
        for group in $groups; do [ "${group#*:}" = "$what" ] || kept="$kept $group"; done
        groups=$kept ;;
    directory) set -- "$@" "$what" ;;
    esac
done
for group in $groups; do kill -s "${group%%:*}" -- "-${group#*:}"; done
tries=0
while [ $tries -lt 100 ]; do
    left=
    for group in $groups; do if kill -0 -- "-${group#*:}"; then left=1; fi; done
    if [ -z "$left" ]; then break; fi
    tries=$((tries + 1))
    sleep 0.1
done
for group in $groups; do kill -s KILL -- "-${group#*:}"; done
if [ $# -eq 0 ]; then exit; fi
# A process that is just ending may still write a file into a directory that is being removed.
for try in 1 2 3 4 5; do
    if rm -rf -- "$@"; then exit; fi
    sleep 0.2
done
"#;

static WARDEN: OnceLock<Option<Mutex<ChildStdin>>> = OnceLock::new();

/// Has the process group `pgid` ended by `signal` (a name that `kill -s` knows: `KILL`, `QUIT`) once this process is gone.
pub fn watch(pgid: u32, signal: &str) {
    tell(&format!("group {signal} {pgid}\n"));
}

/// The process group has ended: its number may belong to somebody else from now on.
pub fn forget(pgid: u32) {
    tell(&format!("forget {pgid}\n"));
}

/// Has `directory` removed once this process is gone.
pub fn remove_at_end(directory: &Path) {
    tell(&format!("directory {}\n", directory.display()));
}

fn tell(line: &str) {
    let warden = WARDEN.get_or_init(|| match start() {
        Ok(pipe) => Some(Mutex::new(pipe)),
        Err(err) => {
            tracing::warn!(error = %err, "cannot start the shell that cleans up after a crash");
            None
        }
    });
    if let Some(pipe) = warden {
        let mut pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
        // A warden that somebody ended takes only the guarantee for a crash with it; destructors still do their part.
        if let Err(err) = pipe.write_all(line.as_bytes()) {
            tracing::debug!(error = %err, "the shell that cleans up after a crash is gone");
        }
    }
}

fn start() -> std::io::Result<ChildStdin> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    child
        .stdin
        .take()
        .ok_or_else(|| std::io::Error::other("no pipe to the shell"))
}
