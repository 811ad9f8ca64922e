//! A request over HTTP/2 as Pingora's loop sees it: Pingora's own HTTP/2 client, driven so that
//!
//! * a response is read while its request waits for the upstream's window (RFC 9113 §8.1 lets an upstream answer early,
//!   and end the stream with NO_ERROR when it has);
//! * a stream is read to its end before it is dropped. Pingora 0.9.1 ends a request at the last byte that `content-length`
//!   promised, and so resets complete responses whose END_STREAM comes in a frame of its own; the frame then meets a stream
//!   that the h2 crate has forgotten, and at 1,024 of these it closes the connection with every request on it;
//! * a request that the upstream says it has not looked at is told from one that failed (RFC 9113 §8.7).

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;
use h2::Reason;
use http::{HeaderMap, Method};
use pingora_core::connectors::http::v2::ConnectionRef;
use pingora_core::protocols::http::custom::client::Session;
use pingora_core::protocols::http::custom::{BodyWrite, CustomMessageWrite};
use pingora_core::protocols::http::v2::client::Http2Session as PingoraSession;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::{Digest, UniqueIDType};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};

use super::control::{AwaitedPhase, StreamControl, Watchdog, carried, carrying};
use super::error_prefix::ErrorPrefix;
use super::http2_body::{BodyWriter, OutgoingBody, PIECE_BYTES, unsent};
use super::http2_stream::ServerNotes;

/// The upstream has not looked at the request, and it can be sent again (RFC 9113 §8.7).
pub const NOT_PROCESSED: ErrorType = ErrorType::new("the upstream did not process the request");
/// How long the end of a stream may take whose last byte is here.
const END_TIME: Duration = Duration::from_secs(5);

/// One stream of a connection that other requests share.
pub struct Http2Session {
    session: PingoraSession,
    watchdog: Watchdog,
    digest: Digest,
    /// A head that is not to leave yet, and whether it ends the request.
    held_head: Option<(Box<RequestHeader>, bool)>,
    body: Arc<OutgoingBody>,
    /// How many bytes of the body the upstream had taken when its response was last awaited anew.
    awaited_from: usize,
    is_head: bool,
    response: Response,
    error: ErrorPrefix,
    /// The upstream has refused the stream unseen.
    is_refused: bool,
    /// The stream's number, once its head was sent.
    stream: Option<u32>,
    notes: Option<Arc<ServerNotes>>,
}

/// How far the response has come.
#[derive(Default)]
struct Response {
    /// Body bytes that the head promised, where it did.
    promised: Option<u64>,
    received: u64,
    /// All of it is here, as its length or END_STREAM says.
    is_whole: bool,
    /// END_STREAM is here.
    is_ended: bool,
    trailers: Option<HeaderMap>,
}

impl Http2Session {
    pub(super) fn new(session: PingoraSession) -> Self {
        let control = StreamControl::new(true);
        let notes = carried(session.digest());
        let mut digest = session.digest().cloned().unwrap_or_default();
        digest.proxy_digest = carrying(&control);
        Self {
            session,
            watchdog: Watchdog::new(control),
            digest,
            held_head: None,
            body: Arc::default(),
            awaited_from: 0,
            is_head: false,
            response: Response::default(),
            error: ErrorPrefix::default(),
            is_refused: false,
            stream: None,
            notes,
        }
    }

    pub(super) fn control(&self) -> &StreamControl {
        &self.watchdog.control
    }

    /// Whether the stream has ended in good order on both sides, or only its end is still to come.
    pub(super) fn is_complete(&self) -> bool {
        self.response.is_whole
    }

    /// Reads the stream to its end, for a while, and gives back Pingora's session.
    pub(super) async fn read_to_end(mut self) -> PingoraSession {
        if !self.response.is_ended {
            let end = std::future::poll_fn(|cx| self.session.poll_read_response_body(cx));
            // What comes behind a whole response is nothing to anybody.
            let _ = tokio::time::timeout(END_TIME, end).await;
        }
        self.session
    }

    /// Whether the response is whole, and only the end of its stream is still to come.
    pub(super) fn ends_later(&self) -> bool {
        self.response.is_whole && !self.response.is_ended
    }

    /// Whether the upstream was waited for for too long. The connection may be dead without a word.
    pub(super) fn is_overdue(&self) -> bool {
        let expired = self.watchdog.control.expired();
        matches!(
            expired,
            Some(
                AwaitedPhase::RequestWindow
                    | AwaitedPhase::ResponseHead
                    | AwaitedPhase::ResponseBody
            )
        )
    }

