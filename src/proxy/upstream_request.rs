//! The head of a request as its upstream is to get it. What is ordered was decided before; where it goes is known.

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use memchr::memmem;
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::RequestHeader;

use crate::codec::framing::{connection_headers, list_members};
use crate::codec::service_tier::Edit;
use crate::codec::trace_context::{TraceContext, TraceParent};
use crate::config::ForwardedHeaders;
use crate::policy::endpoint::Endpoint;
use crate::policy::{
    ANTHROPIC_BETA, BetaHeader, ClientBeta, Credential, CredentialHeader, FAST_MODE_BETA,
    TierAction, asks_for_fast_mode,
};
use crate::proxy::forwarded_headers::is_forwarded;
use crate::upstream::{Origin, Upstream};

/// The headers of W3C Trace Context.
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
pub(super) static ROUTING_HINT: HeaderName = HeaderName::from_static("x-codex-routing-hint");

/// Headers that speak of one connection only (RFC 9110 §7.6.1, RFC 9113 §8.2.2). Pingora removes them where it speaks
/// HTTP/1.1.
pub const HOP_BY_HOP: [&str; 10] = [
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

/// Headers of a request that name an account, beside those of [`CredentialHeader`]: a provider refuses another account's
/// beside the proxy's own key, or books the request to it.
const ACCOUNT: [&str; 10] = [
    "anthropic-organization-id",
    "anthropic-workspace-id",
    "chatgpt-account-id",
    "cookie",
    "ocp-apim-subscription-key",
    "openai-organization",
    "openai-project",
    "x-goog-api-key",
    "x-goog-user-project",
    "x-litellm-api-key",
];

/// What members of `sec-websocket-protocol` begin with that name an account: browsers can set no other header on a WebSocket
/// (<https://platform.openai.com/docs/guides/realtime-websocket>).
const ACCOUNT_SUBPROTOCOLS: [&str; 3] = [
    "openai-insecure-api-key.",
    "openai-organization.",
    "openai-project.",
];

/// What decides how a head is changed on its way to the upstream.
pub struct HeadEdit<'a> {
    pub upstream: &'a Upstream,
    /// The one of its URLs that the request goes to.
    pub origin: &'a Origin,
    /// The path and query that the client asked for.
    pub target: &'a [u8],
    /// The client's key, and the header in which it came.
    pub credential: Option<&'a Credential>,
    pub endpoint: Endpoint,
    pub action: Option<TierAction>,
    pub client_beta: ClientBeta,
    pub upgrade: bool,
    pub is_http2: bool,
    /// The request's span, where headers of traces are written.
    pub trace: Option<TraceContext>,
    pub length: Length,
    /// The body was held: what was decided goes by what it says as JSON.
    pub is_held: bool,
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
    /// Makes of the client's head the one that the upstream is to get. Headers that nothing is said of go on as they came.
    ///
    /// # Errors
    /// Where a new value cannot stand in a header, or the target in a URI.
    pub fn apply(&self, head: &mut RequestHeader) -> Result<()> {
        let prefix = self.origin.url.prefix.as_bytes();
        if !prefix.is_empty() {
            head.set_raw_path(&[prefix, self.target].concat())?;
        }
        if self.is_http2 {
            // Before anything is set, which the client might name.
            for name in connection_headers(&head.headers) {
                head.remove_header(&name);
            }
        }
        head.remove_header(&header::EXPECT);
        if !self.upgrade {
            head.remove_header(&header::UPGRADE);
            head.remove_header(&header::CONNECTION);
        } else if self.endpoint == Endpoint::Responses {
            // A compressed message could not be looked at.
            head.remove_header(&header::SEC_WEBSOCKET_EXTENSIONS);
        }
        if self.endpoint.tells_usage() {
            // The response is observed.
            head.insert_header(header::ACCEPT_ENCODING, "identity")?;
        }
        self.set_credential(head)?;
        if self.upstream.config.forwarded_headers == ForwardedHeaders::Remove {
            remove_all(head, is_forwarded);
        }
        self.set_length(head)?;
        self.set_trace(head)?;
        if self.is_http2 {
            self.make_http2(head)?;
        } else {
            head.insert_header(header::HOST, self.origin.host.clone())?;
        }
        self.edit_as_configured(head)?;
        self.set_content_type(head)?;
        // No setting takes a tier out of a request again.
        let set = self
            .action
            .map_or(BetaHeader::Keep, |action| action.beta_header);
        let beta_header = match self.client_beta {
            ClientBeta::Removed if set == BetaHeader::Keep => BetaHeader::Remove,
            _ => set,
        };
        set_beta_header(head, beta_header, self.endpoint)?;
        match self.action {
            Some(action) => set_routing_hint(head, action),
            None => Ok(()),
        }
    }

    /// Puts the upstream's own key in the place of the client's, or takes out what came beside the client's.
    fn set_credential(&self, head: &mut RequestHeader) -> Result<()> {
        let Some(credential) = self.credential else {
            return Ok(());
        };
        let Some(own) = self.upstream.credential(credential.header) else {
            let Some((others, (name, value))) = credential.without_others(&head.headers) else {
                return Ok(());
            };
            for other in others {
                head.remove_header(other);
            }
            return head.insert_header(name, value);
        };
        for header in CredentialHeader::ALL {
            head.remove_header(header.name());
        }
        for name in ACCOUNT {
            head.remove_header(name);
        }
        remove_account_subprotocols(head)?;
        head.insert_header(credential.header.name(), own)
    }

    /// `headers` of the upstream's settings. It names nothing that is set above.
    fn edit_as_configured(&self, head: &mut RequestHeader) -> Result<()> {
        let edits = &self.upstream.config.headers;
        for name in &edits.remove {
            head.remove_header(name);
        }
        for (name, value) in &edits.set {
            head.insert_header(name, value)?;
        }
        Ok(())
    }

    /// `tracestate` belongs to the trace that its `traceparent` names, and to no other.
    fn set_trace(&self, head: &mut RequestHeader) -> Result<()> {
        let Some(trace) = &self.trace else {
            return Ok(());
        };
        if trace.parent.is_none() {
            head.remove_header(&TRACESTATE);
        }
        head.insert_header(TRACEPARENT.clone(), trace.traceparent())
    }

    fn set_length(&self, head: &mut RequestHeader) -> Result<()> {
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

    /// A body that was read as JSON is not to be read as a form, in which the same bytes may say something else: LiteLLM and
    /// new-api go by the type.
    fn set_content_type(&self, head: &mut RequestHeader) -> Result<()> {
        let is_form = |value: &HeaderValue| {
            let kind = value.as_bytes().to_ascii_lowercase();
            memmem::find(&kind, b"form").is_some()
        };
        let mut kinds = head.headers.get_all(header::CONTENT_TYPE).iter();
        if !self.is_held || !kinds.any(is_form) {
            return Ok(());
        }
        head.insert_header(header::CONTENT_TYPE, "application/json")
    }

    /// What Pingora does to a head that goes out over HTTP/2, which it leaves to whoever brings a connector.
    fn make_http2(&self, head: &mut RequestHeader) -> Result<()> {
        for name in HOP_BY_HOP {
            head.remove_header(name);
        }
        head.remove_header(&header::HOST);
        let invalid = || "a target that HTTP/2 cannot carry";
        let path = PathAndQuery::try_from(head.raw_path())
            .or_err_with(ErrorType::InvalidHTTPHeader, invalid)
            .map_err(|error| error.into_down())?;
        let authority = Authority::try_from(self.origin.host.as_bytes());
        let uri = Uri::builder()
            .scheme(match self.origin.url.tls {
                true => Scheme::HTTPS,
                false => Scheme::HTTP,
            })
            .authority(authority.or_err_with(ErrorType::InternalError, invalid)?)
            .path_and_query(path)
            .build();
        head.set_uri(uri.or_err_with(ErrorType::InvalidHTTPHeader, invalid)?);
        head.set_version(http::Version::HTTP_2);
        Ok(())
    }
}

/// The trace that the client says its request belongs to; none where it says nothing that can be read.
pub fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut lines = headers.get_all(&TRACEPARENT).iter();
    let parent = TraceParent::parse(lines.next()?.as_bytes());
    parent.filter(|_| lines.next().is_none())
}

