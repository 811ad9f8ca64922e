//! Certificates and private keys in PEM files (RFC 7468), and what is wrong with such a file in words for people.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::parse_x509_certificate;
use x509_parser::prelude::Validity;
use x509_parser::time::ASN1Time;

use crate::config::TlsFiles;
use crate::config::secret_file::{FileBytes, unusable};

/// The tag that every certificate and key begins with where it is no PEM (X.690).
const DER_SEQUENCE: u8 = 0x30;

/// The certificates of a file, in its order.
///
/// # Errors
/// Where it cannot be read, or has none.
pub(crate) fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let bytes = FileBytes::read_told(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|why| unusable(path, &explain(&why, &bytes)))?;
    if found.is_empty() {
        return Err(unusable(path, &explain(&Error::NoItemsFound, &bytes)));
    }
    Ok(found)
}

/// The first private key of a file.
///
/// # Errors
/// Where it cannot be read, or has none.
pub(crate) fn private_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let bytes = FileBytes::read_told(path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|why| unusable(path, &explain(&why, &bytes)))
}

/// Why the certificates of a file are not good at this moment, if so. Peers refuse them then.
pub(crate) fn validity_fault(path: &Path) -> Option<String> {
    let now = Timestamp::now();
    let day = |time: ASN1Time| {
        let time = Timestamp::from_second(time.timestamp()).unwrap_or_default();
        time.strftime("%F").to_string()
    };
    certificates(path).ok()?.iter().find_map(|certificate| {
        let (_, parsed) = parse_x509_certificate(certificate).ok()?;
        let Validity {
            not_before,
            not_after,
        } = *parsed.validity();
        let fault = if not_after.timestamp() < now.as_second() {
            format!("has expired on {}", day(not_after))
        } else if not_before.timestamp() > now.as_second() {
            format!("is not valid before {}", day(not_before))
        } else {
            return None;
        };
        Some(format!("{}: the certificate {fault}", path.display()))
    })
}

/// Why a certificate and a key cannot be used together.
pub(crate) fn unusable_pair(files: &TlsFiles, why: &rustls::Error) -> io::Error {
    match why {
        rustls::Error::InconsistentKeys(_) => {
            let certificate = files.cert.display();
            let what = format!("the key is not that of the certificate {certificate}");
            unusable(&files.key, &what)
        }
        why => unusable(&files.cert, why),
    }
}

/// What to do about a file in which nothing was found.
fn explain(why: &Error, bytes: &[u8]) -> String {
    let is_encrypted = bytes
        .split(|byte| *byte == b'\n')
        .any(|line| line.starts_with(b"-----BEGIN ENCRYPTED") || line.ends_with(b"ENCRYPTED"));
    if is_encrypted {
        "the key is encrypted, and there is nobody to ask for the passphrase; `openssl pkey` writes it without one".to_owned()
    } else if bytes.first() == Some(&DER_SEQUENCE) {
        "this is DER, and PEM is expected; `openssl x509` and `openssl pkey` convert it".to_owned()
    } else if matches!(why, Error::NoItemsFound) {
        "there is nothing of the kind in it: PEM begins with `-----BEGIN CERTIFICATE-----` or `-----BEGIN PRIVATE KEY-----`".to_owned()
    } else {
        why.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_pem_is_told_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (content, told) in [
            (&b"\x30\x82\x01\x0a\x02\x82"[..], "this is DER"),
            (
                b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n",
                "encrypted",
            ),
            (
                b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAA==\n",
                "encrypted",
            ),
            (b"", "nothing of the kind"),
            (b"hello\n", "nothing of the kind"),
        ] {
            std::fs::write(&path, content).unwrap();
            for why in [certificates(&path).err(), private_key(&path).err()] {
                let why = why.unwrap().to_string();
                assert!(why.contains(told) && why.contains("file: "), "{why}");
            }
        }
    }
}
