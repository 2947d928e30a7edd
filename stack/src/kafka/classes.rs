//! Java's archive of Kafka's classes.
//!
//! Most of what a broker or a tool computes at its start is reading, checking and linking some thousand classes. Java can keep the result in a file and
//! map it the next time (`-XX:ArchiveClassesAtExit`, `-XX:SharedArchiveFile`: JEP 350). Kafka's own images do the same (KIP-975).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::release::Release;
use super::{Kafka, KafkaOptions, Layout};
use crate::cache::{self, Entry};

const FILE: &str = "classes.jsa";

/// The archive for this release and this Java, from the cache after the first time. None: there is none, and Kafka starts without.
pub(super) async fn archive(release: &Release, java: &str) -> Option<PathBuf> {
    match get(release, java).await {
        Ok(path) => Some(path),
        Err(err) => {
            tracing::warn!(
                error = format!("{err:#}"),
                "there is no archive of kafka's classes: each start takes longer"
            );
            None
        }
    }
}

async fn get(release: &Release, java: &str) -> anyhow::Result<PathBuf> {
    let name = format!("kafka-{}-classes-{}", release.version, build(java));
    let directory = match cache::look_up(&name).await? {
        Entry::Present(path) => path,
        Entry::Missing(claim) => {
            write(release, &claim.directory().join(FILE)).await?;
            claim.finish()?
        }
    };
    Ok(directory.join(FILE))
}

/// Starts a broker, which writes the classes that it has loaded when it ends.
async fn write(release: &Release, archive: &Path) -> anyhow::Result<()> {
    tracing::info!(
        "keeping the classes of Apache Kafka {} for its next starts (once)",
        release.version
    );
    let kafka = Kafka::format_release(release.clone(), Layout::new(&[0])?, 1, KafkaOptions::default()).await?;
    let argument = format!("-XX:ArchiveClassesAtExit={}", archive.display());
    kafka.start_with(&[&argument]).await?;
    kafka.stop().await?;
    ensure!(archive.is_file(), "java wrote no {}", archive.display());
    Ok(())
}

/// What Java needs to use the archive. Where the archive does not fit, Java goes on without: nothing of that may stand in a tool's answer.
pub(super) fn arguments(archive: Option<&Path>) -> Vec<OsString> {
    let Some(archive) = archive else { return Vec::new() };
    let mut file = OsString::from("-XX:SharedArchiveFile=");
    file.push(archive);
    vec![file, "-Xlog:disable".into(), "-Xlog:all=error:stderr".into()]
}

/// The build of Java, as a part of a file's name: another one cannot read the archive.
fn build(java: &str) -> String {
    let line = java.lines().find(|line| line.contains("build ")).unwrap_or(java);
    let (_, build) = line.rsplit_once("build ").unwrap_or(("", line));
    build
        .chars()
        .filter(|char| char.is_ascii_alphanumeric() || ".-+_".contains(*char))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::build;

    #[test]
    fn another_build_of_java_has_another_archive() {
        let java = "openjdk version \"17.0.15\" 2025-04-15\n\
            OpenJDK Runtime Environment (build 17.0.15+6-Debian-1deb12u1)\n\
            OpenJDK 64-Bit Server VM (build 17.0.15+6-Debian-1deb12u1, mixed mode, sharing)\n";
        assert_eq!(build(java), "17.0.15+6-Debian-1deb12u1");
    }
}