/// Makes one header of the cookies that a client of HTTP/2 may send as several (RFC 9113 §8.2.3): servers of HTTP/1.1 read one.
pub fn join_cookies(head: &mut RequestHeader) -> Result<()> {
    let cookies = head.headers.get_all(header::COOKIE);
    let cookies: Vec<&[u8]> = cookies.iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() < 2 {
        return Ok(());
    }
    let cookies = joined(&cookies, b"; ")?;
    set_or_remove(head, &header::COOKIE, cookies)
}

/// The fast-mode token, where it is to be there or not.
fn set_beta_header(head: &mut RequestHeader, is_to: BetaHeader, endpoint: Endpoint) -> Result<()> {
    let sets_beta = is_to == BetaHeader::Set && endpoint == Endpoint::Messages;
    let removes_beta = is_to == BetaHeader::Remove && asks_for_fast_mode(&head.headers);
    if sets_beta || removes_beta {
        let tokens: Vec<&[u8]> = list_members(&head.headers, &ANTHROPIC_BETA)
            .filter(|token| !token.is_empty() && *token != FAST_MODE_BETA.as_bytes())
            .chain(sets_beta.then_some(FAST_MODE_BETA.as_bytes()))
            .collect();
        let tokens = joined(&tokens, b",")?;
        set_or_remove(head, &ANTHROPIC_BETA, tokens)?;
    }
    Ok(())
}

