//! Downloads a release of Apache Kafka from Maven Central, and finds the Java that runs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use super::{classes, write};
use crate::cache::{self, Entry};
use crate::maven;

/// The release that is used by default.
pub const VERSION: &str = "4.1.1";
const POM: &str = include_str!("pom.xml");

/// A downloaded release.
#[derive(Clone, Debug)]
pub(super) struct Release {
    pub(super) version: String,
    pub(super) jars: PathBuf,
    /// The file with the classes as Java prepares them at a start, see [`classes`]. None: Java loads the classes from the jars.
    pub(super) classes: Option<PathBuf>,
}

impl Release {
    /// The release `version`, such as `4.1.1`. It is downloaded the first time, and comes from the cache later.
    ///
    /// # Errors
    /// Java is missing or too old, `version` is no version, or the download failed.
    pub(super) async fn get(version: &str) -> anyhow::Result<Self> {
        let java = check_java().await?;
        let mut release = Self {
            version: version.to_owned(),
            jars: jars(version).await?,
            classes: None,
        };
        // Brokers of other releases are started so seldom that such a file would not pay for itself.
        if version == VERSION {
            release.classes = classes::archive(&release, &java).await;
        }
        Ok(release)
    }

    /// The full name of a command line tool's class. It is in `org.apache.kafka.tools` in newer releases, and in `kafka.admin` in older ones.
    ///
    /// # Errors
    /// The jar of the tools cannot be read.
    pub(super) fn class_of_tool(&self, name: &str) -> anyhow::Result<String> {
        let jar = self.jars.join(format!("kafka-tools-{}.jar", self.version));
        let bytes = std::fs::read(&jar).with_context(|| format!("cannot read {}", jar.display()))?;
        // A jar lists the names of its files uncompressed.
        let file = format!("org/apache/kafka/tools/{name}.class");
        let is_newer = bytes.windows(file.len()).any(|window| window == file.as_bytes());
        Ok(if is_newer {
            format!("org.apache.kafka.tools.{name}")
        } else {
            format!("kafka.admin.{name}")
        })
    }
}

/// The directory of a release's jars. They are downloaded the first time, and come from the cache later.
///
/// # Errors
/// `version` is no version, or the download failed.
pub async fn jars(version: &str) -> anyhow::Result<PathBuf> {
    ensure!(
        version.split('.').all(|part| part.parse::<u32>().is_ok()),
        "`{version}` is no version of Kafka: expected one such as {VERSION}"
    );
    let path = match cache::look_up(&format!("kafka-{version}")).await? {
        Entry::Present(path) => path,
        Entry::Missing(claim) => {
            tracing::info!("downloading Apache Kafka {version} from Maven Central (54 MB, once)");
            let directory = claim.directory();
            write(&directory.join("pom.xml"), &POM.replace("@VERSION@", version))?;
            let output = format!("-DoutputDirectory={}", directory.join("jars").display());
            maven::dependency("copy-dependencies", &[output], directory).await?;
            claim.finish()?
        }
    };
    Ok(path.join("jars"))
}

pub(super) fn java_program() -> PathBuf {
    match std::env::var_os("JAVA_HOME") {
        Some(home) if Path::new(&home).join("bin/java").exists() => Path::new(&home).join("bin/java"),
        _ => PathBuf::from("java"),
    }
}

/// Refuses a Java that is too old. Returns what Java says about its version.
async fn check_java() -> anyhow::Result<String> {
    let mut command = Command::new(java_program());
    command.arg("-version");
    let output = tokio::process::Command::from(command).output().await.context(
        "cannot run java: Kafka needs Java 17 or newer (on Debian and Ubuntu the package openjdk-17-jre-headless)",
    )?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    match java_version(&text) {
        Some(17..) => Ok(text),
        Some(old) => bail!("this java is {old}: Kafka needs Java 17 or newer"),
        None => bail!("cannot tell the version of java: {}", text.trim()),
    }
}

/// Reads the major version: `openjdk version "17.0.15" 2025-04-15` is 17, and `"1.8.0_292"` is 1.
fn java_version(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("version \"")?;
    let end = version.find(|c: char| !c.is_ascii_digit())?;
    version[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::java_version;

    #[test]
    fn a_major_version_is_read_from_what_java_says() {
        assert_eq!(java_version("openjdk version \"17.0.15\" 2025-04-15\n"), Some(17));
        assert_eq!(java_version("openjdk version \"21\" 2023-09-19\n"), Some(21));
        assert_eq!(java_version("java version \"1.8.0_292\"\n"), Some(1));
    }
}
