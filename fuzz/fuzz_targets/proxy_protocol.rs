//! The PROXY protocol's header, which comes before anybody has shown a key. Read as the listener reads it, it is never read
//! beyond its end, and it is read to an end; what is read does not depend on what follows. What this project writes out
//! itself of a header that was taken is taken again, as the same.

#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use tiergate_fuzz::server::proxy_protocol::{Header, MAX_BYTES, parse};

/// What a header said, and how many bytes it took; none where the bytes end before it does.
fn read(bytes: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let mut length = 0;
    loop {
        match parse(&bytes[..length]) {
            Err(_) => return None,
            Ok(Header::Whole(client)) => return Some((client, length)),
            Ok(Header::Begun(more)) => {
                assert!(more > 0, "it waits for nothing");
                length += more;
                assert!(length <= MAX_BYTES, "it reads on and on");
                bytes.get(..length)?;
            }
        }
    }
}

fn line(client: SocketAddr) -> String {
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (ip, port) = (client.ip(), client.port());
    format!("PROXY {family} {ip} {ip} {port} 443\r\n")
}

fuzz_target!(|bytes: &[u8]| {
    // A header may also be looked at as a whole, wherever it is cut.
    let _ = parse(bytes);
    let Some((client, length)) = read(bytes) else {
        return;
    };
    let followed = [&bytes[..length], b"GET / HTTP/1.1\r\n"].concat();
    assert_eq!(read(&followed), Some((client, length)));
    if let Some(client) = client {
        let written = line(client);
        let again = (Some(client), written.len());
        // An address of IPv6 that is shown with one of IPv4 in it is taken all the same.
        assert_eq!(read(written.as_bytes()), Some(again), "{written}");
    }
});
