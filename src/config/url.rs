//! Where an upstream is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use http::Uri;
use http::uri::Scheme;

use crate::config::address::{SocketAddress, parse_unix_path, strip_unix};
use crate::config::path;

/// Where an upstream is: `http(s)://host[:port][/prefix]`, or `unix:/path[:/prefix]` as nginx writes it behind `http://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Then the host is a DNS name, or `tls.server_name` is one: TLS needs it for SNI, and without it nothing would be
    /// verified. Never over a UNIX socket.
    pub tls: bool,
    /// What is connected to.
    pub destination: Destination,
    /// Put before each request's path: empty, or a path without a trailing slash.
    pub prefix: String,
}

/// What is connected to for a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A host by TCP.
    Tcp {
        /// A DNS name in lower case, or an IP address, IPv6 without brackets.
        host: String,
        /// TCP port; 80 or 443 by the scheme where the URL names none.
        port: u16,
    },
    /// A UNIX socket by its absolute path, in UTF-8.
    Unix(PathBuf),
}

impl Url {
    /// Reasons never quote the text: a URL may carry a password.
    ///
    /// # Errors
    /// Why the text is no URL of an upstream.
    pub fn parse(text: &str) -> Result<Url, &'static str> {
        const SCHEME: &str = "expected a URL that begins with `http://`, `https://` or `unix:/`";
        if let Some(rest) = strip_unix(text) {
            return Url::parse_unix(rest);
        }
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Err(SCHEME);
        }
        if text.contains(char::is_whitespace) {
            return Err("the URL has white space in it, perhaps at its end");
        }
        if !text.is_ascii() {
            return Err(
                "the URL has letters beyond ASCII; a host's name is written as `xn--…` then",
            );
        }
        if text.contains(['?', '#']) {
            return Err("the URL has no query and no fragment");
        }
        let uri: Uri = text.parse().map_err(|_| explain(text))?;
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        let authority = uri.authority().ok_or(NO_HOST)?;
        if authority.as_str().contains('@') {
            return Err(
                "the URL has no user and no password; keys stand in files (`credential_file`, or `headers_file` of `traces`)",
            );
        }
        let standard = if tls { 443 } else { 80 };
        let port = match authority.port_u16() {
            Some(0) => return Err(BAD_PORT),
            Some(port) => port,
            None if authority.as_str().len() > authority.host().len() => return Err(BAD_PORT),
            None => standard,
        };
        Ok(Url {
            tls,
            destination: Destination::Tcp {
                host: parse_host(authority.host())?,
                port,
            },
            prefix: parse_prefix(uri.path())?,
        })
    }

    /// What follows `unix:`. A colon ends the path of the socket.
    fn parse_unix(rest: &str) -> Result<Url, &'static str> {
        let (path, prefix) = rest.split_once(':').unwrap_or((rest, "/"));
        Ok(Url {
            tls: false,
            destination: Destination::Unix(parse_unix_path(path)?),
            prefix: parse_prefix(prefix)?,
        })
    }

    /// Whether it can be connected to without a name being resolved; then it has no name that could be verified either.
    pub fn is_address(&self) -> bool {
        match &self.destination {
            Destination::Tcp { host, .. } => host.parse::<IpAddr>().is_ok(),
            Destination::Unix(_) => true,
        }
    }

    /// Host and port as in a `Host` header: the port only where it is not the scheme's own. A UNIX socket has neither, and
    /// is `localhost`.
    pub fn authority(&self) -> String {
        let Destination::Tcp { host, port } = &self.destination else {
            return "localhost".to_owned();
        };
        let standard = if self.tls { 443 } else { 80 };
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.clone()
        };
        if *port == standard {
            host
        } else {
            format!("{host}:{port}")
        }
    }

    /// The URL of a path there, which has the prefix already.
    pub fn with_path(&self, path: &str) -> String {
        match &self.destination {
            Destination::Tcp { .. } => {
                let scheme = if self.tls { "https" } else { "http" };
                format!("{scheme}://{}{path}", self.authority())
            }
            Destination::Unix(socket) if path.is_empty() => format!("unix:{}", socket.display()),
            Destination::Unix(socket) => format!("unix:{}:{path}", socket.display()),
        }
    }

    /// Stands for a URL with a mistake while the rest of the file is read.
    pub(crate) fn placeholder() -> Url {
        Url {
            tls: false,
            destination: Destination::Tcp {
                host: "invalid".to_owned(),
                port: 80,
            },
            prefix: String::new(),
        }
    }
}

impl Destination {
    /// Whether a connection from this machine comes to a listener on this address. Of names only `localhost` is known.
    pub fn reaches(&self, listener: &SocketAddress) -> bool {
        match (self, listener) {
            (Self::Unix(path), SocketAddress::Unix(own)) => path == own,
            (Self::Tcp { host, port }, SocketAddress::Tcp(own)) => {
                *port == own.port() && addresses_of(host).any(|ip| leads_to(ip, own.ip()))
            }
            _ => false,
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_path(&self.prefix))
    }
}

const NO_HOST: &str = "the URL has no valid host name";
const BAD_PORT: &str = "the port of the URL is not a number from 1 to 65535";

/// Why a text that begins like a URL is none.
fn explain(text: &str) -> &'static str {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or("");
    match authority.rsplit_once(':') {
        Some((host, port))
            if !host.contains(':') && !port.is_empty() && port.parse::<u16>().is_err() =>
        {
            BAD_PORT
        }
        _ => NO_HOST,
    }
}

/// The IP addresses that a host is known to have.
fn addresses_of(host: &str) -> impl Iterator<Item = IpAddr> {
    let local = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let local = local.into_iter().filter(move |_| host == "localhost");
    local.chain(host.parse::<IpAddr>().ok())
}

