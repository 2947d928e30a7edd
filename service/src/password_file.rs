//! Database URLs whose password is in a file: the parameter `passwordfile`, which libpq does not have.
//!
//! Everyone who may look at the process sees a password in its environment (`docker inspect`). Container engines and orchestrators can hand over a
//! secret as a file.

use std::io;
use std::path::Path;

use anyhow::Context;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::Secret;

const PARAMETER: &str = "passwordfile";

/// Reads the password from the file `path`, which holds nothing else. A line break at its end does not belong to the password.
///
/// # Errors
/// The file cannot be read, or is not UTF-8.
pub fn read(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path).map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Reads the file that the parameter `passwordfile` of `url` names, and replaces the parameter by `password`. A URL without it stays as it is.
///
/// # Errors
/// The file cannot be read.
pub fn resolve(url: &Secret) -> anyhow::Result<Secret> {
    let Some((before, parameters)) = url.reveal().split_once('?') else {
        return Ok(url.clone());
    };
    let mut resolved = Vec::new();
    for parameter in parameters.split('&') {
        resolved.push(match parameter.split_once('=') {
            Some((PARAMETER, path)) => {
                let path = percent_decode_str(path).decode_utf8_lossy();
                let password =
                    read(Path::new(&*path)).with_context(|| format!("`{PARAMETER}` {path} cannot be read"))?;
                format!("password={}", utf8_percent_encode(&password, NON_ALPHANUMERIC))
            }
            _ => parameter.to_owned(),
        });
    }
    Ok(format!("{before}?{}", resolved.join("&")).into())
}

#[cfg(test)]
mod tests {
    use super::resolve;
    use crate::Secret;

    fn resolved(url: &str) -> Result<String, String> {
        resolve(&Secret::from(url.to_owned()))
            .map(|url| url.reveal().to_owned())
            .map_err(|err| format!("{err:#}"))
    }

    #[test]
    fn the_password_is_the_files_first_line() {
        let path = std::env::temp_dir().join(format!("password file {}", std::process::id()));
        std::fs::write(&path, "a &b=ü\n").expect("a file");
        let url = format!(
            "postgres://u@h1,h2/d?sslmode=disable&passwordfile={}&host=h",
            path.display().to_string().replace(' ', "%20")
        );
        let answer = resolved(&url);
        std::fs::remove_file(&path).expect("the file");
        assert_eq!(
            answer.as_deref(),
            Ok("postgres://u@h1,h2/d?sslmode=disable&password=a%20%26b%3D%C3%BC&host=h")
        );
    }

    #[test]
    fn a_url_without_the_parameter_is_left_alone() {
        for url in ["postgres://u:p@h/d", "postgres://u@h/d?sslmode=disable", "nonsense"] {
            assert_eq!(resolved(url).as_deref(), Ok(url));
        }
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let err = resolved("postgres://u@h/d?passwordfile=/nowhere/at/all").expect_err("no file");
        assert!(
            err.starts_with("`passwordfile` /nowhere/at/all cannot be read: "),
            "{err}"
        );
    }
}
