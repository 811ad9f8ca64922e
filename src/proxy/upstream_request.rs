//! The head of a request as its upstream is to get it. What is ordered was decided before; where it goes is known.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;

use crate::codec::framing::{list_members, write_line};
use crate::policy::api_key::X_API_KEY;
use crate::policy::endpoint::Endpoint;
use crate::policy::{ANTHROPIC_BETA, CredentialHeader, FAST_MODE_BETA, Order};
use crate::upstream::{Origin, Upstream};

static ROUTING_HINT: HeaderName = HeaderName::from_static("x-codex-routing-hint");

/// What decides how a head is changed on its way to the upstream.
pub struct HeadEdit<'a> {
    pub upstream: &'a Upstream,
    /// The one of its URLs that the request goes to.
    pub origin: &'a Origin,
    /// The path and query that the client asked for.
    pub target: &'a [u8],
    /// The header in which the client sent its key.
    pub credential: Option<CredentialHeader>,
    pub endpoint: Endpoint,
    pub order: Option<Order>,
    pub upgrade: bool,
    pub length: Length,
}

/// Of the body that goes to the upstream.
pub enum Length {
    /// It goes as it came.
    Same,
    /// It was rewritten.
    Known(usize),
    /// It is being rewritten.
    Unknown,
}

/// What becomes of the headers of a head. Those that are not named go on as they came.
struct Changes<'a> {
    removed: Vec<&'a HeaderName>,
    /// Each in place of all that have its name.
    set: Vec<(&'a HeaderName, HeaderValue)>,
}

/// Headers that speak of one connection only (RFC 9110 §7.6.1), which Pingora removes from its own heads.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl HeadEdit<'_> {
    /// Edits a head that Pingora sends.
    ///
    /// # Errors
    /// Where a header's new value cannot stand in one.
    pub fn write(&self, head: &mut RequestHeader) -> Result<()> {
        let prefix = self.origin.url.prefix.as_bytes();
        if !prefix.is_empty() {
            head.set_raw_path(&[prefix, self.target].concat())?;
        }
        let Changes { removed, set } = self.changes(&head.headers)?;
        for name in removed {
            head.remove_header(name);
        }
        for (name, value) in set {
            head.insert_header(name, value)?;
        }
        Ok(())
    }

    /// The edited head of a request over HTTP/1.1, made of the one that came: its lines stay as they are and where they are,
    /// but for those that change. It is known to be well-formed.
    ///
    /// # Errors
    /// Where a header's new value cannot stand in one.
    pub fn wire(&self, method: &Method, came: &[u8], headers: &HeaderMap) -> Result<Vec<u8>> {
        const ADDED_BYTES: usize = 256;
        let Changes { removed, mut set } = self.changes(headers)?;
        let mut wire = Vec::with_capacity(came.len() + ADDED_BYTES);
        let prefix = self.origin.url.prefix.as_bytes();
        let method = method.as_str().as_bytes();
        for part in [method, b" ", prefix, self.target, b" HTTP/1.1\r\n"] {
            wire.extend_from_slice(part);
        }
        let mut written = 0;
        for line in header_lines(came) {
            let name = &line[..memchr::memchr(b':', line).unwrap_or(line.len())];
            let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
            if let Some(place) = set.iter().position(|(name, _)| is(name.as_str())) {
                // Its second line is to find nothing; those behind `written` are still to come.
                if place >= written {
                    write_line(&mut wire, name, set[place].1.as_bytes());
                    set.swap(place, written);
                    written += 1;
                }
            } else if !self.goes_no_further(&is) && !removed.iter().any(|name| is(name.as_str())) {
                wire.extend_from_slice(line);
            }
        }
        for (name, value) in &set[written..] {
            write_line(&mut wire, name.as_str().as_bytes(), value.as_bytes());
        }
        wire.extend_from_slice(b"\r\n");
        Ok(wire)
    }

    /// Whether a header speaks of the client's connection only, and not of what becomes of both.
    fn goes_no_further(&self, is: &impl Fn(&str) -> bool) -> bool {
        let is_upgrade = || self.upgrade && (is("connection") || is("upgrade"));
        HOP_BY_HOP.iter().any(|hop| is(hop)) && !is_upgrade()
    }

    fn changes(&self, headers: &HeaderMap) -> Result<Changes<'_>> {
        let mut changes = Changes {
            removed: Vec::with_capacity(6),
            set: Vec::with_capacity(6),
        };
        let Changes { removed, set } = &mut changes;
        set.push((&header::HOST, self.origin.host.clone()));
        removed.push(&header::EXPECT);
        if !self.upgrade {
            removed.extend([&header::UPGRADE, &header::CONNECTION]);
        } else if self.endpoint == Endpoint::Responses {
            // A compressed message could not be looked at.
            removed.push(&header::SEC_WEBSOCKET_EXTENSIONS);
        }
        if self.endpoint.tells_usage() {
            // The answer is observed.
            set.push((
                &header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            ));
        }
        self.change_credential(&mut changes);
        self.change_length(&mut changes);
        if let Some(order) = self.order {
            change_tier_headers(headers, order, self.endpoint, &mut changes)?;
        }
        Ok(changes)
    }

    fn change_credential(&self, changes: &mut Changes<'_>) {
        let own = self
            .credential
            .and_then(|sent_in| Some((sent_in, self.upstream.credential(sent_in)?)));
        let Some((sent_in, value)) = own else {
            return;
        };
        let (name, other) = match sent_in {
            CredentialHeader::Authorization => (&header::AUTHORIZATION, &X_API_KEY),
            CredentialHeader::XApiKey => (&X_API_KEY, &header::AUTHORIZATION),
        };
        changes.removed.push(other);
        changes.set.push((name, value));
    }

    fn change_length(&self, changes: &mut Changes<'_>) {
        match self.length {
            Length::Same => {}
            Length::Known(length) => {
                changes.removed.push(&header::CONTENT_ENCODING);
                changes.set.push((&header::CONTENT_LENGTH, length.into()));
            }
            Length::Unknown => changes
                .removed
                .extend([&header::CONTENT_ENCODING, &header::CONTENT_LENGTH]),
        }
    }
}

