//! The response as the client gets it: the proxy's own responses, and what of an upstream's head goes no further.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, Version, header};
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use tokio::time::{sleep, timeout};

use super::cors;
use crate::accounting::record::Termination;
use crate::codec::error::{Cause, Refusal};
use crate::codec::framing::{self, connection_headers};
use crate::config::header_name;
use crate::proxy::client_stream::{LINGERING_CLOSE_IDLE, LINGERING_CLOSE_TIME};
use crate::proxy::context::{Body, RequestContext, without_query};
use crate::proxy::error_mapping::REFUSED;
use crate::state::State;
use crate::upstream::connector::control::StreamControl;

/// How long the last frames of a response over HTTP/2 may take to leave before its stream is reset.
const FLUSH_TIME: Duration = Duration::from_millis(50);

/// The id of a request, told to its client.
pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static(header_name::REQUEST_ID);

/// Headers that speak of the upstream's connection (RFC 9110 §7.6.1, RFC 9113 §8.2.2).
static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("proxy-connection"),
];

/// Headers of a response that name the account of the key that was sent, or speak of its host: with the proxy's own key they
/// are not the client's.
static ACCOUNT: [HeaderName; 6] = [
    header::ALT_SVC,
    header::SET_COOKIE,
    HeaderName::from_static("anthropic-organization-id"),
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
    HeaderName::from_static("set-cookie2"),
];

/// Why a request goes no further.
pub(super) enum Stop {
    Refused(Refusal),
    /// It has a response without an upstream.
    Local(Box<LocalResponse>),
    /// The client's connection failed.
    Downstream(Box<Error>),
}

impl<R: Into<Refusal>> From<R> for Stop {
    fn from(refusal: R) -> Self {
        Stop::Refused(refusal.into())
    }
}

/// A response that needs no upstream.
pub(super) struct LocalResponse {
    head: ResponseHeader,
    body: Bytes,
    /// Whether the request has a line in the log.
    is_logged: bool,
}

/// The response to a request that is answered here without a key: a balancer's health check, a browser's preflight. None for
/// all others.
pub(super) fn local_response(state: &State, session: &Session) -> Result<Option<LocalResponse>> {
    let request = session.req_header();
    let cors = state.config.cors.as_ref();
    if is_health_check(state, request) {
        let mut response = health(state)?;
        cors::allow(cors, &request.headers, &mut response.head)?;
        return Ok(Some(response));
    }
    let preflight = cors::preflight(cors, &request.method, &request.headers)?;
    Ok(preflight.map(|head| LocalResponse {
        head,
        body: Bytes::new(),
        is_logged: true,
    }))
}

fn is_health_check(state: &State, request: &RequestHeader) -> bool {
    let path = state.config.health_path.as_deref();
    let asked = without_query(request.raw_path());
    let asked = asked.strip_suffix(b"/").unwrap_or(asked);
    matches!(request.method, Method::GET | Method::HEAD)
        && path.is_some_and(|path| asked.eq_ignore_ascii_case(path.as_bytes()))
}

/// What `/readyz` says, without the mistakes in files, which are the operator's alone.
fn health(state: &State) -> Result<LocalResponse> {
    let (status, text) = match state.not_ready() {
        None => (StatusCode::OK, "ok"),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    };
    let body = Bytes::from(format!("{text}\n"));
    let mut head = ResponseHeader::build(status, Some(6))?;
    head.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
    head.insert_header(header::CONTENT_LENGTH, body.len())?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    Ok(LocalResponse {
        head,
        body,
        is_logged: false,
    })
}

/// Sends a response that needs no upstream, and writes its line where it has one.
pub(super) async fn send_local(
    session: &mut Session,
    context: &mut RequestContext,
    response: LocalResponse,
) -> Result<()> {
    let status = response.head.status.as_u16();
    if !response.is_logged {
        context.leave_unlogged();
    }
    context.record.answer.status = Some(status);
    let LocalResponse { head, body, .. } = response;
    send(session, context, head, body, Termination::Whole).await
}

/// Sends the response for the refusal of a request, writes its line, and reads on for a while.
pub(super) async fn send_refusal(
    session: &mut Session,
    context: &mut RequestContext,
) -> Result<()> {
    let has_begun = session.response_written().is_some_and(|written| {
        // What follows a switch of protocols is no response.
        let switched = written.status == StatusCode::SWITCHING_PROTOCOLS;
        switched || !written.status.is_informational()
    });
    if has_begun {
        return Ok(());
    }
    let Some((cause, answer)) = context.refusal_response() else {
        return Ok(());
    };
    let mut head = ResponseHeader::build(answer.status, Some(6))?;
    for (name, value) in answer.headers() {
        head.insert_header(name, value)?;
    }
    let cors = context.state.config.cors.as_ref();
    cors::allow(cors, &session.req_header().headers, &mut head)?;
    let termination = Termination::Refused(cause);
    send(session, context, head, answer.body, termination).await
}

