//! TLS towards an upstream: the authorities that are trusted, the certificate that the proxy shows. What they are read
//! from and the name that is verified stand in the configuration; the handshake is Pingora's.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pingora_core::protocols::tls::CaType;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::secret_file::unusable;
use crate::config::{TlsFiles, UpstreamTls, pem};

/// What connections to one upstream are made with. Those that have begun keep what they began with.
pub struct UpstreamTlsConfig {
    authorities: Option<Arc<CaType>>,
    identity: Option<Arc<CertKey>>,
    /// Keeps pooled connections from all that are made with something else: Pingora does not tell them apart by the
    /// authorities that they were verified with.
    group: u64,
}

static NEXT_GROUP: AtomicU64 = AtomicU64::new(0);

impl Default for UpstreamTlsConfig {
    /// The system's authorities, and nothing to show.
    fn default() -> Self {
        Self {
            authorities: None,
            identity: None,
            group: NEXT_GROUP.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl UpstreamTlsConfig {
    /// Reads the files of an upstream's `tls`.
    ///
    /// # Errors
    /// Where a file cannot be read, or is not what it should be.
    pub fn load(settings: &UpstreamTls) -> io::Result<Self> {
        let authorities = settings.ca.as_deref().map(load_authorities).transpose()?;
        let identity = settings.identity.as_ref().map(load_identity).transpose()?;
        Ok(Self {
            authorities,
            identity,
            ..Self::default()
        })
    }

    /// Whether connections made with the one will do for the other.
    pub fn is_same(&self, other: &Self) -> bool {
        self.read() == other.read()
    }

    /// All that it was read from.
    fn read(&self) -> Vec<Vec<u8>> {
        let authorities = self.authorities.iter().flat_map(|all| all.iter().map(raw));
        // What stands between the two lists belongs to neither.
        let mut read: Vec<Vec<u8>> = authorities.chain([Vec::new()]).collect();
        if let Some(identity) = &self.identity {
            read.push(identity.key().clone());
            read.push(raw(identity.leaf()));
            read.extend(identity.intermediates().into_iter().map(raw));
        }
        read
    }

    /// Has the connections of a peer made with this.
    pub fn apply(&self, peer: &mut HttpPeer) {
        peer.options.ca.clone_from(&self.authorities);
        peer.client_cert_key.clone_from(&self.identity);
        peer.group_key = self.group;
    }
}

fn load_authorities(path: &Path) -> io::Result<Arc<CaType>> {
    let certificates = certificates(path)?;
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store
            .add(certificate.clone())
            .map_err(|why| unusable(path, &why))?;
    }
    Ok(certificates.iter().map(wrapped).collect())
}

fn load_identity(files: &TlsFiles) -> io::Result<Arc<CertKey>> {
    let chain = certificates(&files.cert)?;
    let key = pem::private_key(&files.key)?;
    let der = key.secret_der().to_vec();
    if PrivateKeyDer::try_from(&der[..]).is_err() {
        // Pingora tells the kinds of keys apart by their bytes alone, and panics where it cannot.
        return Err(unusable(&files.key, &"not a key of a known kind"));
    }
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_root_certificates(RootCertStore::empty())
                .with_client_auth_cert(chain.clone(), key)
        })
        .map_err(|why| pem::unusable_pair(files, &why))?;
    let chain = chain.iter().map(|certificate| certificate.to_vec());
    Ok(Arc::new(CertKey::new(chain.collect(), der)))
}

/// At least one, each of which Pingora can read: it panics over others.
fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates = pem::certificates(path)?;
    for certificate in &certificates {
        X509Certificate::from_der(certificate).map_err(|why| unusable(path, &why))?;
    }
    Ok(certificates)
}

fn raw(certificate: &WrappedX509) -> Vec<u8> {
    certificate.borrow_raw_cert().clone()
}

fn wrapped(certificate: &CertificateDer<'static>) -> WrappedX509 {
    WrappedX509::new(certificate.to_vec(), parse_x509)
}
