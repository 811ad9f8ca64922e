//! The head of a request as its upstream is to get it. What is ordered was decided before; where it goes is known.

use http::{HeaderName, HeaderValue, header};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;

use crate::api_key::X_API_KEY;
use crate::endpoint::Endpoint;
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

impl HeadEdit<'_> {
    pub fn write(&self, head: &mut RequestHeader) -> Result<()> {
        let prefix = self.origin.url.prefix.as_bytes();
        if !prefix.is_empty() {
            head.set_raw_path(&[prefix, self.target].concat())?;
        }
        head.insert_header(header::HOST, self.origin.host.clone())?;
        head.remove_header(&header::EXPECT);
        if !self.upgrade {
            head.remove_header(&header::UPGRADE);
            head.remove_header(&header::CONNECTION);
        } else if self.endpoint == Endpoint::Responses {
            // A compressed message could not be looked at.
            head.remove_header(&header::SEC_WEBSOCKET_EXTENSIONS);
        }
        if self.endpoint.takes_tier() {
            // The answer is observed.
            head.insert_header(header::ACCEPT_ENCODING, "identity")?;
        }
        self.write_credential(head)?;
        self.write_length(head)?;
        match self.order {
            Some(order) => write_tier_headers(head, order, self.endpoint),
            None => Ok(()),
        }
    }

    fn write_credential(&self, head: &mut RequestHeader) -> Result<()> {
        let Some(sent_in) = self.credential else {
            return Ok(());
        };
        let Some(value) = self.upstream.credential(sent_in) else {
            return Ok(());
        };
        head.remove_header(&header::AUTHORIZATION);
        head.remove_header(&X_API_KEY);
        let name = match sent_in {
            CredentialHeader::Authorization => &header::AUTHORIZATION,
            CredentialHeader::XApiKey => &X_API_KEY,
        };
        head.insert_header(name, value)
    }

    fn write_length(&self, head: &mut RequestHeader) -> Result<()> {
        match self.length {
            Length::Same => Ok(()),
            Length::Known(length) => {
                head.remove_header(&header::CONTENT_ENCODING);
                head.insert_header(header::CONTENT_LENGTH, length)
            }
            Length::Unknown => {
                head.remove_header(&header::CONTENT_ENCODING);
                head.remove_header(&header::CONTENT_LENGTH);
                Ok(())
            }
        }
    }
}

/// Headers that speak of the tier, brought into line with the body.
fn write_tier_headers(head: &mut RequestHeader, order: Order, endpoint: Endpoint) -> Result<()> {
    if order.beta_header && endpoint == Endpoint::Messages {
        let lines = head.headers.get_all(&ANTHROPIC_BETA).iter();
        let tokens: Vec<&[u8]> = lines
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .map(|token| token.trim_ascii())
            .filter(|token| !token.is_empty() && *token != FAST_MODE_BETA.as_bytes())
            .chain([FAST_MODE_BETA.as_bytes()])
            .collect();
        // The tokens come from header values, and what joins them may stand in one.
        let line = HeaderValue::from_bytes(&tokens.join(&b","[..]))
            .map_err(|why| Error::because(ErrorType::InternalError, "joining beta tokens", why))?;
        head.insert_header(&ANTHROPIC_BETA, line)?;
    }
    if let Some(hint) = head.headers.get(&ROUTING_HINT) {
        let others = hint
            .as_bytes()
            .split(|byte| *byte == b';')
            .map(|part| part.trim_ascii());
        let mut parts: Vec<&[u8]> = others
            .filter(|part| !part.starts_with(b"tier=") && !part.is_empty())
            .collect();
        parts.push(b"tier=priority");
        let hint = HeaderValue::from_bytes(&parts.join(&b";"[..])).map_err(|why| {
            Error::because(ErrorType::InternalError, "writing the routing hint", why)
        })?;
        head.insert_header(&ROUTING_HINT, hint)?;
    }
    Ok(())
}
