//! The header in which a proxy in front tells whose connection it passes on: the PROXY protocol, versions 1 and 2
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>). It is given bytes and says what they mean; it reads no
//! socket and trusts nobody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is read, in bytes. The specification has every receiver take 536 in one piece; a client's certificate
/// beside the addresses, as some proxies tell it, has some thousand.
pub const MAX_BYTES: usize = 8 * 1024;
/// The longest line of version 1, its end included.
const MAX_LINE_BYTES: usize = 107;
const LINE_BEGIN: &[u8] = b"PROXY ";
const LINE_END: &[u8] = b"\r\n";
/// No header of either version is shorter than this one of version 1.
const SHORTEST: usize = b"PROXY UNKNOWN\r\n".len();
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family and protocol, and the length of the rest.
const FIXED_BYTES: usize = 16;

/// What a header says that may not be whole yet.
#[derive(Debug, PartialEq, Eq)]
pub enum Header {
    /// At least so many bytes of it are still to come. Whoever reads no more at a time never reads beyond it.
    Begun(usize),
    /// It is whole. None: the proxy speaks for itself, or of a client without an IP address.
    Whole(Option<SocketAddr>),
}

/// The header at the beginning of a connection, as far as it is here.
///
/// # Errors
/// Why these bytes begin no header.
pub fn parse(bytes: &[u8]) -> Result<Header, &'static str> {
    if bytes.len() < SHORTEST {
        return Ok(Header::Begun(SHORTEST - bytes.len()));
    }
    if bytes.starts_with(SIGNATURE) {
        parse_binary(bytes)
    } else if bytes.starts_with(LINE_BEGIN) {
        parse_line(bytes)
    } else {
        Err("it begins like neither version")
    }
}

fn parse_line(bytes: &[u8]) -> Result<Header, &'static str> {
    let Some(line) = bytes.strip_suffix(LINE_END) else {
        let missing = if bytes.ends_with(b"\r") { 1 } else { 2 };
        return match bytes.len() + missing {
            ..=MAX_LINE_BYTES => Ok(Header::Begun(missing)),
            _ => Err("the line is too long"),
        };
    };
    let line = std::str::from_utf8(line).map_err(|_| "the line is not ASCII")?;
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        [_, "UNKNOWN", ..] => Ok(Header::Whole(None)),
        [_, family, source, target, port, target_port] => {
            let (source, target) = (address(family, source)?, address(family, target)?);
            let (port, _) = (port_of(port)?, port_of(target_port)?);
            if source.is_ipv4() == target.is_ipv4() {
                Ok(Header::Whole(Some(SocketAddr::new(source, port))))
            } else {
                Err("the addresses are of two families")
            }
        }
        _ => Err("the line has not six words"),
    }
}

fn address(family: &str, text: &str) -> Result<IpAddr, &'static str> {
    let parsed = match family {
        "TCP4" => text.parse().map(IpAddr::V4),
        "TCP6" => text.parse().map(IpAddr::V6),
        _ => return Err("the family is unknown"),
    };
    parsed.map_err(|_| "an address is none of its family")
}

fn port_of(text: &str) -> Result<u16, &'static str> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|_| plain);
    port.ok_or("a port is no number up to 65535")
}

fn parse_binary(bytes: &[u8]) -> Result<Header, &'static str> {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED_BYTES) else {
        return Ok(Header::Begun(FIXED_BYTES - bytes.len()));
    };
    let (command, family) = (fixed[12], fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if FIXED_BYTES + length > MAX_BYTES {
        return Err("it is too long");
    }
    if rest.len() < length {
        return Ok(Header::Begun(length - rest.len()));
    }
    match command {
        // Of the proxy's own, as a check of health.
        0x20 => return Ok(Header::Whole(None)),
        0x21 => {}
        _ => return Err("the version or the command is unknown"),
    }
    match family >> 4 {
        // Not told, and a UNIX socket.
        0 | 3 => Ok(Header::Whole(None)),
        1 => source::<4>(rest)
            .map(|(ip, port)| Header::Whole(Some((Ipv4Addr::from(ip), port).into()))),
        2 => source::<16>(rest)
            .map(|(ip, port)| Header::Whole(Some((Ipv6Addr::from(ip), port).into()))),
        _ => Err("the family is unknown"),
    }
}

