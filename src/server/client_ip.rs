//! Whose request it is: the peer of its connection, or the client that trusted proxies name in `x-forwarded-for`. It is
//! for the log only; nothing is decided by it.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

use crate::codec::framing::list_members;

static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A range of addresses: `10.0.0.0/8`, `2001:db8::/32`, or a single one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// How many leading bits all of its addresses share.
    prefix: u32,
}

/// The proxies whose word on a request's origin is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

impl Network {
    /// # Errors
    /// What is wrong with the text, for the configuration's mistakes.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected a network like `10.0.0.0/8`, or an address";
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| EXPECTED)?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => all,
            Some(digits) if !digits.starts_with('+') => digits.parse().map_err(|_| EXPECTED)?,
            Some(_) => return Err(EXPECTED),
        };
        if prefix > all {
            return Err(EXPECTED);
        }
        if bits(address).checked_shl(prefix).unwrap_or(0) != 0 {
            return Err("the address has bits beyond the prefix of its network");
        }
        Ok(Self { address, prefix })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let differ = bits(self.address) ^ bits(address);
        // A prefix of 0 shifts all of them out.
        self.address.is_ipv4() == address.is_ipv4()
            && differ.checked_shr(128 - self.prefix).unwrap_or(0) == 0
    }
}

impl TrustedProxies {
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The client of a request that came from `peer`: the peer itself where it is not trusted, else the right-most address
    /// in the header that is not. What stands left of that was written by nobody who is trusted. Where all are trusted,
    /// it is the left-most.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.contains(peer) {
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
            client = address;
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

/// Those of an address from the highest on, so that prefixes of both families are counted alike.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use http::HeaderValue;

    fn network(text: &str) -> Network {
        Network::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(trusted: &[&str], peer: &str, lines: &[&str]) -> String {
        let trusted = TrustedProxies::new(trusted.iter().map(|text| network(text)).collect());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&FORWARDED_FOR, HeaderValue::from_str(line).unwrap());
        }
        trusted.client(ip(peer), &headers).to_string()
    }

    #[test]
    fn a_network_is_an_address_and_how_much_of_it_counts() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.2"),
            ("10.1.2.2/31", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.1.1.1", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::"),
            ("::1", "::1", "::"),
        ] {
            assert!(network(text).contains(ip(inside)), "{text} {inside}");
            assert!(!network(text).contains(ip(outside)), "{text} {outside}");
        }
        for text in [
            "",
            "10",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.1/8",
            "::/129",
            "::1/64",
            "10.0.0.0/8/8",
            "host",
        ] {
            assert!(Network::parse(text).is_err(), "{text}");
        }
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
