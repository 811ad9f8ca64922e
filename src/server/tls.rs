//! TLS on the listeners: the certificate and key of a listener, read again when their files change.

use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora_core::listeners::tls::Acceptor;
use prometheus::IntGauge;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::parse_x509_certificate;

use crate::config::TlsFiles;
use crate::config::watch::{FileWatcher, WatchedFile};

/// What a listener hands its connections to. Handshakes that have begun keep the certificate they began with.
pub struct LiveAcceptor {
    current: ArcSwap<Acceptor>,
    /// As [`Loaded::expiry`].
    expiry: IntGauge,
}

/// What the files of a listener hold.
struct Loaded {
    acceptor: Acceptor,
    /// When the first certificate of the chain ends, in seconds since 1970; 0 where none says so in a way that can be read.
    expiry: i64,
}

impl LiveAcceptor {
    /// The acceptor, and the followers that keep it up to date. `expiry` is set to the end of the certificate in use.
    ///
    /// # Errors
    /// Where the files cannot be read or do not belong together.
    pub fn load(files: &TlsFiles, expiry: IntGauge) -> io::Result<(Arc<Self>, Vec<FileWatcher>)> {
        let watches = [WatchedFile::new(&files.cert), WatchedFile::new(&files.key)];
        let loaded = load(files)?;
        expiry.set(loaded.expiry);
        let current = ArcSwap::from_pointee(loaded.acceptor);
        let live = Arc::new(Self { current, expiry });
        let followers = watches.map(|watch| {
            let (live, files) = (live.clone(), files.clone());
            FileWatcher::new(watch, move |_| live.reload(&files))
        });
        Ok((live, followers.into()))
    }

    pub fn current(&self) -> Arc<Acceptor> {
        self.current.load_full()
    }

    fn reload(&self, files: &TlsFiles) {
        match load(files) {
            Ok(loaded) => {
                self.current.store(Arc::new(loaded.acceptor));
                self.expiry.set(loaded.expiry);
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
    load(files).map(drop)
}

fn load(files: &TlsFiles) -> io::Result<Loaded> {
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect)
        .map_err(|why| unreadable(&files.cert, &why))?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|why| unreadable(&files.key, &why))?;
    let expiry = first_expiry(&certificates);
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certificates, key)
        })
        .map_err(|why| unreadable(&files.cert, &why))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded {
        acceptor: Acceptor::from_server_config(Arc::new(config)),
        expiry,
    })
}

/// A chain is as good as the certificate in it that ends first. What cannot be parsed here is no reason not to serve: rustls
/// has taken it.
fn first_expiry(certificates: &[CertificateDer<'_>]) -> i64 {
    let ends = certificates.iter().filter_map(|certificate| {
        let (_, parsed) = parse_x509_certificate(certificate).ok()?;
        Some(parsed.validity().not_after.timestamp())
    });
    ends.min().unwrap_or(0)
}

pub(crate) fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{}: {why}", path.display()),
    )
}