/// The source of both addresses and both ports, each source first. What follows them are extensions.
fn source<const N: usize>(block: &[u8]) -> Result<([u8; N], u16), &'static str> {
    let short = "the addresses are cut off";
    let (ip, rest) = block.split_first_chunk::<N>().ok_or(short)?;
    let (_target, rest) = rest.split_first_chunk::<N>().ok_or(short)?;
    let (ports, _) = rest.split_first_chunk::<4>().ok_or(short)?;
    Ok((*ip, u16::from_be_bytes([ports[0], ports[1]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    /// Reads as a listener does: never more than the header still needs. Returns what it said, and how much was read.
    fn read(bytes: &[u8]) -> Option<(Result<Option<SocketAddr>, &'static str>, usize)> {
        let mut length = 0;
        loop {
            match parse(&bytes[..length]) {
                Ok(Header::Whole(client)) => return Some((Ok(client), length)),
                Err(why) => return Some((Err(why), length)),
                Ok(Header::Begun(more)) => {
                    assert!(more > 0 && length + more <= MAX_BYTES);
                    length += more;
                    bytes.get(..length)?;
                }
            }
        }
    }

    fn client(bytes: &[u8]) -> Option<String> {
        let (told, length) = read(&[bytes, b"GET / HTTP/1.1\r\n"].concat()).unwrap();
        assert_eq!(length, bytes.len(), "read to the header's end");
        told.unwrap().map(|client| client.to_string())
    }

    fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, block].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 1, 187];

    #[test]
    fn version_1_names_the_client() {
        assert_eq!(
            client(b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n").unwrap(),
            "192.0.2.1:56324"
        );
        assert_eq!(
            client(b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n").unwrap(),
            "[2001:db8::1]:1"
        );
        assert_eq!(client(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(
            client(b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n"),
            None
        );
    }

    #[test]
    fn version_2_names_the_client() {
        assert_eq!(client(&binary(0x21, 0x11, &V4)).unwrap(), "192.0.2.1:4660");
        let block = [&[0x20, 1, 0xd, 0xb8][..], &[0; 12], &[0; 16], &[0, 7, 0, 9]].concat();
        assert_eq!(
            client(&binary(0x21, 0x21, &block)).unwrap(),
            "[2001:db8::]:7"
        );
        // With extensions behind the addresses.
        let block = [&V4[..], &[4, 0, 2, 0, 0]].concat();
        assert_eq!(
            client(&binary(0x21, 0x11, &block)).unwrap(),
            "192.0.2.1:4660"
        );
        assert_eq!(client(&binary(0x20, 0x00, &[])), None);
        assert_eq!(client(&binary(0x20, 0x11, &V4)), None);
        assert_eq!(client(&binary(0x21, 0x31, &[0; 216])), None);
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let line_of = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16));
        assert!(read(line_of(MAX_LINE_BYTES).as_bytes()).unwrap().0.is_ok());
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.1 10.0.0.1 56324\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 65536\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 +5632 443\r\n",
            b"PROXY TCP4 ::1 ::1 56324 443\r\n",
            b"PROXY TCP6 192.0.2.1 10.0.0.1 1 2\r\n",
            b"PROXY TCP5 192.0.2.1 10.0.0.1 1 2\r\n",
            b"PROXY TCP4  192.0.2.1 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 \xff\xff\xff 10.0.0.1 1 2\r\n",
            line_of(MAX_LINE_BYTES + 1).as_bytes(),
            &binary(0x11, 0x11, &V4),
            &binary(0x22, 0x11, &V4),
            &binary(0x21, 0x41, &V4),
            &binary(0x21, 0x11, &V4[..11]),
            &binary(0x21, 0x21, &V4),
            &binary(0x21, 0x11, &[0; MAX_BYTES - FIXED_BYTES + 1]),
        ] {
            let told = read(bytes);
            assert!(matches!(told, Some((Err(_), _))), "{told:?} {bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_read_beyond_its_limit(
            begin in prop_oneof![
                Just(SIGNATURE.to_vec()),
                Just(LINE_BEGIN.to_vec()),
                Just(Vec::new()),
            ],
            rest in proptest::collection::vec(any::<u8>(), 0..700),
        ) {
            read(&[begin, rest].concat());
        }
    }
}
