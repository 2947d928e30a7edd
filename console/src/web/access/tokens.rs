//! Tokens of people, and the file with their hashes.
//!
//! A token has 256 random bits, so nobody can guess it, and a plain SHA-256 is enough to keep it: slow hashes are for passwords, which people choose.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::settings::Role;

/// Bytes of a token, and of the ids of sessions.
const RANDOM_BYTES: usize = 32;

/// A new token, session id or CSRF token.
#[must_use]
pub fn random_text() -> String {
    let mut bytes = [0; RANDOM_BYTES];
    // It fails only where the system has no random numbers at all; then nothing of the console would be safe.
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system has random numbers");
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The line of a token for the file: `NAME ROLE sha256:HEX`.
#[must_use]
pub fn line(name: &str, role: Role, token: &str) -> String {
    format!("{name} {} sha256:{}", role_name(role), hash_hex(token))
}

/// As it stands in the file.
#[must_use]
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Reader => "reader",
        Role::Operator => "operator",
    }
}

/// The file with the hashes. It is read again when it has changed, so that a token can be taken away without a restart.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    read: Mutex<(Option<SystemTime>, Tokens)>,
}

/// Who has a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub name: String,
    pub role: Role,
    /// The SHA-256 of the token, in hexadecimal.
    pub token_hash: String,
}

/// Who has which token: name and role by hash.
type Tokens = BTreeMap<String, (String, Role)>;

impl TokenFile {
    /// # Errors
    /// The file cannot be read, or names its line that is wrong.
    pub fn open(path: PathBuf) -> Result<Self, String> {
        let modified = modified(&path);
        let tokens = load(&path)?;
        Ok(Self {
            path,
            read: Mutex::new((modified, tokens)),
        })
    }

    /// Whose token it is.
    #[must_use]
    pub fn find(&self, token: &str) -> Option<Holder> {
        let token_hash = hash_hex(token.trim());
        let (name, role) = self.with_tokens(|tokens| tokens.get(&token_hash).cloned())?;
        Some(Holder { name, role, token_hash })
    }

    /// Whether the token of this hash is still this person's, with this role. Another token of the same name does not count.
    #[must_use]
    pub fn has(&self, token_hash: &str, name: &str, role: Role) -> bool {
        self.with_tokens(|tokens| {
            let known = tokens.get(token_hash);
            known.is_some_and(|known| known.0 == name && known.1 == role)
        })
    }

    fn with_tokens<T>(&self, ask: impl FnOnce(&Tokens) -> T) -> T {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let modified = modified(&self.path);
        if read.0 != modified {
            match load(&self.path) {
                Ok(tokens) => *read = (modified, tokens),
                // Somebody may be writing it. Nobody comes in by a file that cannot be understood.
                Err(err) => {
                    tracing::warn!(error = err, "the file of the tokens cannot be used");
                    *read = (None, Tokens::new());
                }
            }
        }
        ask(&read.1)
    }
}

fn modified(path: &std::path::Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn load(path: &std::path::Path) -> Result<Tokens, String> {
    let named = |what: &str| format!("--token-file {}: {what}", path.display());
    let text = std::fs::read_to_string(path).map_err(|err| named(&format!("cannot be read: {err}")))?;
    parse(&text).map_err(|err| named(&err))
}

/// Reads the lines. Empty ones and those that begin with `#` are passed over.
fn parse(text: &str) -> Result<Tokens, String> {
    let mut tokens = Tokens::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let parsed = match words[..] {
            [name, role, hash] => role_of(role).zip(hash_of(hash)).map(|(role, hash)| (name, role, hash)),
            _ => None,
        };
        let Some((name, role, hash)) = parsed else {
            return Err(format!(
                "line {}: expected NAME reader|operator sha256:HEX, as `console token NAME` prints it",
                index + 1
            ));
        };
        tokens.insert(hash, (name.to_owned(), role));
    }
    Ok(tokens)
}

fn role_of(word: &str) -> Option<Role> {
    [Role::Reader, Role::Operator]
        .into_iter()
        .find(|role| role_name(*role) == word)
}

fn hash_of(word: &str) -> Option<String> {
    let hex = word.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| hex.to_ascii_lowercase())
}

fn hash_hex(token: &str) -> String {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{TokenFile, line, parse, random_text};
    use crate::settings::Role;

    #[test]
    fn a_token_is_found_by_its_hash_and_only_by_the_whole_of_it() {
        let (kim, lee) = (random_text(), random_text());
        assert_ne!(kim, lee);
        assert_eq!(kim.len(), 43);
        let text = format!(
            "# people\n{}\n\n{}\n",
            line("kim", Role::Operator, &kim),
            line("lee", Role::Reader, &lee)
        );
        assert!(!text.contains(&kim));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        std::fs::write(&path, text).unwrap();
        let file = TokenFile::open(path).unwrap();
        let found = |token: &str| file.find(token).map(|holder| (holder.name, holder.role));
        assert_eq!(found(&kim), Some(("kim".to_owned(), Role::Operator)));
        assert_eq!(found(&format!(" {lee}\n")), Some(("lee".to_owned(), Role::Reader)));
        for wrong in ["", "kim", &kim[..42]] {
            assert_eq!(file.find(wrong), None);
        }
    }

    #[test]
    fn a_token_that_is_taken_out_of_the_file_is_worth_nothing_without_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let token = random_text();
        std::fs::write(&path, line("kim", Role::Operator, &token)).unwrap();
        let file = TokenFile::open(path.clone()).unwrap();
        let kim = file.find(&token).unwrap();
        assert!(file.has(&kim.token_hash, "kim", Role::Operator));
        std::fs::write(&path, line("kim", Role::Operator, &random_text())).unwrap();
        // The file's time may be the same within one tick of the clock.
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        std::fs::File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert_eq!(file.find(&token), None);
        assert!(
            !file.has(&kim.token_hash, "kim", Role::Operator),
            "a new token of the same name is another one"
        );
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.find(&token), None);
    }

    #[test]
    fn a_line_that_is_wrong_is_told_by_its_number() {
        let hash = line("a", Role::Reader, "x");
        for wrong in ["kim operator", "kim admin sha256:00", "kim operator sha256:00"] {
            let refused = parse(&format!("{hash}\n{wrong}")).expect_err(wrong);
            assert!(refused.starts_with("line 2: expected NAME"), "{refused}");
        }
    }
}