/// Sends a response of the proxy's own, writes its line, and reads for a while what is still to come of the request.
async fn send(
    session: &mut Session,
    context: &mut RequestContext,
    mut head: ResponseHeader,
    body: Bytes,
    termination: Termination,
) -> Result<()> {
    head.insert_header(&REQUEST_ID, context.request_id())?;
    let unread = !session.is_body_done();
    if unread {
        session.set_keepalive(None);
    }
    end_connection_in_drain(session, context);
    let bodyless = context.request_info.method == Method::HEAD || body.is_empty();
    session
        .write_response_header(Box::new(head), bodyless)
        .await?;
    // Pingora leaves the end of a response over HTTP/2 to this, also where there is no body.
    session
        .write_response_body((!bodyless).then_some(body), true)
        .await?;
    context.finish(termination);
    context.body = Body::None;
    if unread {
        linger(session, &context.state).await;
    }
    Ok(())
}

/// Reads what a client still sends that was answered, for a while.
async fn linger(session: &mut Session, state: &State) {
    let answered = Instant::now();
    while is_lingering(answered, state) {
        let read = timeout(LINGERING_CLOSE_IDLE, session.read_request_body());
        if !matches!(read.await, Ok(Ok(Some(_)))) {
            return;
        }
    }
}

/// Whether a request that was `answered` is still read on. At a drain nobody is waited for as long as that.
pub(super) fn is_lingering(answered: Instant, state: &State) -> bool {
    let most = match state.is_draining() {
        true => LINGERING_CLOSE_IDLE,
        false => LINGERING_CLOSE_TIME,
    };
    answered.elapsed() < most
}

/// Lets what a client of HTTP/2 is still to get leave before its stream is reset, with which the h2 crate drops what it has not
/// yet sent. Nothing tells when a frame has left.
pub(super) async fn flush(session: &Session) {
    if session.as_downstream().is_http2() {
        sleep(FLUSH_TIME).await;
    }
}

/// Keeps interim responses from a client of HTTP/1.0, which knows none (RFC 9110 §15.2, §10.1.1).
pub(super) fn withhold_interim(session: &mut Session) {
    if session.req_header().version != Version::HTTP_10 {
        return;
    }
    if let ServerSession::H1(session) = session.as_downstream_mut() {
        session.set_ignore_info_resp(true);
    }
    session.req_header_mut().remove_header(&header::EXPECT);
}

/// Tells a client that waits for it to go on. The upstream is not asked: it may not even be HTTP/1.
pub(super) async fn continue_upload(session: &mut Session) -> Result<(), Stop> {
    let expects = session.get_header(header::EXPECT);
    if expects.is_none_or(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Ok(());
    }
    session.set_close_on_response_before_downstream_finish(false);
    session
        .write_continue_response()
        .await
        .map_err(|error| Stop::Downstream(error.into_down()))
}

/// Refuses a response that the client could take apart in another way than Pingora, and an upgrade that nobody asked for or
/// that HTTP/1.0, which knows none (RFC 9110 §7.8), agrees to: Pingora would take it for an answer without an end.
pub(super) fn check_response(
    response: &mut ResponseHeader,
    context: &mut RequestContext,
) -> Result<()> {
    unify_framing(response)?;
    let may_upgrade = context.upgrade && response.version == Version::HTTP_11;
    let is_upgrade = response.status == StatusCode::SWITCHING_PROTOCOLS;
    if (may_upgrade || !is_upgrade) && framing::is_unambiguous_answer(&response.headers) {
        return Ok(());
    }
    let words = "the response of the upstream is not well-formed HTTP";
    context.refusal = Some(Refusal::new(Cause::UpstreamReset, words));
    Error::e_explain(REFUSED, words)
}

/// Says once what the upstream says several times of the length of its response, and always alike (RFC 9110 §8.6): servers
/// behind a proxy that copies headers do so.
fn unify_framing(response: &mut ResponseHeader) -> Result<()> {
    for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        let mut members = framing::list_members(&response.headers, &name);
        let Some(first) = members.next() else {
            continue;
        };
        let others: Vec<_> = members.collect();
        if !others.is_empty() && others.iter().all(|other| other.eq_ignore_ascii_case(first)) {
            let first = first.to_vec();
            response.insert_header(name, first)?;
        }
    }
    Ok(())
}

/// Makes of the upstream's head the one that the client is to get, but for the request's id.
///
/// # Errors
/// Where a header cannot be made.
pub(super) fn edit_response(
    session: &mut Session,
    context: &RequestContext,
    response: &mut ResponseHeader,
) -> Result<()> {
    remove_hop_by_hop(response);
    remove_framing_of_nothing(response);
    for name in account_headers(context) {
        response.remove_header(name);
    }
    if response.status.is_redirection()
        && let Some(location) = location_here(context, &response.headers)
    {
        response.insert_header(header::LOCATION, location)?;
    }
    if response.version == Version::HTTP_10 {
        // The version is that of the connection (RFC 9110 §6.2), and chunks are read as such in no older one.
        response.set_version(Version::HTTP_11);
    }
    if session.req_header().version == Version::HTTP_10 && !response.status.is_informational() {
        // It knows no chunks (RFC 9112 §6.1), so the end of the connection is the end of the body.
        response.remove_header(&header::TRANSFER_ENCODING);
        session.set_keepalive(None);
    }
    if !response.status.is_informational() {
        end_connection_in_drain(session, context);
    }
    let cors = context.state.config.cors.as_ref();
    cors::allow(cors, &session.req_header().headers, response)
}