/// The lines behind the first of a head, each with its end, without the empty one.
fn header_lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = head.split_inclusive(|byte| *byte == b'\n');
    let is_empty = |line: &&[u8]| *line == b"\r\n";
    lines
        .skip_while(is_empty)
        .skip(1)
        .take_while(move |line| !is_empty(line))
}

/// Headers that speak of the tier, brought into line with the body.
fn change_tier_headers(
    headers: &HeaderMap,
    order: Order,
    endpoint: Endpoint,
    changes: &mut Changes<'_>,
) -> Result<()> {
    if order.beta_header && endpoint == Endpoint::Messages {
        let tokens: Vec<&[u8]> = list_members(headers, &ANTHROPIC_BETA)
            .filter(|token| !token.is_empty() && *token != FAST_MODE_BETA.as_bytes())
            .chain([FAST_MODE_BETA.as_bytes()])
            .collect();
        changes.set.push((&ANTHROPIC_BETA, joined(&tokens, b",")?));
    }
    if let Some(hint) = headers.get(&ROUTING_HINT) {
        let others = hint
            .as_bytes()
            .split(|byte| *byte == b';')
            .map(|part| part.trim_ascii());
        let parts: Vec<&[u8]> = others
            .filter(|part| !part.starts_with(b"tier=") && !part.is_empty())
            .chain([&b"tier=priority"[..]])
            .collect();
        changes.set.push((&ROUTING_HINT, joined(&parts, b";")?));
    }
    Ok(())
}

