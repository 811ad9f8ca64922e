//! Whose request it is: the peer of its connection, or the client that trusted proxies name in `x-forwarded-for`. It is
//! for the log only; nothing is decided by it.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

use crate::codec::framing::list_members;
use crate::config::TrustedProxies;

static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl TrustedProxies {
    /// The client of a request that came from `peer`: the peer itself where it is not trusted, else the right-most address
    /// in the header that is not. What stands left of that was written by nobody who is trusted. Where all are trusted,
    /// it is the left-most. None: the peer of a UNIX socket has no address.
    pub fn client(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.contains_peer(peer) {
            return peer;
        }
        // In the order of the way: each proxy adds the address it was called from at the end.
        let hops: Vec<&[u8]> = list_members(headers, &FORWARDED_FOR).collect();
        let mut client = peer;
        for hop in hops.into_iter().rev() {
            // One that hides who called it is as far as one can see.
            let Some(address) = address_of(hop) else {
                break;
            };
            client = Some(address);
            if !self.contains(address) {
                break;
            }
        }
        client
    }
}

/// An element of the header: an address, also with a port, as some proxies write it.
fn address_of(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    let bracketed = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = bracketed.unwrap_or(text).parse();
    let address = address.or_else(|_| text.parse().map(|socket: SocketAddr| socket.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::network::parse_network;

    use http::HeaderValue;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(trusted: &[&str], peer: &str, lines: &[&str]) -> String {
        let networks = trusted.iter().map(|text| parse_network(text).unwrap());
        let trusted = TrustedProxies::new(networks.collect(), false);
        let client = trusted.client(Some(ip(peer)), &headers(lines));
        client.unwrap().to_string()
    }

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&FORWARDED_FOR, HeaderValue::from_str(line).unwrap());
        }
        headers
    }

    #[test]
    fn the_peer_of_a_unix_socket_has_no_address_and_may_be_believed() {
        let networks = || vec![parse_network("10.0.0.0/8").unwrap()];
        let client = |unix, lines: &[&str]| {
            TrustedProxies::new(networks(), unix).client(None, &headers(lines))
        };
        assert_eq!(client(false, &["203.0.113.9"]), None);
        assert_eq!(client(true, &[]), None);
        let told = client(true, &["1.1.1.1, 203.0.113.9, 10.9.9.9"]);
        assert_eq!(told, Some(ip("203.0.113.9")));
    }

    #[test]
    fn only_a_trusted_peer_is_believed() {
        let forged = ["203.0.113.9"];
        assert_eq!(client(&[], "10.0.0.1", &forged), "10.0.0.1");
        assert_eq!(client(&["10.0.0.2"], "10.0.0.1", &forged), "10.0.0.1");
        assert_eq!(client(&["10.0.0.1"], "10.0.0.1", &forged), "203.0.113.9");
        assert_eq!(client(&["10.0.0.1"], "10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn the_right_most_address_that_is_not_trusted_is_the_client() {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"];
        let of = |lines: &[&str]| client(&trusted, "10.0.0.1", lines);
        assert_eq!(of(&["1.1.1.1, 203.0.113.9, 10.9.9.9"]), "203.0.113.9");
        assert_eq!(of(&["1.1.1.1", "203.0.113.9 ,10.9.9.9"]), "203.0.113.9");
        assert_eq!(of(&["10.3.3.3,10.2.2.2"]), "10.3.3.3");
        assert_eq!(of(&["203.0.113.9:1234, [2001:db8::1]:443"]), "203.0.113.9");
        assert_eq!(of(&["[2001:db9::7]"]), "2001:db9::7");
        assert_eq!(of(&["::ffff:203.0.113.9"]), "203.0.113.9");
        // Beyond what cannot be read nothing is known.
        assert_eq!(of(&["203.0.113.9, unknown, 10.2.2.2"]), "10.2.2.2");
        assert_eq!(of(&["203.0.113.9,,"]), "10.0.0.1");
    }
}
