//! Networks of proxies whose word on where a request comes from is taken. How that word is read stands in
//! `proxy/client_ip.rs`.

use std::net::IpAddr;

use ipnet::IpNet;

/// What stands for the peers of UNIX sockets in a list of networks, as in nginx's `set_real_ip_from`.
pub(crate) const UNIX_SOCKETS: &str = "unix:";

/// The proxies whose word on a request's origin is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    unix: bool,
}

impl TrustedProxies {
    /// Trusts every address in these networks, and with `unix` whoever connects to a UNIX socket.
    pub fn new(networks: Vec<IpNet>, unix: bool) -> Self {
        Self { networks, unix }
    }

    /// Whether this address is one of a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        let mut networks = self.networks.iter();
        networks.any(|network| network.contains(&address))
    }

    /// Whether the peer of a connection is a trusted proxy; one without an address is that of a UNIX socket.
    pub fn contains_peer(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.unix, |address| self.contains(address))
    }
}

/// Names of hosts that no name server of the public has (RFC 6761, RFC 6762, RFC 8375, and what clusters use).
const PRIVATE_ENDINGS: [&str; 6] = [
    ".local",
    ".localhost",
    ".internal",
    ".lan",
    ".home.arpa",
    ".svc",
];

/// Whether what is sent to a host stays on this machine or in its own network, by its address or name alone. A name of one
/// label is that of a neighbour.
pub(crate) fn is_private(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => {
            let [first, second, ..] = address.octets();
            let is_shared = first == 100 && second & 0xc0 == 64;
            address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || address.is_unspecified()
                || is_shared
        }
        Ok(IpAddr::V6(address)) => {
            address.is_loopback()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_unspecified()
        }
        Err(_) => {
            let mut endings = PRIVATE_ENDINGS.iter();
            !host.contains('.') || endings.any(|ending| host.ends_with(ending))
        }
    }
}

/// A range of addresses: `10.0.0.0/8`, `2001:db8::/32`, or a single one.
///
/// # Errors
/// What is wrong with the text, for the configuration's mistakes.
pub(crate) fn parse_network(text: &str) -> Result<IpNet, &'static str> {
    const EXPECTED: &str = "expected a network like `10.0.0.0/8`, an address, or `unix:`";
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = text.parse().map_err(|_| EXPECTED)?;
    if network.addr() != network.network() {
        return Err("the address has bits beyond the prefix of its network");
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let trusted = TrustedProxies::new(vec![parse_network(text).unwrap()], false);
            assert!(trusted.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(
                !trusted.contains(outside.parse().unwrap()),
                "{text} {outside}"
            );
        }
        assert!(!TrustedProxies::new(Vec::new(), false).contains_peer(None));
        assert!(TrustedProxies::new(Vec::new(), true).contains_peer(None));
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
            assert!(parse_network(text).is_err(), "{text}");
        }
    }
}
