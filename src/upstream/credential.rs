//! The key that the proxy itself sends to an upstream, in place of its clients' keys.

use std::io;

use http::HeaderValue;

use crate::policy::CredentialHeader;
use crate::policy::api_key::RequestKey;
use crate::policy::key_shape::check_credential;

/// The headers of one upstream key, marked sensitive so that no `Debug` prints them.
pub(super) struct Credential {
    authorization: HeaderValue,
    x_api_key: HeaderValue,
    pub key: RequestKey,
}

impl Credential {
    /// The one line of a file.
    ///
    /// # Errors
    /// Where it holds something else than a key.
    pub fn parse(file: &[u8]) -> io::Result<Self> {
        let text = std::str::from_utf8(file).map_err(|_| unusable("the file is not text"))?;
        let mut lines = text.lines();
        let key = lines.next().unwrap_or_default().trim();
        if key.is_empty() {
            return Err(unusable("the file holds no key in its first line"));
        }
        if lines.any(|line| !line.trim().is_empty()) {
            return Err(unusable(
                "the file holds more than one line; the key stands there alone",
            ));
        }
        check_credential(key).map_err(unusable)?;
        Ok(Self {
            authorization: header(format!("Bearer {key}"))?,
            x_api_key: header(key.to_owned())?,
            key: RequestKey::new(key.as_bytes()),
        })
    }

    /// The value of this header.
    pub fn header(&self, name: CredentialHeader) -> HeaderValue {
        match name {
            CredentialHeader::Authorization => self.authorization.clone(),
            CredentialHeader::XApiKey | CredentialHeader::ApiKey => self.x_api_key.clone(),
        }
    }
}

fn header(value: String) -> io::Result<HeaderValue> {
    let mut value =
        HeaderValue::try_from(value).map_err(|_| unusable("the key cannot stand in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn unusable(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