/// Codex's hint of the tier, brought into line with the body.
fn set_routing_hint(head: &mut RequestHeader, action: TierAction) -> Result<()> {
    if action.changes()
        && let Some(hint) = head.headers.get(&ROUTING_HINT)
    {
        let tier = match action.body {
            Edit::Set(tier) => Some(tier.as_str()),
            _ => action.tier_in_header(),
        };
        let tier = tier.map(|tier| format!("tier={tier}"));
        let others = hint
            .as_bytes()
            .split(|byte| *byte == b';')
            .map(|part| part.trim_ascii());
        let parts: Vec<&[u8]> = others
            .filter(|part| !part.starts_with(b"tier=") && !part.is_empty())
            .chain(tier.as_ref().map(String::as_bytes))
            .collect();
        let hint = joined(&parts, b";")?;
        set_or_remove(head, &ROUTING_HINT, hint)?;
    }
    Ok(())
}

fn remove_all(head: &mut RequestHeader, is: impl Fn(&str) -> bool) {
    let names = head.headers.keys().filter(|name| is(name.as_str()));
    let names: Vec<HeaderName> = names.cloned().collect();
    for name in &names {
        head.remove_header(name);
    }
}

/// The other members stay, in their order, so that the upstream chooses among what the client offered.
fn remove_account_subprotocols(head: &mut RequestHeader) -> Result<()> {
    let members = || list_members(&head.headers, &header::SEC_WEBSOCKET_PROTOCOL);
    if !members().any(names_account) {
        return Ok(());
    }
    let others: Vec<&[u8]> = members().filter(|member| !names_account(member)).collect();
    let others = joined(&others, b", ")?;
    set_or_remove(head, &header::SEC_WEBSOCKET_PROTOCOL, others)
}

fn names_account(subprotocol: &[u8]) -> bool {
    ACCOUNT_SUBPROTOCOLS.iter().any(|beginning| {
        let start = subprotocol.get(..beginning.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(beginning.as_bytes()))
    })
}