/// The parts come from header values, and what joins them may stand in one.
fn joined(parts: &[&[u8]], separator: &[u8]) -> Result<HeaderValue> {
    HeaderValue::from_bytes(&parts.join(separator)).map_err(|why| {
        Error::because(
            ErrorType::InternalError,
            "joining the parts of a header",
            why,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::service_tier::Edit;
    use crate::config::Config;
    use crate::http1::idle::Room;
    use crate::policy::TierReason;

    fn upstream(settings: &str) -> Upstream {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiergate.yaml");
        let text = format!("policy: p\nupstreams: {{u: {{url: \"http://up:81{settings}\"}}}}\n");
        std::fs::write(&path, text).unwrap();
        let (config, _) = Config::load(&path).unwrap();
        Upstream::new(config.upstreams[0].clone(), &Room::new(0)).unwrap()
    }

    /// What becomes of these lines in a forced request with 20 bytes, by either way.
    fn edited(lines: &str, endpoint: Endpoint, upstream: &Upstream) -> (String, RequestHeader) {
        let came = format!("\r\nPOST /v1/x?y HTTP/1.1\r\n{lines}\r\n");
        let mut head = RequestHeader::build("POST", b"/v1/x?y", None).unwrap();
        for line in lines.lines() {
            let (name, value) = line.split_once(':').unwrap();
            head.append_header(name.to_owned(), value.trim()).unwrap();
        }
        let edit = HeadEdit {
            upstream,
            origin: &upstream.origins[0],
            target: b"/v1/x?y",
            credential: Some(CredentialHeader::Authorization),
            endpoint,
            order: Some(Order {
                reason: TierReason::GroupForce,
                body: Edit::Set,
                beta_header: endpoint == Endpoint::Messages,
            }),
            upgrade: false,
            length: Length::Known(20),
        };
        let wire = edit
            .wire(&Method::POST, came.as_bytes(), &head.headers)
            .unwrap();
        edit.write(&mut head).unwrap();
        (String::from_utf8(wire).unwrap(), head)
    }

    #[test]
    fn lines_stay_as_they_are_and_where_they_are_but_for_those_that_change() {
        let lines = "X-a:1\r\nhOST: client\r\nAccept-Encoding: gzip\r\nx-A:  2 \r\nContent-LENGTH: 9\r\n\
            content-encoding: zstd\r\nAuthorization: Bearer k\r\nexpect: 100-continue\r\n";
        let (wire, _) = edited(lines, Endpoint::Responses, &upstream("/base"));
        assert_eq!(
            wire,
            "POST /base/v1/x?y HTTP/1.1\r\nX-a:1\r\nhOST: up:81\r\nAccept-Encoding: identity\r\nx-A:  2 \r\n\
            Content-LENGTH: 20\r\nAuthorization: Bearer k\r\n\r\n"
        );
    }

    #[test]
    fn what_changes_stands_once_and_is_added_where_it_is_missing() {
        let lines = "anthropic-beta: a, fast-mode-2026-02-01\r\nX-Codex-Routing-Hint: tier=flex; b\r\n\
            Anthropic-Beta: c\r\naccept-encoding: gzip\r\naccept-encoding: br\r\n";
        let (wire, _) = edited(lines, Endpoint::Messages, &upstream(""));
        assert_eq!(
            wire,
            "POST /v1/x?y HTTP/1.1\r\nanthropic-beta: a,c,fast-mode-2026-02-01\r\n\
            X-Codex-Routing-Hint: b;tier=priority\r\naccept-encoding: identity\r\nhost: up:81\r\n\
            content-length: 20\r\n\r\n"
        );
    }

    #[test]
    fn what_speaks_of_one_connection_goes_no_further() {
        for name in HOP_BY_HOP {
            let (wire, _) = edited(
                &format!("{name}: x\r\nHost: h\r\n"),
                Endpoint::Other,
                &upstream(""),
            );
            assert_eq!(
                wire,
                "POST /v1/x?y HTTP/1.1\r\nHost: up:81\r\ncontent-length: 20\r\n\r\n"
            );
        }
    }

    #[test]
    fn both_ways_come_to_the_same_headers() {
        let lines = "Host: h\r\naccept: */*\r\nAuthorization: Bearer k\r\nx-api-key: k\r\ncontent-length: 9\r\n\
            Anthropic-beta: b\r\nx-codex-routing-hint: a;tier=x\r\nContent-Encoding: br\r\nexpect: 100-continue\r\n";
        for credential in [false, true] {
            let upstream = upstream("");
            if credential {
                upstream
                    .load_credential(Ok(b"own".to_vec().into()))
                    .unwrap();
            }
            for endpoint in [Endpoint::Responses, Endpoint::Messages, Endpoint::Other] {
                let (wire, head) = edited(lines, endpoint, &upstream);
                let mut by_wire: Vec<String> = wire
                    .lines()
                    .skip(1)
                    .filter(|line| !line.is_empty())
                    .map(|line| line.split_once(": ").unwrap())
                    .map(|(name, value)| format!("{}: {value}", name.to_lowercase()))
                    .collect();
                let by_map = head.headers.iter();
                let mut by_map: Vec<String> = by_map
                    .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                    .collect();
                by_wire.sort_unstable();
                by_map.sort_unstable();
                assert_eq!(by_wire, by_map);
                assert_eq!(wire.contains("Bearer own"), credential);
            }
        }
    }
}
