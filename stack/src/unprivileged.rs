//! The user of the operating system that PostgreSQL runs as, because it refuses to run as root.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

/// An entry of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// The user that PostgreSQL must run as. `None`: this process is not root, so PostgreSQL runs as the same user. For root it is `postgres`, which
/// Debian's packages make, or else `nobody`, who exists everywhere.
///
/// # Errors
/// This process is root and neither user exists.
pub fn user() -> anyhow::Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    match find(&passwd, "postgres").or_else(|| find(&passwd, "nobody")) {
        Some(user) => Ok(Some(user)),
        None => bail!("postgres cannot run as root, and there is no user postgres or nobody to run it as"),
    }
}

/// Makes `command` run as `user`. The standard library also drops root's supplementary groups.
pub fn run_as(command: &mut Command, user: Option<&User>) {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
}

/// Makes a directory that only its owner can read, and gives it to `user`.
///
/// # Errors
/// The directory cannot be made or given away, or `user` could not reach it.
pub fn make_directory(directory: &Path, user: Option<&User>) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let Some(user) = user else { return Ok(()) };
    std::os::unix::fs::chown(directory, Some(user.uid), Some(user.gid))
        .with_context(|| format!("cannot give {} to {}", directory.display(), user.name))?;
    let mut probe = Command::new("/bin/sh");
    probe.args(["-c", "cd -- \"$1\" 2>/dev/null", "sh"]);
    probe.arg(directory).current_dir("/");
    run_as(&mut probe, Some(user));
    if !probe.status().context("cannot run /bin/sh")?.success() {
        bail!(
            "user {} cannot reach {}: postgres cannot run as root, so choose a directory that other users can reach, such as one in /tmp or /var/lib",
            user.name,
            directory.display()
        );
    }
    Ok(())
}

fn find(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User {
            name: name.to_owned(),
            uid,
            gid,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{User, find};

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\npostgres2:x:5:5::/:/bin/sh\npostgres:x:101:104::/var/lib/postgresql:/bin/bash\n";
        assert_eq!(
            find(passwd, "postgres"),
            Some(User {
                name: "postgres".to_owned(),
                uid: 101,
                gid: 104
            })
        );
        assert_eq!(find(passwd, "nobody"), None);
    }
}
