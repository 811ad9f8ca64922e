//! The server of Redis or Valkey that a fleet shares, and its password.

use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::secret_file::{self, FileBytes};

/// Words before a password, in headers, in Redis's commands and in its configuration.
const WORDS_BEFORE: [&str; 4] = ["bearer", "basic", "auth", "requirepass"];

/// A server that speaks Redis's protocol: `redis(s)://[user@]host[:port][/database]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// Whether the connection uses TLS (`rediss`).
    pub tls: bool,
    /// A DNS name in lower case, or an IP address, IPv6 without brackets.
    pub host: String,
    /// 6379 where the URL names none.
    pub port: u16,
    /// Number of the database, 0 where the URL names none.
    pub database: u32,
    /// Name of the user to log in as, if any.
    pub user: Option<String>,
    /// The file of the password; a password never stands in the configuration.
    pub password_file: Option<PathBuf>,
}

/// The password that a file holds.
///
/// # Errors
/// Where it cannot be read, or holds no password or something beside it.
pub(crate) fn read_password(file: &Path) -> io::Result<Zeroizing<String>> {
    let bytes = FileBytes::read_told(file)?;
    let password = parse_password(&bytes).map_err(|why| secret_file::unusable(file, &why))?;
    Ok(Zeroizing::new(password.to_owned()))
}

/// The one line of a file. A password may have spaces and quotes in it, unlike an API key.
fn parse_password(bytes: &[u8]) -> Result<&str, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the file is not text")?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.trim().is_empty() {
        return Err("the file holds no password");
    }
    if password.contains(char::is_control) {
        return Err("the file holds more than one line; the password stands there alone");
    }
    if password.starts_with('\u{feff}') {
        return Err("a byte order mark stands before the password");
    }
    if password.trim() != password {
        return Err("the password begins or ends with white space");
    }
    let first = password.split_once(' ').map_or("", |(first, _)| first);
    if WORDS_BEFORE
        .iter()
        .any(|word| first.eq_ignore_ascii_case(word))
    {
        return Err("the password stands alone, without a word like `Bearer` before it");
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_stands_alone_in_its_file() {
        for (text, password) in [
            ("pw", "pw"),
            ("pw\n", "pw"),
            ("p w=\"x\"\r\n\n", "p w=\"x\""),
            ("bearer", "bearer"),
        ] {
            assert_eq!(parse_password(text.as_bytes()), Ok(password));
        }
        for text in [
            "",
            "\n",
            " \n",
            "pw\npw",
            "pw\0\0",
            " pw",
            "\u{feff}pw",
            "Bearer pw",
            "requirepass pw",
        ] {
            assert!(parse_password(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(parse_password(b"\xff\xfe").is_err());
    }
}
