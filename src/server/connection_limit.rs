//! Whose connections count together where the connections of a client are limited.

use std::net::{IpAddr, Ipv6Addr};

pub use crate::policy::keyed_limiter::{KeyedLimiter, Permit};

/// The address that stands for all that one client has at will: of IPv6 the network of 64 bits, which is the least that a host
/// gets (RFC 6177).
pub fn subscriber(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_of_64_bits_are_one_client() {
        let of = |text: &str| subscriber(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3::4"), "2001:db8:1:2::");
        assert_eq!(of("2001:db8:1:2::"), "2001:db8:1:2::");
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
    }
}
