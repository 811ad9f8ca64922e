//! A certificate authority of the tests' own, which the proxy under test is told to trust.

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::{Arc, OnceLock};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
    SupportedProtocolVersion,
};

/// The authority's certificate and one for this machine that it signed, all as PEM.
pub struct Certificates {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

/// Those of all peers of the tests.
pub fn certificates() -> &'static Certificates {
    static MADE: OnceLock<Certificates> = OnceLock::new();
    MADE.get_or_init(Certificates::new)
}

impl Certificates {
    /// They outlive the tests.
    pub fn new() -> Self {
        Self::good_until(4000)
    }

    /// This machine's certificate ends with the first moment of that year, the authority's a year before.
    pub fn good_until(year: i32) -> Self {
        Self::for_names(&["127.0.0.1", "localhost"], year)
    }

    /// For a name of elsewhere.
    pub fn of(name: &str) -> Self {
        Self::for_names(&[name], 4000)
    }

    fn for_names(names: &[&str], year: i32) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = date_time_ymd(year - 1, 1, 1);
        let authority_key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Self {
            authority: authority.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A server that offers these protocols.
pub fn server_config(protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let made = certificates();
    let certificate = CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// A client's connection to this machine over this socket, on which it sends whatever it is given. The socket may have
/// ended by now.
pub fn client(socket: TcpStream, protocol: &[u8]) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
    let connection = ClientConnection::new(client_config(protocol), name).unwrap();
    StreamOwned::new(connection, socket)
}

/// A client that speaks this protocol only and trusts the tests' authority only.
pub fn client_config(protocol: &[u8]) -> Arc<ClientConfig> {
    let mut config = client_config_of(rustls::DEFAULT_VERSIONS);
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

/// The same for some versions of TLS, without a word on protocols.
pub fn client_config_of(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(certificates().authority.as_bytes()).unwrap();
    roots.add(authority).unwrap();
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}
