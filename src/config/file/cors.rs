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
        let section = field.optional(&self.diagnostics)?;
        let cors = section.read(&self.diagnostics);
        let origins = &cors.allow_origins;
        let origins = section.required(
            "allow_origins",
            origins,
            field.location(),
            &self.diagnostics,
        )?;
        let mut any = false;
        let origins = self.texts(origins, |text, location| {
            any |= text == "*";
            let origin = parse_origin(text);
            if origin.is_none() && text != "*" {
                let expected = "expected an origin like `https://app.example`, or `*`";
                self.diagnostics.add(location, expected);
            }
            origin
        });
        let allow_origins = if any {
            AllowedOrigins::Any
        } else {
            AllowedOrigins::Listed(origins)
        };
        Some(Cors { allow_origins })
    }
}

/// An origin as browsers send it (RFC 6454 section 6.2).
fn parse_origin(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let is_scheme = !scheme.is_empty()
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let is_authority = !rest.is_empty()
        && rest
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
    (is_scheme && is_authority).then(|| text.to_ascii_lowercase())
}
