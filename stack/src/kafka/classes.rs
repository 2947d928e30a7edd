//! An archive of Kafka's classes for Java, so that brokers and tools start faster.
//!
//! When a broker or a tool starts, Java reads, checks and links some thousand classes, and this is most of the work. Java can keep the result in a
//! file and map the file at the next start (`-XX:ArchiveClassesAtExit`, `-XX:SharedArchiveFile`: JEP 350). Kafka's own images do the same (KIP-975).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::release::Release;
use super::{Kafka, KafkaOptions, Layout};
use crate::cache::{self, Entry};

const FILE: &str = "classes.jsa";

/// The archive for this release and this Java. It is made the first time, and comes from the cache later. None: it cannot be made, and Kafka starts
/// without it.
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

/// Makes the archive: starts a broker, which writes the classes that it has loaded into the file when it ends.
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

/// The arguments that make Java use the archive. If the archive does not fit, Java goes on without it, and must not say so in a tool's output.
pub(super) fn arguments(archive: Option<&Path>) -> Vec<OsString> {
    let Some(archive) = archive else { return Vec::new() };
    let mut file = OsString::from("-XX:SharedArchiveFile=");
    file.push(archive);
    vec![file, "-Xlog:disable".into(), "-Xlog:all=error:stderr".into()]
}

/// The build of Java, as a part of a file's name. Another build cannot read the archive.
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
