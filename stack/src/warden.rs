//! A small shell that ends what is left when this process has died, however it died.
//!
//! A destructor does not run if the process is killed by SIGKILL or calls `exit`. Linux's parent-death signal does not help: it follows the *thread*
//! that forked, and in a test or a thread pool this thread ends long before the process. So one shell, in a process group of its own, reads from a
//! pipe what it has to clean up. When this process is gone, the kernel closes the pipe. Then the shell sends a signal to every process group that it
//! was told of, waits until they have ended, and removes the temporary directories.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Reads `group SIGNAL PGID`, `forget PGID` and `directory PATH` until the pipe closes. Then it cleans up. After 10 s it sends SIGKILL.
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

/// Once this process is gone, the process group `pgid` gets `signal`, a name that `kill -s` knows: `KILL`, `QUIT`.
pub fn end_group_with_us(pgid: u32, signal: &str) {
    tell(&format!("group {signal} {pgid}\n"));
}

/// Takes the process group off the list, because it has ended and its id may soon belong to another group.
pub fn forget_group(pgid: u32) {
    tell(&format!("forget {pgid}\n"));
}

/// Once this process is gone, `directory` is removed.
pub fn remove_with_us(directory: &Path) {
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
        // If somebody has ended the warden, nothing is cleaned up after a crash. Destructors still work.
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
