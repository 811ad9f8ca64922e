//! Errors of Pingora in words for operators.

use std::io;

use pingora_core::{Error, ErrorType};

const TLS_FAILED: &str = "TLS failed";

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
    let cause = error.root_cause();
    let detail = match cause.downcast_ref::<io::Error>() {
        Some(why) => Some(why.to_string()),
        // Where a handshake fails, Pingora has its library's words within its own.
        None if words == TLS_FAILED => {
            let text = error.to_string();
            let told = text.split("TLS connect() failed: ").nth(1);
            let told = told.and_then(|told| told.split(", SNI").next());
            told.and_then(|told| told.rsplit("cause: ").next().map(str::to_owned))
        }
        None => None,
    };
    let detail = detail.map(|detail| match detail.split_once(" (os error") {
        Some((text, _)) => text.to_ascii_lowercase(),
        None => detail,
    });
    match detail {
        Some(detail) => format!("{words}: {detail}"),
        None => words.to_owned(),
    }
}