    /// Whether the upstream takes no more streams on the connection for now.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    pub(super) fn connection(&self) -> &ConnectionRef {
        &self.session.conn
    }

    pub(super) fn into_inner(self) -> PingoraSession {
        self.session
    }

    /// Sends the head that was held back, and what the upstream takes of the body. Ready with an error where nothing more is
    /// wanted.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        if self.watchdog.control.is_ended() {
            let error = Error::explain(ErrorType::ConnectionClosed, "the request is given up");
            return Poll::Ready(error);
        }
        if self.held_head.is_some() && !self.watchdog.control.holds_request() {
            let (head, ends) = self.held_head.take().expect("looked at just now");
            if let Err(error) = self.send_head(head, ends) {
                return Poll::Ready(error);
            }
        }
        self.body.send(cx);
        let taken = self.body.taken_bytes();
        if taken >= self.awaited_from + PIECE_BYTES {
            self.awaited_from = taken;
            self.watchdog.request_taken();
        }
        Poll::Pending
    }

    fn send_head(&mut self, head: Box<RequestHeader>, ends: bool) -> Result<()> {
        self.is_head = head.method == Method::HEAD;
        let sent = self.session.write_request_header(head, ends);
        sent.map_err(explain_unsent)?;
        let stream = self.session.take_request_body_writer();
        self.stream = stream.as_ref().map(|stream| stream.stream_id().as_u32());
        if let (Some(notes), false) = (&self.notes, ends) {
            notes.begin_body(&self.body);
        }
        self.body.begin(stream.filter(|_| !ends));
        Ok(())
    }

    fn poll_response_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Poll::Ready(error) = self.poll_request(cx) {
            return Poll::Ready(Err(error));
        }
        if self.held_head.is_none()
            && let Poll::Ready(read) = self.session.poll_read_response_header(cx)
        {
            return Poll::Ready(read.map_err(|error| {
                self.is_refused = is_refused(&error);
                self.explain(error, "the head of a response")
            }));
        }
        let error = ready!(self.poll_late(cx));
        Poll::Ready(Err(error))
    }

    fn poll_response_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        if let Poll::Ready(error) = self.poll_request(cx) {
            return Poll::Ready(Err(error));
        }
        match self.session.poll_read_response_body(cx) {
            Poll::Ready(Some(Ok(piece))) => {
                self.watchdog.progressed();
                Poll::Ready(Ok(Some(piece)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Err(self.explain(error, "the body of a response")))
            }
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Pending => {
                let error = ready!(self.poll_late(cx));
                Poll::Ready(Err(error))
            }
        }
    }

    /// Reads the body of an error response until it is whole.
    fn poll_error(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.poll_request(cx).is_ready() {
                self.watchdog.control.end_error(None);
                return Poll::Ready(());
            }
            let polled = self.session.poll_read_response_body(cx);
            let is_pending = polled.is_pending();
            let has_ended = match polled {
                Poll::Pending => self.error.poll_over(cx).is_ready(),
                Poll::Ready(Some(Ok(piece))) => {
                    self.error.bytes.extend_from_slice(&piece);
                    self.session.response_finished()
                }
                // An error shows when the body is read again.
                Poll::Ready(_) => true,
            };
            if has_ended || self.error.is_full() {
                let body = Bytes::copy_from_slice(&self.error.bytes);
                self.watchdog.control.end_error(Some(body));
                return Poll::Ready(());
            }
            if is_pending {
                return Poll::Pending;
            }
        }
    }

    /// What was waited for for too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        self.watchdog.poll_expired(cx).map(|_| {
            if self.body.is_waiting() {
                unsent()
            } else {
                Error::explain(ErrorType::ReadTimedout, "the response takes too long")
            }
        })
    }

    /// An error of the h2 crate as an error of Pingora's, whose type says whether the request may be sent again.
    fn explain(&self, error: h2::Error, what: &'static str) -> Box<Error> {
        let notes = self.notes.as_deref();
        let last = notes.and_then(ServerNotes::last_stream);
        let is_above = self.stream.zip(last).is_some_and(|(own, last)| own > last);
        let etype = if error.is_remote() && error.reason() == Some(Reason::HTTP_1_1_REQUIRED) {
            ErrorType::H2Downgrade
        } else if is_above || is_refused(&error) {
            NOT_PROCESSED
        } else if last.is_none() && is_plain_end(&error) {
            let own = notes.zip(self.stream);
            if own.is_some_and(|(notes, own)| notes.knows(own)) {
                self.control().note_received();
            } else if notes.is_some_and(ServerNotes::has_crossed) {
                self.control().note_untaken();
            }
            ErrorType::ConnectionClosed
        } else {
            ErrorType::H2Error
        };
        Error::because(etype, what, error)
    }

    fn take_head(&mut self) {
        self.body.note_response();
        let Some(head) = self.session.response_header() else {
            return;
        };
        let status = head.status.as_u16();
        let length = head.headers.get(http::header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let is_empty = self.is_head || matches!(status, 204 | 304);
        self.response.promised = if is_empty { Some(0) } else { length };
        self.note_end();
        if self.response.is_whole {
            self.control().note_whole();
        }
    }

    fn note_end(&mut self) {
        let Response {
            promised, received, ..
        } = self.response;
        let is_read = self.error.bytes.is_empty();
        self.response.is_ended |= is_read && self.session.response_finished();
        self.response.is_whole = self.response.is_ended || promised == Some(received);
        if self.response.is_whole {
            self.body.stop();
        }
    }
}

