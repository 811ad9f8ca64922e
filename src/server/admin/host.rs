//! Whom a request to the admin listener is meant for. A page of another site can have its own name lead to this address (DNS
//! rebinding) and then read all that is told here; its requests name the other site. So a name has to be one that nobody can
//! have in the public DNS.

use std::net::IpAddr;

use http::uri::Authority;
use http::{HeaderMap, Uri, header};

/// Domains that the public DNS does not have: RFC 6761 (`localhost`, `test`), RFC 8375 (`home.arpa`), ICANN's for private use
/// (`internal`), and those of services in Kubernetes. `local` as a whole is anybody's in the same network (RFC 6762).
const PRIVATE_DOMAINS: [&str; 6] = [
    "localhost",
    "test",
    "internal",
    "home.arpa",
    "svc",
    "cluster.local",
];

/// Whether the request names this listener: by an address, or by a name without a dot or in one of the [`PRIVATE_DOMAINS`].
/// One that names nothing is no browser's.
pub fn is_known(uri: &Uri, headers: &HeaderMap) -> bool {
    let in_uri = uri.authority().map(Authority::host);
    let lines = headers.get_all(header::HOST).iter();
    let in_headers = lines.map(|line| {
        let authority = line
            .to_str()
            .ok()
            .and_then(|text| text.parse::<Authority>().ok());
        authority.map(|authority| authority.host().to_owned())
    });
    in_uri.is_none_or(is_own)
        && in_headers
            .into_iter()
            .all(|host| host.is_some_and(|host| is_own(&host)))
}

fn is_own(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok() || is_private(&host.trim_end_matches('.').to_ascii_lowercase())
}

fn is_private(host: &str) -> bool {
    let in_domain = |domain: &&str| {
        let rest = host.strip_suffix(*domain);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    !host.is_empty() && (!host.contains('.') || PRIVATE_DOMAINS.iter().any(in_domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knows(hosts: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, http::HeaderValue::from_static(host));
        }
        is_known(&Uri::from_static("/status"), &headers)
    }

    #[test]
    fn addresses_and_names_that_the_public_dns_has_not_are_known() {
        for host in [
            "127.0.0.1:9464",
            "10.0.0.1",
            "[::1]:9464",
            "[2001:db8::1]",
            "localhost",
            "LOCALHOST:9464",
            "tiergate:9464",
            "tiergate.proxies.svc.cluster.local:9464",
            "proxy.internal",
        ] {
            assert!(knows(&[host]), "{host}");
        }
        assert!(knows(&[]));
    }

    #[test]
    fn other_names_are_not() {
        for host in [
            "rebound.example",
            "127.0.0.1.rebound.example:9464",
            "localhost.rebound.example",
            "internal.example",
            "evilinternal.example",
            "printer.local",
            "user@",
            "",
        ] {
            assert!(!knows(&[host]), "{host}");
        }
        assert!(!knows(&["localhost", "rebound.example"]));
        let uri = Uri::from_static("http://rebound.example/status");
        assert!(!is_known(&uri, &HeaderMap::new()));
    }
}
