//! TLS on the listeners: the certificate and key of a listener, read again when their files change.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::listeners::tls::Acceptor;
use prometheus::IntGauge;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::parse_x509_certificate;

use crate::config::watch::{FileWatcher, LoadFaults, WatchedFile};
use crate::config::{TlsFiles, pem};

/// What a listener hands its connections to. Handshakes that have begun keep the certificate they began with, and sessions
/// can be resumed after it was exchanged.
pub struct HotReloadedAcceptor {
    acceptor: Arc<Acceptor>,
    certificate: Arc<HotCertificate>,
    /// Metric of the moment at which the certificate in use ends.
    expiry: IntGauge,
}

/// The certificate that is shown whatever name a client asks for.
#[derive(Debug)]
struct HotCertificate(ArcSwap<CertifiedKey>);

/// What the files of a listener hold.
struct Loaded {
    certificate: CertifiedKey,
    /// When the first certificate of the chain ends, in seconds since 1970; 0 where none says so in a way that can be read.
    expiry: i64,
}

impl ResolvesServerCert for HotCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl HotReloadedAcceptor {
    /// The acceptor, and the watchers that keep it up to date. `expiry` is set to the end of the certificate in use.
    ///
    /// # Errors
    /// Where the files cannot be read or do not belong together.
    pub fn load(
        files: &TlsFiles,
        expiry: IntGauge,
        faults: &Arc<LoadFaults>,
    ) -> io::Result<(Arc<Self>, Vec<FileWatcher>)> {
        let watched = [WatchedFile::new(&files.cert), WatchedFile::new(&files.key)];
        let loaded = load(files)?;
        expiry.set(loaded.expiry);
        let certificate = ArcSwap::from_pointee(loaded.certificate);
        let certificate = Arc::new(HotCertificate(certificate));
        let config = server_config(certificate.clone()).map_err(io::Error::other)?;
        let live = Arc::new(Self {
            acceptor: Arc::new(Acceptor::from_server_config(Arc::new(config))),
            certificate,
            expiry,
        });
        let watchers = watched.map(|file| {
            let what = format!("certificate {}", files.cert.display());
            let (live, files) = (live.clone(), files.clone());
            faults.watch(what, file, move |_| live.reload(&files))
        });
        Ok((live, watchers.into()))
    }

    /// The acceptor for the next handshake.
    pub fn current(&self) -> Arc<Acceptor> {
        self.acceptor.clone()
    }

    fn reload(&self, files: &TlsFiles) -> Result<(), String> {
        match load(files) {
            Ok(loaded) => {
                self.certificate.0.store(Arc::new(loaded.certificate));
                self.expiry.set(loaded.expiry);
                log::info!("certificate {} loaded", files.cert.display());
                if let Some(fault) = pem::validity_fault(&files.cert) {
                    log::warn!("{fault}");
                }
            }
            // Certificate and key are two files: between the first and the second they do not fit.
            Err(why) => {
                let told = format!("certificate not loaded, the last good one stays: {why}");
                log::warn!("{told}");
                return Err(told);
            }
        }
        Ok(())
    }
}

/// Whether a listener could be opened with these files.
///
/// # Errors
/// Where the files cannot be read or do not belong together.
pub fn check(files: &TlsFiles) -> io::Result<()> {
    load(files).map(drop)
}

fn server_config(certificate: Arc<HotCertificate>) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?;
    let mut config = builder
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn load(files: &TlsFiles) -> io::Result<Loaded> {
    let chain = pem::certificates(&files.cert)?;
    let key = pem::private_key(&files.key)?;
    let expiry = first_expiry(&chain);
    let certificate = CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|why| pem::unusable_pair(files, &why))?;
    Ok(Loaded {
        certificate,
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
