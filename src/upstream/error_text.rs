//! Errors of Pingora in words for operators.

use std::io;

use pingora_core::{Error, ErrorType};

const TLS_FAILED: &str = "TLS failed";
/// What `openssl req -x509` makes unless told otherwise.
const AUTHORITY: &str =
    "the server's certificate is one of an authority (CA:TRUE), which is not taken for a server's";

/// An error of Pingora in words for operators: what its type means, and the operating system's or the TLS library's word where
/// that says more. Neither quotes what a peer has sent.
pub fn describe_error(error: &Error) -> String {
    // A connection that failed is told as one, whatever its cause is called.
    let kind = match error.etype() {
        ErrorType::ConnectError => error.etype(),
        _ => error.root_etype(),
    };
    let words = match kind {
        ErrorType::ConnectRefused => return "connection refused".to_owned(),
        ErrorType::ConnectTimedout => return "no connection within the time for it".to_owned(),
        ErrorType::ConnectNoRoute => "no route",
        ErrorType::ConnectError => "no connection",
        ErrorType::TLSHandshakeTimedout => return "no TLS within the time for it".to_owned(),
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert => TLS_FAILED,
        ErrorType::ReadTimedout => return "no answer within the time for it".to_owned(),
        ErrorType::WriteTimedout => return "it takes no bytes of the request".to_owned(),
        ErrorType::ConnectionClosed => return "the connection was closed".to_owned(),
        ErrorType::InvalidHTTPHeader => return "an answer that is no HTTP".to_owned(),
        other => other.as_str(),
    };
    let detail = match error.root_cause().downcast_ref::<io::Error>() {
        Some(why) => Some(why.to_string()),
        None if words == TLS_FAILED => tls_library_words(error),
        None => None,
    };
    match detail {
        Some(detail) => format!("{words}: {}", without_number(detail)),
        None => words.to_owned(),
    }
}

/// The words for an error of the operating system, without its number.
fn without_number(words: String) -> String {
    match words.split_once(" (os error") {
        Some((words, _)) => words.to_ascii_lowercase(),
        None => words,
    }
}

/// What the TLS library says of a handshake that failed. Pingora has it within its own words only.
fn tls_library_words(error: &Error) -> Option<String> {
    let text = error.to_string();
    let told = text.split("TLS connect() failed: ").nth(1)?;
    let told = told.split(", SNI").next()?;
    let told = told.rsplit("cause: ").next()?;
    Some(match told.contains("CaUsedAsEndEntity") {
        true => AUTHORITY.to_owned(),
        false => told.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_by_what_is_behind_it() {
        let refused = io::Error::from_raw_os_error(13);
        let handshake = "TLS connect() failed: TLS error: cause: certificate expired, SNI: h";
        let authority = "TLS connect() failed: cause: invalid peer certificate: \
            Other(OtherError(CaUsedAsEndEntity)), SNI: h";
        for (error, text) in [
            (Error::new(ErrorType::ConnectRefused), "connection refused"),
            (
                Error::because(ErrorType::ConnectError, "x", refused),
                "no connection: permission denied",
            ),
            (
                Error::explain(ErrorType::TLSHandshakeFailure, handshake),
                "TLS failed: certificate expired",
            ),
            (
                Error::explain(ErrorType::TLSHandshakeFailure, authority),
                &*format!("TLS failed: {AUTHORITY}"),
            ),
            (Error::new(ErrorType::TLSHandshakeFailure), "TLS failed"),
        ] {
            assert_eq!(describe_error(&error), text);
        }
    }
}