/// Lets the head that goes out next say that the connection ends, where the proxy drains: the client's pool is to hear of it
/// while it can (RFC 9112 §9.6).
pub(super) fn end_connection_in_drain(session: &mut Session, context: &RequestContext) {
    if context.state.is_draining() {
        session.set_keepalive(None);
    }
}

/// Where a redirect leads that names the upstream by its own address: a client that followed it as it is would go past the
/// proxy. What is behind the address is a path of the proxy, without the prefix that the upstream's URL puts before it.
fn location_here(context: &RequestContext, headers: &HeaderMap) -> Option<String> {
    let origin = context.attempts.origin()?;
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    // Without a scheme it is that of the request (RFC 3986 §4.2).
    let scheme = match (location.starts_with("//"), origin.url.tls) {
        (true, true) => "https:",
        (true, false) => "http:",
        (false, _) => "",
    };
    let url = Uri::try_from([scheme, location].concat()).ok()?;
    let is_own = match url.authority() {
        Some(authority) => {
            let default_port = match url.scheme_str() {
                Some("https") => ":443",
                _ => ":80",
            };
            let named = authority.as_str();
            let named = named.rsplit_once('@').map_or(named, |(_user, host)| host);
            let named = named.strip_suffix(default_port).unwrap_or(named);
            named.eq_ignore_ascii_case(origin.host.to_str().ok()?)
        }
        None => !origin.url.prefix.is_empty(),
    };
    let path = url.path_and_query().filter(|_| is_own)?.as_str();
    let below = path.strip_prefix(origin.url.prefix.as_str());
    let below = below.filter(|below| below.starts_with('/'));
    let here = below.unwrap_or(path);
    // `//` would begin a host.
    (!here.starts_with("//")).then(|| here.to_owned())
}

/// What of an upstream's trailers goes no further.
pub(super) fn edit_trailers(context: &RequestContext, trailers: &mut HeaderMap) {
    for name in account_headers(context) {
        trailers.remove(name);
    }
}

/// The headers that are not the client's: none where its own key was sent.
fn account_headers(context: &RequestContext) -> &'static [HeaderName] {
    match context.upstream.as_deref() {
        Some(upstream) if upstream.has_credential() => &ACCOUNT,
        _ => &[],
    }
}

/// Frames a response whose length the upstream told, and of which something is to be taken out.
pub(super) fn drop_length(session: &mut Session, response: &mut ResponseHeader) -> Result<()> {
    if response.remove_header(&header::CONTENT_LENGTH).is_none() {
        return Ok(());
    }
    match session.req_header().version {
        Version::HTTP_11 => response.insert_header(header::TRANSFER_ENCODING, "chunked"),
        Version::HTTP_10 => {
            session.set_keepalive(None);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Takes out what a client would take for its own connection, but for the words of an upgrade, and the framing, which is
/// Pingora's by now.
fn remove_hop_by_hop(response: &mut ResponseHeader) {
    const FRAMING: [HeaderName; 2] = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    const UPGRADE: [HeaderName; 2] = [header::CONNECTION, header::UPGRADE];
    let upgrades = response.status == StatusCode::SWITCHING_PROTOCOLS;
    let stays = |name: &HeaderName| FRAMING.contains(name) || (upgrades && UPGRADE.contains(name));
    let named = connection_headers(&response.headers);
    for name in named.iter().chain(&HOP_BY_HOP).filter(|name| !stays(name)) {
        response.remove_header(name);
    }
}

/// Takes out what speaks of a body where there is none, for a client that believes it waits for one. A length is told of the
/// body that a 304 stands for (RFC 9110 §8.6), chunks of no such response by a server that is to be understood by all
/// (RFC 9112 §6.1).
fn remove_framing_of_nothing(response: &mut ResponseHeader) {
    let status = response.status;
    if status.is_informational() || matches!(status.as_u16(), 204 | 304) {
        response.remove_header(&header::TRANSFER_ENCODING);
        if status != StatusCode::NOT_MODIFIED {
            response.remove_header(&header::CONTENT_LENGTH);
        }
    }
}

/// Whether another head follows this one (RFC 9110 §15.2).
pub(super) fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// Whether the response has no body, whose end nobody would be told of.
pub(super) fn is_empty(response: &ResponseHeader, context: &RequestContext) -> bool {
    let length = response.headers.get(header::CONTENT_LENGTH);
    let has_none = matches!(response.status.as_u16(), 204 | 304)
        || context.request_info.method == Method::HEAD
        || context
            .stream
            .as_deref()
            .is_some_and(StreamControl::is_whole);
    !response.status.is_informational() && (has_none || length.is_some_and(|length| length == "0"))
}