fn set_or_remove(
    head: &mut RequestHeader,
    name: &'static HeaderName,
    value: HeaderValue,
) -> Result<()> {
    if value.is_empty() {
        head.remove_header(name);
        return Ok(());
    }
    head.insert_header(name, value)
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
    use crate::codec::service_tier::Tier;
    use crate::config::Config;
    use crate::policy::{Condition, TierReason};

    fn upstream(prefix: &str) -> Upstream {
        upstream_with(&format!("url: \"http://up:81{prefix}\""))
    }

    fn upstream_with(settings: &str) -> Upstream {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiergate.yaml");
        let text = format!("policy: p\nupstreams: {{u: {{{settings}}}}}\n");
        std::fs::write(&path, text).unwrap();
        let (config, _) = Config::load(&path).unwrap();
        Upstream::new(config.upstreams[0].clone()).unwrap()
    }

    fn sha256(key: &[u8]) -> [u8; 32] {
        <sha2::Sha256 as sha2::Digest>::digest(key).into()
    }

    /// What becomes of these headers in a forced request with 20 bytes.
    fn edited(lines: &str, endpoint: Endpoint, upstream: &Upstream, is_http2: bool) -> String {
        let mut head = RequestHeader::build("POST", b"/v1/x?y", None).unwrap();
        for line in lines.lines() {
            let (name, value) = line.split_once(':').unwrap();
            head.append_header(name.to_owned(), value.trim()).unwrap();
        }
        let credential = Credential::of(&head.headers, |digest| *digest == sha256(b"k"));
        let edit = HeadEdit {
            upstream,
            origin: &upstream.origins[0],
            target: b"/v1/x?y",
            credential: credential.as_ref().ok(),
            endpoint,
            action: Some(TierAction {
                reason: TierReason::GroupForce,
                body: Edit::Set(Tier::Priority),
                beta_header: match endpoint {
                    Endpoint::Messages => BetaHeader::Set,
                    _ => BetaHeader::Keep,
                },
                remove_fast_speed: false,
                condition: Condition::Always,
            }),
            client_beta: ClientBeta::Ignored,
            upgrade: false,
            is_http2,
            trace: None,
            length: Length::Known(20),
            is_held: true,
        };
        edit.apply(&mut head).unwrap();
        let mut lines: Vec<String> = head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort_unstable();
        format!("{}\n{}", head.uri, lines.join("\n"))
    }

    #[test]
    fn what_changes_stands_once_and_is_added_where_it_is_missing() {
        let lines = "anthropic-beta: a, fast-mode-2026-02-01\nX-Codex-Routing-Hint: tier=flex; b\n\
            Anthropic-Beta: c\naccept-encoding: gzip\naccept-encoding: br\nexpect: 100-continue\n\
            content-encoding: zstd\ncontent-length: 9";
        assert_eq!(
            edited(lines, Endpoint::Messages, &upstream("/base"), false),
            "/base/v1/x?y\naccept-encoding: identity\nanthropic-beta: a,c,fast-mode-2026-02-01\n\
            content-length: 20\nhost: up:81\nx-codex-routing-hint: b;tier=priority"
        );
    }

    #[test]
    fn over_http2_the_authority_is_the_upstreams_and_nothing_speaks_of_the_clients_connection() {
        let lines = "host: client\nconnection: keep-alive, x-mine\nx-mine: 1\nkeep-alive: 5\nte: trailers\n\
            x-other: 2\ntransfer-encoding: chunked";
        assert_eq!(
            edited(lines, Endpoint::Other, &upstream(""), true),
            "http://up:81/v1/x?y\ncontent-length: 20\nx-other: 2"
        );
    }

    #[test]
    fn of_several_keys_only_the_one_that_decides_goes_on() {
        let lines =
            "authorization: Bearer foreign\nx-api-key: k\napi-key: other\nx-goog-api-key: g";
        assert_eq!(
            edited(lines, Endpoint::Other, &upstream(""), false),
            "/v1/x?y\ncontent-length: 20\nhost: up:81\nx-api-key: k\nx-goog-api-key: g"
        );
    }

    #[test]
    fn what_a_cdn_in_front_has_added_is_removed_where_the_kind_says_so() {
        let lines = "cf-ray: 1\nx-forwarded-for: 1.1.1.1\nforwarded: for=1.1.1.1\nx-real-ip: 1.1.1.1\n\
            cdn-loop: c\ntrue-client-ip: 1.1.1.1\nx-forward: 1";
        let told = |kind: &str| {
            let upstream = upstream_with(&format!("url: \"http://up:81\", kind: {kind}"));
            edited(lines, Endpoint::Other, &upstream, false)
                .lines()
                .count()
        };
        let kinds = ["openai", "codex", "anthropic", "gateway", "codex_gateway"];
        assert_eq!(kinds.map(told), [4, 4, 4, 10, 10]);
    }

    #[test]
    fn the_settings_have_the_last_word() {
        let upstream = upstream_with(
            "url: \"http://up:81\", headers: {set: {x-team: a, accept-language: en}, remove: [x-drop, accept]}",
        );
        let lines = "x-team: b\nx-team: c\nx-drop: 1\naccept: x\nx-keep: 2";
        for is_http2 in [false, true] {
            let head = edited(lines, Endpoint::Other, &upstream, is_http2);
            let ours = head
                .replace("\nhost: up:81", "")
                .replace("http://up:81", "");
            assert_eq!(
                ours,
                "/v1/x?y\naccept-language: en\ncontent-length: 20\nx-keep: 2\nx-team: a"
            );
        }
    }

    #[test]
    fn an_own_credential_keeps_the_accounts_among_the_subprotocols_back() {
        let lines = "authorization: Bearer k\nsec-websocket-protocol: realtime, openai-insecure-api-key.k\n\
            sec-websocket-protocol: OpenAI-Organization.o,openai-beta.realtime-v1 , openai-project.p";
        let upstream = upstream("");
        let kept = |upstream: &Upstream| {
            let head = edited(lines, Endpoint::Other, upstream, false);
            let lines = head.lines().map(str::to_owned);
            let protocol = lines.filter(|line| line.starts_with("sec-websocket-protocol"));
            protocol.collect::<Vec<_>>()
        };
        assert_eq!(kept(&upstream).len(), 2);
        upstream
            .load_credential(Ok(b"own".to_vec().into()))
            .unwrap();
        assert_eq!(
            kept(&upstream),
            ["sec-websocket-protocol: realtime, openai-beta.realtime-v1"]
        );
    }

    #[test]
    fn an_own_credential_takes_the_place_of_every_key_that_came() {
        let upstream = upstream("");
        upstream
            .load_credential(Ok(b"own".to_vec().into()))
            .unwrap();
        assert_eq!(
            edited(
                "authorization: Bearer k\nx-api-key: k",
                Endpoint::Other,
                &upstream,
                false
            ),
            "/v1/x?y\nauthorization: Bearer own\ncontent-length: 20\nhost: up:81"
        );
    }
}
