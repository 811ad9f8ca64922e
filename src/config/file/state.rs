//! The section `state` as written, and what it resolves to.

use std::net::IpAddr;
use std::path::PathBuf;

use http::Uri;
use serde::Deserialize;

use super::{ReferencedFile, Resolver};
use crate::config::diagnostic::Location;
use crate::config::field::{Field, TextOr};
use crate::config::url::is_host;
use crate::config::{Redis, StateStore};

/// The port that redis.io names for the scheme `redis`.
const REDIS_PORT: u16 = 6379;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StateSection {
    url: Field<String>,
    password_file: Field<String>,
}

impl Resolver<'_> {
    pub(super) fn state(&self, field: &Field<TextOr<'_, StateSection>>) -> Option<StateStore> {
        match field.optional(&self.errors)? {
            TextOr::Text(text) if text.contains("://") => self.redis(text, field.location(), None),
            TextOr::Text(text) if text.contains(':') => {
                let message = "expected the path of a file, or a URL like `redis://host:6379/0`";
                self.errors.add(field.location(), message);
                None
            }
            TextOr::Text(text) => {
                let path = self.errors.note(field.location(), self.path_of(text))?;
                self.refer(field.location(), ReferencedFile::State(path.clone()));
                Some(StateStore::File(path))
            }
            TextOr::Section(section) => {
                let state = section.read(field.location(), &self.errors);
                let url = state.required("url", &state.url);
                let password = self.referenced(&state.password_file, ReferencedFile::RedisPassword);
                self.redis(url?, state.url.location(), password)
            }
        }
    }

    fn redis(
        &self,
        text: &str,
        location: Location,
        password_file: Option<PathBuf>,
    ) -> Option<StateStore> {
        let redis = Redis {
            password_file,
            ..self.errors.note(location, parse_redis(text))?
        };
        if redis.user.is_some() && redis.password_file.is_none() {
            let message = "a user without `password_file` cannot log in";
            self.warnings.add(location, message);
        }
        if redis.password_file.is_some() && !redis.tls && !is_loopback(&redis.host) {
            let message = "the password crosses the network in the clear; `rediss://` encrypts it";
            self.warnings.add(location, message);
        }
        Some(StateStore::Redis(redis))
    }
}

/// A URL by the scheme that the Internet Assigned Numbers Authority lists for Redis. Reasons never quote the text: it may
/// carry a password.
fn parse_redis(text: &str) -> Result<Redis, &'static str> {
    const EXPECTED: &str = "expected a URL like `redis://host:6379/0` or `rediss://host`";
    let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
    let tls = match uri.scheme_str() {
        Some("redis") => false,
        Some("rediss") => true,
        _ => return Err(EXPECTED),
    };
    let authority = uri.authority().ok_or(EXPECTED)?;
    let user = authority.as_str().rsplit_once('@').map(|(user, _)| user);
    if user.is_some_and(|user| user.contains(':')) {
        return Err(
            "a password does not stand in the configuration; use `state: {url: …, password_file: …}`",
        );
    }
    let port = match authority.port_u16() {
        Some(0) => return Err(EXPECTED),
        Some(port) => port,
        // What stands behind the host is no port.
        None if !authority.as_str().ends_with(authority.host()) => return Err(EXPECTED),
        None => REDIS_PORT,
    };
    let host = authority
        .host()
        .trim_matches(['[', ']'])
        .to_ascii_lowercase();
    if !is_host(&host) || uri.query().is_some() {
        return Err(EXPECTED);
    }
    let database = match uri.path().trim_start_matches('/') {
        "" => 0,
        digits => digits.parse().map_err(|_| EXPECTED)?,
    };
    Ok(Redis {
        tls,
        host,
        port,
        database,
        user: user.filter(|user| !user.is_empty()).map(str::to_owned),
        password_file: None,
    })
}

fn is_loopback(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
