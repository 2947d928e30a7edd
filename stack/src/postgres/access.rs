//! Sets who may log in, and the server's certificate.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::sync::Mutex;

use super::Postgres;

impl Postgres {
    /// Puts these rules, one on each line, before all other rules of `pg_hba.conf`. Makes the server read its settings again.
    ///
    /// # Errors
    /// The server does not answer, or its file cannot be written.
    pub async fn put_access_rules_first(&self, rules: &str) -> anyhow::Result<()> {
        // Tests share servers, so nobody may overwrite the rules that another test has just put there.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
        let _alone = ONE_AT_A_TIME.lock().await;
        let shown = self.query("postgres", "show hba_file").await?;
        let file = shown.into_iter().flatten().flatten().next();
        let file = PathBuf::from(file.context("no path of pg_hba.conf")?);
        let before = fs::read_to_string(&file)?;
        fs::write(&file, format!("{}\n{before}", rules.trim_end()))?;
        self.query("postgres", "select pg_reload_conf()").await?;
        Ok(())
    }

    /// Makes the server use the certificate `server.crt` and the key `server.key` of this folder. The key must belong to the server's user, see
    /// [`Postgres::make_key_its_own`].
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn set_certificate_of(&self, folder: &Path) -> anyhow::Result<()> {
        for (setting, value) in [
            ("ssl_cert_file", folder.join("server.crt").display().to_string()),
            ("ssl_key_file", folder.join("server.key").display().to_string()),
            ("ssl", "on".to_owned()),
        ] {
            self.query("postgres", &format!("alter system set {setting} = '{value}'"))
                .await?;
        }
        Ok(())
    }

    /// Gives the key file to the server's user. PostgreSQL refuses a key that others can read.
    ///
    /// # Errors
    /// There is no such file, or this process may not change it.
    pub fn make_key_its_own(&self, key: &Path) -> anyhow::Result<()> {
        fs::set_permissions(key, fs::Permissions::from_mode(0o600))?;
        let owner = fs::metadata(self.socket_directory())?;
        chown(key, Some(owner.uid()), Some(owner.gid()))?;
        Ok(())
    }
}
