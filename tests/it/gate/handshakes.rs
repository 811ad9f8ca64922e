//! What clients can agree on with a listener of TLS, and what not.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, ClientConnection, Error, StreamOwned};

use crate::support::client::Connection;
use crate::support::proxy::{self, Proxy};
use crate::support::{tls, upstream};

type Stream = StreamOwned<ClientConnection, std::net::TcpStream>;

fn start() -> (upstream::Upstream, Proxy) {
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new().upstream(&upstream).tls().run();
    (upstream, proxy)
}

/// A connection after its handshake.
fn shake(proxy: &Proxy, config: ClientConfig, name: &str) -> Result<Stream, Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    let connection = Connection::open(proxy.tls_address);
    let mut stream = StreamOwned::new(session, connection.socket().try_clone().unwrap());
    while stream.conn.is_handshaking() {
        if let Err(why) = stream.conn.complete_io(&mut stream.sock) {
            let why = why.into_inner().expect("an error of TLS");
            return Err(*why.downcast::<Error>().unwrap());
        }
    }
    Ok(stream)
}

fn offering(protocols: &[&str]) -> ClientConfig {
    let mut config = tls::client_config_of(rustls::DEFAULT_VERSIONS);
    let names = protocols.iter().map(|name| name.as_bytes().to_vec());
    config.alpn_protocols = names.collect();
    config
}

/// The beginning of the answer to one request, which has to be read for what comes after a handshake to be there.
fn ask(stream: &mut Stream) -> String {
    let request = "GET /v1/models HTTP/1.1\r\nHost: h\r\nx-api-key: sk-plain\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    String::from_utf8(start.to_vec()).unwrap()
}

#[test]
fn versions_of_today_are_spoken() {
    let (_upstream, proxy) = start();
    for version in [&TLS12, &TLS13] {
        let config = tls::client_config_of(&[version]);
        let mut stream = shake(&proxy, config, "localhost").unwrap();
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
        assert_eq!(ask(&mut stream), "HTTP/1.1 200");
    }
}

/// RFC 5246 appendix E.1: a hello without extensions, which a server of an old version takes up.
#[test]
fn versions_of_yesterday_are_refused() {
    let (_upstream, proxy) = start();
    for minor in [0, 1, 2] {
        let mut hello = vec![1, 0, 0, 46, 3, minor];
        hello.extend([7; 32]);
        // No session; ECDHE-ECDSA and ECDHE-RSA with AES-128-CBC, and RSA; DEFLATE or no compression.
        hello.extend([0, 0, 6, 0xc0, 0x09, 0xc0, 0x13, 0, 0x2f, 2, 1, 0]);
        let mut connection = Connection::open(proxy.tls_address);
        connection.send([&[22, 3, 1, 0, 50][..], &hello].concat());
        let answer = connection.rest();
        // An alert, and that it is fatal.
        assert_eq!((answer[0], answer[5]), (21, 2), "{answer:?}");
    }
}

#[test]
fn a_protocol_is_agreed_on_or_the_connection_refused() {
    let (_upstream, proxy) = start();
    let offers: [(&[&str], Option<&str>); 4] = [
        (&["h2", "http/1.1"], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ];
    for (offer, agreed) in offers {
        let stream = shake(&proxy, offering(offer), "localhost").unwrap();
        let found = stream.conn.alpn_protocol();
        assert_eq!(found, agreed.map(str::as_bytes), "{offer:?}");
    }
    let refused = shake(&proxy, offering(&["spdy/3"]), "localhost").err();
    let alert = AlertDescription::NoApplicationProtocol;
    assert_eq!(refused, Some(Error::AlertReceived(alert)));
}

#[test]
fn a_name_that_the_certificate_is_not_for_is_the_clients_to_refuse() {
    let (_upstream, proxy) = start();
    let refused = shake(&proxy, offering(&[]), "unknown.test").err().unwrap();
    assert!(matches!(refused, Error::InvalidCertificate(_)), "{refused}");
}

/// Whoever records early data can send it again, and with it a request that costs money.
#[test]
fn no_early_data_is_taken() {
    let (_upstream, proxy) = start();
    let mut config = tls::client_config_of(&[&TLS13]);
    config.enable_early_data = true;
    let first = shake(&proxy, config.clone(), "localhost");
    assert_eq!(ask(&mut first.unwrap()), "HTTP/1.1 200");
    let name = ServerName::try_from("localhost").unwrap();
    let mut again = ClientConnection::new(Arc::new(config), name).unwrap();
    assert!(again.early_data().is_none());
}
