//! The request that is explained, and who sends it.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use pingora_http::RequestHeader;

use crate::policy::Policy;
use crate::policy::api_key::parse_digest;
use crate::policy::endpoint::Endpoint;
use crate::proxy::body_filter::may_be_empty;
use crate::proxy::may_upgrade;

/// Whose request it is: the key itself, or its digest where nobody has the key at hand.
pub enum Caller {
    Key(String),
    Digest([u8; 32]),
}

/// A request as its client would send it.
pub struct Request {
    pub(super) caller: Caller,
    pub(super) head: RequestHeader,
    pub(super) body: Bytes,
}

impl Caller {
    /// The key of that name in the policy.
    ///
    /// # Errors
    /// Where no key or more than one has the name.
    pub fn by_name(name: &str, policy: &Policy) -> Result<Caller, String> {
        let mut named = policy.keys().filter(|key| &*key.name == name);
        match (named.next(), named.next()) {
            (Some(key), None) => Ok(Caller::Digest(*key.id)),
            (Some(_), Some(_)) => Err("several keys have that name; use --digest".to_owned()),
            (None, _) => Err("the policy has no key of that name".to_owned()),
        }
    }

    /// The key whose SHA-256 is written so: `sha256:` and 64 hexadecimal digits.
    ///
    /// # Errors
    /// Where the text is no digest.
    pub fn by_digest(text: &str) -> Result<Caller, String> {
        let digest = text.strip_prefix("sha256:").and_then(parse_digest);
        digest
            .map(Caller::Digest)
            .ok_or_else(|| "expected `sha256:` and 64 hexadecimal digits".to_owned())
    }

    /// In the place of a key that is not at hand, something that a header can have.
    fn text(&self) -> &str {
        match self {
            Caller::Key(key) => key,
            Caller::Digest(_) => "key",
        }
    }
}

impl Request {
    /// Of the default body: an empty object, or none with a method that goes without.
    ///
    /// # Errors
    /// What cannot be a request.
    pub fn new(
        caller: Caller,
        method: &Method,
        path: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Option<Vec<u8>>,
    ) -> Result<Request, String> {
        let body = body.unwrap_or_else(|| default_body(method).to_owned());
        let path = without_origin(path)?;
        let mut head = RequestHeader::build(method.clone(), path.as_bytes(), None)
            .map_err(|_| "the path cannot stand in a request")?;
        let bearer = HeaderValue::try_from(format!("Bearer {}", caller.text()));
        let bearer = bearer.map_err(|_| "the key cannot stand in a header")?;
        let own = [(header::AUTHORIZATION, bearer)];
        for (name, value) in own.into_iter().chain(headers) {
            head.append_header(name, value)
                .map_err(|_| "too many headers")?;
        }
        if !body.is_empty() || !may_be_empty(method) {
            head.insert_header(header::CONTENT_LENGTH, body.len())
                .map_err(|_| "too many headers")?;
        }
        Ok(Request {
            caller,
            head,
            body: body.into(),
        })
    }

    pub(super) fn length(&self) -> u64 {
        self.body.len() as u64
    }

    /// Whether it would become a WebSocket, if the upstream agrees.
    pub(super) fn upgrades(&self, endpoint: Endpoint) -> bool {
        may_upgrade(&self.head, endpoint)
    }

    /// Text of the request's that is shown only if the key is not in it.
    pub(super) fn shown<'t>(&self, text: &'t str) -> &'t str {
        match &self.caller {
            Caller::Key(key) if !key.is_empty() && text.contains(key) => {
                "(not shown: the key is in it)"
            }
            _ => text,
        }
    }
}

/// Path and query of a URL; a path is taken as it is, whatever is in it.
fn without_origin(path: &str) -> Result<&str, String> {
    let Some((scheme, rest)) = path.split_once("://").filter(|_| !path.starts_with('/')) else {
        return match path.starts_with(['/', '*']) {
            true => Ok(path),
            false => Err(format!("a path begins with `/`: `/{path}`")),
        };
    };
    if !matches!(scheme, "http" | "https" | "ws" | "wss") {
        return Err(
            "expected a path, or a URL that begins with `http://` or `https://`".to_owned(),
        );
    }
    let path = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
    let path = path.split('#').next().unwrap_or_default();
    Ok(if path.is_empty() { "/" } else { path })
}

fn default_body(method: &Method) -> &'static [u8] {
    if may_be_empty(method) { b"" } else { b"{}" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_url_the_path_and_the_query_are_taken() {
        for (given, path) in [
            ("/v1/responses", "/v1/responses"),
            (
                "https://gateway.example/v1/responses?a=b#c",
                "/v1/responses?a=b",
            ),
            ("http://h:8080", "/"),
            ("wss://h/v1/responses", "/v1/responses"),
            ("/a?u=http://x", "/a?u=http://x"),
        ] {
            let taken = without_origin(given);
            assert_eq!(taken.as_deref(), Ok(path), "{given}");
        }
        assert!(without_origin("ftp://h/x").is_err());
    }
}