/// Whether a connection to `to` comes to a listener on `own`. One on an unspecified address has all of this machine, and
/// connecting to it is connecting to the loopback (`ip(7)`).
fn leads_to(to: IpAddr, own: IpAddr) -> bool {
    let is_local = to.is_loopback() || to.is_unspecified();
    let is_same_family = to.is_ipv4() == own.is_ipv4();
    to == own
        || is_local && own.is_unspecified() && (is_same_family || own.is_ipv6())
        || to.is_unspecified() && own.is_loopback() && is_same_family
}

/// A DNS name, or an IP address without brackets.
pub(crate) fn is_host(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok() || is_dns_name(host)
}

/// The path of a URL, to be put before each request's.
fn parse_prefix(path: &str) -> Result<String, &'static str> {
    if path != "/" && !path::is_plain(path) {
        return Err("the path of the URL has an empty or dot segment, or an escape");
    }
    Ok(path.strip_suffix('/').unwrap_or(path).to_owned())
}

fn parse_host(host: &str) -> Result<String, &'static str> {
    let bracketed = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_address = match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    };
    if is_address {
        return Ok(bracketed.unwrap_or(host).to_owned());
    }
    if is_dns_name(host) {
        Ok(host.to_ascii_lowercase())
    } else {
        Err(NO_HOST)
    }
}

/// By RFC 1123, with the underscore that container networks use. A last label of digits would make it an address in a
/// spelling, like `127.1`, that resolvers understand and TLS does not.
pub(crate) fn is_dns_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or(host);
    host.len() <= 253
        && host.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<(bool, String, u16, String), &'static str> {
        Url::parse(text).map(|url| match url.destination {
            Destination::Tcp { host, port } => (url.tls, host, port, url.prefix),
            Destination::Unix(path) => (url.tls, path.display().to_string(), 0, url.prefix),
        })
    }

    #[test]
    fn a_url_is_taken_apart() {
        let parts = |tls, host: &str, port, prefix: &str| {
            Ok((tls, host.to_owned(), port, prefix.to_owned()))
        };
        assert_eq!(
            url("https://API.openai.com"),
            parts(true, "api.openai.com", 443, "")
        );
        assert_eq!(
            url("http://127.0.0.1:8080/base/path/"),
            parts(false, "127.0.0.1", 8080, "/base/path")
        );
        assert_eq!(url("http://[::1]:81/"), parts(false, "::1", 81, ""));
        assert_eq!(url("http://[::1]"), parts(false, "::1", 80, ""));
        assert_eq!(
            url("https://new_api:3000/v1"),
            parts(true, "new_api", 3000, "/v1")
        );
        assert_eq!(url("unix:/run/x.sock"), parts(false, "/run/x.sock", 0, ""));
        assert_eq!(
            url("unix:/run/x.sock:/base/"),
            parts(false, "/run/x.sock", 0, "/base")
        );
    }

    #[test]
    fn a_url_that_would_not_be_understood_is_refused() {
        for text in "https://127.1 https:// ftp://host host HTTPS://host http://a@host \
            http://host?q http://host#f http://host:x http://host: http://host:70000 http://-a.b http://a..b http://a. \
            http://host/a//b http://host/../b http://[::1 http://::1 http://host/%61 \
            unix: unix:x.sock unix:/ unix:/run/x.sock: unix:/run/x.sock:v1 unix:/run/x.sock:/../v1 unix://run/"
            .split_ascii_whitespace()
        {
            assert!(url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_seen_in_a_url_is_said() {
        assert!(url("https://h ").unwrap_err().contains("white space"));
        assert!(url("https://h/a b").unwrap_err().contains("white space"));
        assert!(
            url("https://bücher.example")
                .unwrap_err()
                .contains("`xn--…`")
        );
    }

    #[test]
    fn a_url_is_shown_as_it_is_meant() {
        for text in [
            "https://api.openai.com",
            "http://127.0.0.1:8080/base",
            "http://[::1]:81",
            "http://[::1]",
            "unix:/run/x.sock",
            "unix:/run/x.sock:/base",
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(
            Url::parse("https://A.b:443/").unwrap().to_string(),
            "https://a.b"
        );
    }

    #[test]
    fn a_destination_on_this_machine_is_known() {
        let is_reached = |own: &str, url: &str| {
            let own: SocketAddress = own.parse().unwrap();
            Url::parse(url).unwrap().destination.reaches(&own)
        };
        for (own, url) in [
            ("127.0.0.1:80", "http://127.0.0.1"),
            ("127.0.0.1:80", "http://localhost/base"),
            ("127.0.0.1:80", "http://0.0.0.0"),
            ("0.0.0.0:443", "https://127.0.0.2"),
            ("[::]:80", "http://127.0.0.1"),
            ("[::1]:80", "http://localhost"),
            ("10.0.0.1:80", "http://10.0.0.1"),
            ("unix:/run/a.sock", "unix:/run/a.sock:/base"),
        ] {
            assert!(is_reached(own, url), "{own} {url}");
        }
        for (own, url) in [
            ("127.0.0.1:80", "http://127.0.0.1:81"),
            ("127.0.0.1:80", "http://127.0.0.2"),
            ("127.0.0.1:80", "http://[::1]"),
            ("0.0.0.0:80", "http://10.0.0.1"),
            ("0.0.0.0:80", "http://[::1]"),
            ("127.0.0.1:80", "http://api.example"),
            ("unix:/run/a.sock", "unix:/run/b.sock"),
        ] {
            assert!(!is_reached(own, url), "{own} {url}");
        }
    }
}
