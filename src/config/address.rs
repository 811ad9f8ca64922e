//! Addresses of sockets, as listeners and upstreams have them: an IP address and a port, or the path of a UNIX socket.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::config::variable::{NOT_PUT_IN, has_variable};

/// What the path of a UNIX socket begins with in a setting.
const UNIX: &str = "unix:";
/// The longest path that fits a `sockaddr_un` with the zero behind it, in bytes (`unix(7)`).
const MAX_PATH_BYTES: usize = 107;

/// The address of a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketAddress {
    /// IP address and TCP port.
    Tcp(SocketAddr),
    /// Absolute path of a UNIX socket, in UTF-8.
    Unix(PathBuf),
}

impl SocketAddress {
    /// The path of a UNIX socket; none for TCP.
    pub fn unix_path(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(path) => Some(path),
        }
    }

    /// Whether this is `[::]`, which Linux would give the clients of IPv4 as well, and the other has these on the same port.
    pub(crate) fn leaves_ipv4_to(&self, other: &SocketAddress) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => {
                one.is_ipv6()
                    && one.ip().is_unspecified()
                    && other.is_ipv4()
                    && one.port() == other.port()
            }
            _ => false,
        }
    }

    /// Whether one of two different addresses has the other in it.
    pub(crate) fn overlaps(&self, other: &SocketAddress) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => {
                one != other
                    && one.port() == other.port()
                    && one.is_ipv4() == other.is_ipv4()
                    && (one.ip().is_unspecified() || other.ip().is_unspecified())
            }
            _ => false,
        }
    }
}

impl FromStr for SocketAddress {
    /// What is wrong with the text, for the configuration's mistakes.
    type Err = &'static str;

    /// An IP address or `localhost` and a port, or `unix:` and a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected an address like `127.0.0.1:8080`, `[::]:8080` or `unix:/run/tiergate/http.sock`";
        if let Some(path) = strip_unix(text) {
            return parse_unix_path(path).map(Self::Unix);
        }
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        let address: SocketAddr = numeric.parse().map_err(|_| EXPECTED)?;
        match address.port() {
            0 => Err(EXPECTED),
            _ => Ok(Self::Tcp(address)),
        }
    }
}

impl From<SocketAddr> for SocketAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// What follows `unix:`; none where the text does not begin so.
pub(crate) fn strip_unix(text: &str) -> Option<&str> {
    text.strip_prefix(UNIX)
}

/// The path of a UNIX socket.
pub(crate) fn parse_unix_path(text: &str) -> Result<PathBuf, &'static str> {
    if !text.starts_with('/') {
        return Err("the path of a UNIX socket is absolute, like `unix:/run/tiergate/http.sock`");
    }
    if text.len() > MAX_PATH_BYTES {
        return Err("the path of a UNIX socket is longer than 107 bytes");
    }
    if text.ends_with('/') || text.chars().any(char::is_control) {
        return Err("the path of a UNIX socket ends in `/` or has a control character");
    }
    if has_variable(text) {
        return Err(NOT_PUT_IN);
    }
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SocketAddress, &'static str> {
        text.parse()
    }

    #[test]
    fn an_address_is_shown_as_it_is_given() {
        for text in ["127.0.0.1:8080", "[::]:80", "unix:/run/a b.sock"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parse("localhost:80").unwrap().to_string(), "127.0.0.1:80");
    }

    #[test]
    fn what_no_socket_can_have_is_refused() {
        for text in ["", "80", "h:80", "127.0.0.1:0", "unix", "/run/a.sock"] {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in [
            "unix:",
            "unix:a.sock",
            "unix:/run/",
            "unix:/a\nb",
            "unix:@a",
            "unix:/run/${NAME}.sock",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_has_room_for_107_bytes() {
        let path = |bytes: usize| format!("unix:/{}", "a".repeat(bytes - 1));
        assert!(parse(&path(107)).is_ok());
        assert!(parse(&path(108)).unwrap_err().contains("107 bytes"));
    }
}
