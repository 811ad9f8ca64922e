//! Where spans of requests are sent.

use std::io;
use std::path::{Path, PathBuf};

use http::{HeaderName, HeaderValue};

use crate::config::secret_file::{self, FileBytes};
use crate::config::url::Url;

/// The section `traces`.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// URL of an OTLP collector for spans over HTTP, its path included.
    pub endpoint: Url,
    /// A file of headers that the collector is sent, one `name: value` a line; read for each batch.
    pub headers_file: Option<PathBuf>,
    /// Share of the requests without a caller's trace that are recorded, from 0 to 1.
    pub sample_ratio: f64,
}

/// The headers that a file of [`Traces::headers_file`] holds.
///
/// # Errors
/// Where it cannot be read, or a line of it is no header.
pub(crate) fn read_headers(file: &Path) -> io::Result<Vec<(HeaderName, HeaderValue)>> {
    let bytes = FileBytes::read_told(file)?;
    parse_headers(&bytes).map_err(|why| secret_file::unusable(file, &why))
}

/// Reads the lines of such a file. Empty ones and those that begin with `#` say nothing.
///
/// # Errors
/// What is wrong with a line. Nothing of it is quoted: it may be a key.
fn parse_headers(bytes: &[u8]) -> Result<Vec<(HeaderName, HeaderValue)>, &'static str> {
    let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    lines.map(parse_header).collect()
}

fn parse_header(line: &[u8]) -> Result<(HeaderName, HeaderValue), &'static str> {
    const EXPECTED: &str = "expected lines like `authorization: Bearer KEY`";
    let colon = line.iter().position(|byte| *byte == b':').ok_or(EXPECTED)?;
    let (name, value) = line.split_at(colon);
    let name = HeaderName::from_bytes(name).map_err(|_| EXPECTED)?;
    let value = HeaderValue::from_bytes(value[1..].trim_ascii());
    let mut value = value.map_err(|_| EXPECTED)?;
    value.set_sensitive(true);
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stand_one_a_line() {
        let read =
            parse_headers(b"# the collector's\n\nAuthorization: Bearer x:y\r\nx-a:b").unwrap();
        let told = read
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        let told: Vec<_> = told.collect();
        assert_eq!(
            told,
            [("authorization", &b"Bearer x:y"[..]), ("x-a", &b"b"[..])]
        );
        for wrong in ["Bearer x", ": x", "a b: c", "a: \x01"] {
            assert!(parse_headers(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