/// The error of a request whose stream could not be opened. Where that is because its connection has ended, or is about to
/// end, nothing of it was sent.
fn explain_unsent(error: Box<Error>) -> Box<Error> {
    let cause = error.cause.as_ref();
    let cause = cause.and_then(|cause| cause.downcast_ref::<h2::Error>());
    if cause.is_some_and(|cause| cause.is_go_away() || cause.is_io()) {
        return Error::because(NOT_PROCESSED, "the request was not sent", error);
    }
    error
}

/// Whether the server has closed the connection, and not reset it.
fn is_plain_end(error: &h2::Error) -> bool {
    error
        .get_io()
        .is_some_and(|error| error.kind() != io::ErrorKind::ConnectionReset)
}

/// RFC 9113 §8.7.
fn is_refused(error: &h2::Error) -> bool {
    error.is_remote() && error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)
}

#[async_trait]
impl Session for Http2Session {
    async fn write_request_header(&mut self, head: Box<RequestHeader>, ends: bool) -> Result<()> {
        if self.watchdog.control.holds_request() {
            self.held_head = Some((head, ends));
            return Ok(());
        }
        self.send_head(head, ends)
    }

    /// Pingora's loop writes by [`BodyWriter`]. Whoever writes here reads the response afterwards, and would wait for ever.
    async fn write_request_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.body.put(data);
        if end {
            self.body.finish();
        }
        Ok(())
    }

    async fn finish_request_body(&mut self) -> Result<()> {
        self.body.finish();
        Ok(())
    }

    /// Limits come from the request's context ([`StreamControl`]).
    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn set_write_timeout(&mut self, _timeout: Option<Duration>) {}

    async fn read_response_header(&mut self) -> Result<()> {
        std::future::poll_fn(|cx| self.poll_response_head(cx)).await?;
        let head = self.session.response_header();
        let is_error = head.is_some_and(|head| head.status.is_client_error());
        if is_error && !self.is_head && self.watchdog.control.wants_error() {
            std::future::poll_fn(|cx| self.poll_error(cx)).await;
        }
        self.take_head();
        Ok(())
    }

    /// The last piece is an empty one where END_STREAM comes behind the last byte, so that Pingora's filters see the end
    /// before the client does.
    async fn read_response_body(&mut self) -> Result<Option<Bytes>> {
        if self.response.is_whole {
            return Ok(None);
        }
        if !self.error.bytes.is_empty() {
            let piece = Bytes::from(std::mem::take(&mut self.error.bytes));
            self.response.received += piece.len() as u64;
            self.note_end();
            return Ok(Some(piece));
        }
        let piece = std::future::poll_fn(|cx| self.poll_response_body(cx)).await?;
        let Some(piece) = piece else {
            self.response.is_ended = true;
            self.response.is_whole = true;
            self.body.stop();
            self.session.read_timeout = Some(END_TIME);
            self.response.trailers = self.session.read_trailers().await?;
            return Ok(self.response.trailers.is_none().then(Bytes::new));
        };
        self.response.received += piece.len() as u64;
        self.note_end();
        Ok(Some(piece))
    }

    fn response_finished(&self) -> bool {
        self.response.is_whole
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.session.shutdown();
    }

    fn response_header(&self) -> Option<&ResponseHeader> {
        self.session.response_header()
    }

    fn was_upgraded(&self) -> bool {
        false
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Some(&mut self.digest)
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.session.server_addr()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.session.client_addr()
    }

    async fn read_trailers(&mut self) -> Result<Option<HeaderMap>> {
        Ok(self.response.trailers.take())
    }

    fn fd(&self) -> UniqueIDType {
        self.session.fd()
    }

    async fn check_response_end_or_error(&mut self, _in_head: bool) -> Result<bool> {
        if self.response.is_ended && self.response.trailers.is_none() {
            // The h2 crate has told a stream that was cut by an error as ended, too (hyperium/h2#806).
            self.session.check_response_end_or_error()?;
        }
        Ok(self.response.is_whole && self.response.trailers.is_none())
    }

    fn take_request_body_writer(&mut self) -> Option<Box<dyn BodyWrite>> {
        let control = self.watchdog.control.clone();
        Some(Box::new(BodyWriter::new(self.body.clone(), control)))
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        Some(Box::new(NoMessages))
    }

    async fn drain_custom_messages(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        Some(Box::new(()))
    }
}

/// HTTP has no messages beside its bodies.
struct NoMessages;

impl Stream for NoMessages {
    type Item = Result<Bytes>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}
