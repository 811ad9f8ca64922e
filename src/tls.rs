//! TLS on the listeners: the certificate and key of a listener, read again when their files change.

use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora_core::listeners::tls::Acceptor;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::TlsFiles;
use crate::reload::{Follower, Watch};

/// What a listener hands its connections to. Handshakes that have begun keep the certificate they began with.
pub struct LiveAcceptor(ArcSwap<Acceptor>);

impl LiveAcceptor {
    /// The acceptor, and the followers that keep it up to date.
    ///
    /// # Errors
    /// Where the files cannot be read or do not belong together.
    pub fn load(files: &TlsFiles) -> io::Result<(Arc<Self>, Vec<Follower>)> {
        let watches = [Watch::new(&files.cert), Watch::new(&files.key)];
        let live = Arc::new(Self(ArcSwap::from_pointee(acceptor(files)?)));
        let followers = watches.map(|watch| {
            let (live, files) = (live.clone(), files.clone());
            Follower::new(watch, move |_| live.reload(&files))
        });
        Ok((live, followers.into()))
    }

    pub fn current(&self) -> Arc<Acceptor> {
        self.0.load_full()
    }

    fn reload(&self, files: &TlsFiles) {
        match acceptor(files) {
            Ok(acceptor) => {
                self.0.store(Arc::new(acceptor));
                log::info!("certificate {} loaded", files.cert.display());
            }
            // Certificate and key are two files: between the first and the second they do not fit.
            Err(why) => log::warn!("certificate not loaded, the last good one stays: {why}"),
        }
    }
}

/// Whether a listener could be opened with these files.
///
/// # Errors
/// As of [`LiveAcceptor::load`].
pub fn check(files: &TlsFiles) -> io::Result<()> {
    acceptor(files).map(drop)
}

fn acceptor(files: &TlsFiles) -> io::Result<Acceptor> {
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect)
        .map_err(|why| unreadable(&files.cert, &why))?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|why| unreadable(&files.key, &why))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certificates, key)
        })
        .map_err(|why| unreadable(&files.cert, &why))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Acceptor::from_server_config(Arc::new(config)))
}

pub(crate) fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{}: {why}", path.display()),
    )
}
