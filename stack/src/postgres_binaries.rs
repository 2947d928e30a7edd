//! Finds PostgreSQL's own programs on the machine, or downloads them.
//!
//! The download is `io.zonky.test.postgres:embedded-postgres-binaries-linux-*` from Maven Central. It has 15 MB: `initdb`, `pg_ctl`, `postgres` and
//! all of `lib`, which includes `pgoutput`. It is built against an old glibc, and has its libraries with it, so it runs on any Linux with glibc. It
//! needs no packages except `xz` and Maven, which Kafka needs anyway. A package of the distribution would have only one version, and on Debian it
//! would also start a server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::cache::{self, Entry};
use crate::maven;

/// The major versions that the pipeline supports.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 15..=18;
/// The release to download for each major version.
const RELEASES: [(u32, &str); 4] = [(15, "15.15.0"), (16, "16.11.0"), (17, "17.7.0"), (18, "18.1.0")];
/// This version is downloaded if none was asked for and none was found.
const DEFAULT_VERSION: u32 = 18;

/// A directory with `initdb` and `postgres`, and the major version of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    pub directory: PathBuf,
    pub version: u32,
}

impl Binaries {
    /// The path of the program `name`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The newest supported PostgreSQL on this machine, or a download.
    ///
    /// # Errors
    /// None was found and the download failed.
    pub async fn found_or_downloaded() -> anyhow::Result<Self> {
        match found() {
            Some(binaries) => Ok(binaries),
            None => Self::downloaded(DEFAULT_VERSION).await,
        }
    }

    /// The download of this major version. It is downloaded the first time, and comes from the cache later. It is the same release on every machine,
    /// so that the result of a test does not depend on what is installed.
    ///
    /// # Errors
    /// There is no download for `version` or for this processor, or the download failed.
    pub async fn downloaded(version: u32) -> anyhow::Result<Self> {
        let Some((_, release)) = RELEASES.iter().find(|(major, _)| *major == version) else {
            bail!("no download for PostgreSQL {version}: there are 15 to 18");
        };
        let directory = match cache::look_up(&format!("postgresql-{release}")).await? {
            Entry::Present(path) => path,
            Entry::Missing(claim) => {
                tracing::info!("downloading PostgreSQL {release} from Maven Central (15 MB, once)");
                download(release, claim.directory()).await?;
                claim.finish()?
            }
        };
        Ok(Self {
            directory: directory.join("bin"),
            version,
        })
    }
}

async fn download(release: &str, directory: &Path) -> anyhow::Result<()> {
    let processor = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64v8",
        other => bail!("no PostgreSQL download for {other}: install PostgreSQL 15-18"),
    };
    let artifact = format!("io.zonky.test.postgres:embedded-postgres-binaries-linux-{processor}:{release}");
    let settings = [
        format!("-Dartifact={artifact}"),
        format!("-DoutputDirectory={}", directory.display()),
    ];
    maven::dependency("unpack", &settings, directory).await?;
    let archive = fs::read_dir(directory)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "txz"))
        .with_context(|| format!("{artifact} holds no archive"))?;
    let unpacked = Command::new("tar")
        .arg("-xJf")
        .arg(&archive)
        .arg("-C")
        .arg(directory)
        .output()
        .context("cannot run tar")?;
    if !unpacked.status.success() {
        bail!(
            "tar could not unpack PostgreSQL (it needs xz; on Debian and Ubuntu the package xz-utils): {}",
            String::from_utf8_lossy(&unpacked.stderr).trim()
        );
    }
    drop(fs::remove_file(&archive));
    for needed in ["bin/initdb", "bin/postgres", "lib/postgresql/pgoutput.so"] {
        if !directory.join(needed).exists() {
            bail!("{artifact} lacks {needed}");
        }
    }
    // The user that PostgreSQL runs as must be able to read the files, whatever root's umask is.
    let readable = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(directory)
        .status()
        .context("cannot run chmod")?;
    if !readable.success() {
        bail!("cannot make {} readable", directory.display());
    }
    Ok(())
}

/// Looks for installed programs. Debian keeps the programs of each version in a directory of their own, which is not in the PATH.
fn found() -> Option<Binaries> {
    let debian = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian
        .chain(std::env::split_paths(&path))
        .filter(|directory| directory.join("initdb").exists())
        .filter_map(|directory| {
            let version = version_of(&directory.join("postgres"))?;
            SUPPORTED.contains(&version).then_some(Binaries { directory, version })
        })
        .max_by_key(|binaries| binaries.version)
}

fn version_of(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// Reads the major version: `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)` is 15.
fn parse_version(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("(PostgreSQL) ")?;
    let digits = version.find(|c: char| !c.is_ascii_digit())?;
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn a_major_version_is_read_from_what_postgres_says() {
        assert_eq!(
            parse_version("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_version("mysqld 8"), None);
    }
}
