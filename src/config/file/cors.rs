//! The section `cors` as written, and what it resolves to.

use serde::Deserialize;

use super::Resolver;
use crate::config::field::{Field, List, Section};
use crate::config::{AllowedOrigins, Cors};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CorsSection {
    allow_origins: Field<List<String>>,
}

impl Resolver<'_> {
    pub(super) fn cors(&self, field: &Field<Section<CorsSection>>) -> Option<Cors> {
        let cors = field.section(&self.errors)?;
        let origins_given = cors.required("allow_origins", &cors.allow_origins)?;
        let mut any = false;
        let parse = |text: &str| {
            any |= text == "*";
            match parse_origin(text) {
                None if text != "*" => Err("expected an origin like `https://app.example`, or `*`"),
                origin => Ok(origin),
            }
        };
        let origins = origins_given.parse(parse, &self.errors);
        if origins_given.is_empty() || any && origins_given.len() > 1 {
            let message = "expected `[\"*\"]`, or at least one origin and no `*` beside it";
            self.errors.add(cors.allow_origins.location(), message);
        }
        let allow_origins = if any {
            AllowedOrigins::Any
        } else {
            AllowedOrigins::Listed(origins.into_iter().flatten().collect())
        };
        Some(Cors { allow_origins })
    }
}

/// An origin as browsers send it (RFC 6454 section 6.2): without the port that its scheme has anyway.
fn parse_origin(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let (scheme, authority) = lower.split_once("://")?;
    let is_scheme = !scheme.is_empty()
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let (host, port) = split_port(authority)?;
    let is_host = !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
    let is_standard = matches!((scheme, port), ("http", Some(80)) | ("https", Some(443)));
    match port.filter(|_| !is_standard) {
        _ if !is_scheme || !is_host => None,
        Some(port) => Some(format!("{scheme}://{host}:{port}")),
        None => Some(format!("{scheme}://{host}")),
    }
}

/// A host, IPv6 in brackets, and the port behind it. `None` where what stands there is no port.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let colon = authority.rfind(':').filter(|_| !authority.ends_with(']'));
    let Some(colon) = colon else {
        return Some((authority, None));
    };
    let port: u16 = authority[colon + 1..].parse().ok()?;
    (port > 0).then_some((&authority[..colon], Some(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_as_browsers_send_it() {
        for (text, origin) in [
            ("https://App.example:443", "https://app.example"),
            ("http://localhost:80", "http://localhost"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("https://[::1]:443", "https://[::1]"),
            ("http://[::1]", "http://[::1]"),
            ("https://h:80", "https://h:80"),
            ("chrome-extension://abc", "chrome-extension://abc"),
        ] {
            assert_eq!(parse_origin(text).as_deref(), Some(origin), "{text}");
        }
        for text in [
            "https://h:99999",
            "https://h:",
            "https://h:0",
            "https://",
            "h",
            "https://h/p",
        ] {
            assert_eq!(parse_origin(text), None, "{text}");
        }
    }
}
