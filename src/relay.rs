//! The way of a held request to an upstream of HTTP/1.1 and of its answer back, past Pingora's loop of a request.
//!
//! That loop runs two halves of a task that tell each other through queues what comes from either side, and keeps each idle
//! connection in a task of its own. A held request has nothing more to come, so here one thing follows the other: head and
//! body leave in one write, and the answer is passed on as it comes. Both ends are Pingora's sessions all the same, and the
//! steps of `proxy.rs` are called in Pingora's order.

use std::io::{self, IoSlice};
use std::time::Duration;

use http::{Method, Version, header};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::v1::client::HttpSession as Upstream;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{ProxyHttp, Session};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::connection::Waiting;
use crate::exchange::{Body, Exchange};
use crate::proxy::{Gate, head_edit, no_address, refused, watch_answer};
use crate::upstream::Address;

/// Whether a request with a held body can go this way: over HTTP/1.1 on both sides, and its head asks for nothing special
/// of the connection.
pub fn can_carry(session: &Session, exchange: &Exchange) -> bool {
    let ServerSession::H1(client) = session.as_downstream() else {
        return false;
    };
    let head = client.req_header();
    let upstream = exchange.upstream.as_ref();
    head.method == Method::POST
        && head.version == Version::HTTP_11
        && head.raw_path().starts_with(b"/")
        && names_no_header(head)
        && !exchange.upgrade
        && upstream.is_some_and(|upstream| upstream.is_http1)
}

/// `Connection` may name headers that go no further; Pingora judges these.
fn names_no_header(head: &RequestHeader) -> bool {
    let mut lines = head.headers.get_all(header::CONNECTION).iter();
    lines.all(|line| {
        let word = line.as_bytes();
        word.eq_ignore_ascii_case(b"keep-alive") || word.eq_ignore_ascii_case(b"close")
    })
}

impl Gate {
    /// Sends the body that is ready, and passes the answer on.
    ///
    /// # Errors
    /// Those that Pingora would report of the same request.
    pub(crate) async fn relay(
        &self,
        session: &mut Session,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        loop {
            let address = exchange.next_address().ok_or_else(no_address)?;
            let error = match self.connect(&address).await {
                Ok((stream, reused)) => {
                    match self.attempt(session, exchange, stream, &address).await {
                        Ok(()) => return Ok(()),
                        Err(error) => self.attempt_failed(session, error, exchange, reused),
                    }
                }
                Err(error) => self.connect_failed(error.into_up(), exchange),
            };
            if !error.retry() {
                return Err(error);
            }
        }
    }

    /// A connection to there, and whether it was used before.
    async fn connect(&self, address: &Address) -> Result<(Stream, bool)> {
        if let Some(stream) = address.idle.take() {
            return Ok((stream, true));
        }
        // Boxed, for it is rare and large.
        let stream = Box::pin(self.connector.new_stream(&address.peer)).await?;
        Ok((stream, false))
    }

    async fn attempt(
        &self,
        session: &mut Session,
        exchange: &mut Box<Exchange>,
        mut stream: Stream,
        address: &Address,
    ) -> Result<()> {
        exchange.deadline.hold_upstream(Some(stream.id()));
        let head = upstream_head(session, exchange)?;
        exchange.begin_attempt();
        let body = self.send_ready(exchange);
        let body = body.map_err(|refusal| refused(exchange, refusal))?;
        exchange.outlive_client(session);
        let sent = tokio::select! {
            biased;
            sent = send(&mut stream, [&head, &body], address.peer.options.write_timeout) => sent,
            left = client_leaves(session) => return Err(left),
        };
        watch_answer(exchange);
        let mut upstream = Upstream::new(stream);
        let ended = self
            .pass_answer(session, exchange, &mut upstream, sent)
            .await?;
        exchange.deadline.hold_upstream(None);
        if ended {
            upstream.respect_keepalive();
            if let Some(stream) = upstream.reuse().await {
                address.idle.keep(stream);
            }
        }
        Ok(())
    }

    /// Passes the answer on. Whether all that was under way on the connection has ended with it.
    async fn pass_answer(
        &self,
        session: &mut Session,
        exchange: &mut Box<Exchange>,
        upstream: &mut Upstream,
        sent: Result<()>,
    ) -> Result<bool> {
        // An upstream that took no more of the request may have answered it.
        let mut unsent = sent.err();
        let sent_whole = unsent.is_none();
        loop {
            let task = tokio::select! {
                biased;
                task = upstream.read_response_task() => task,
                left = client_leaves(session) => return Err(left),
            };
            let task = match task {
                Ok(task) => self.filter_answer(session, exchange, task)?,
                // Comes back as an error, once all before it is sent.
                Err(error) => HttpTask::Failed(unsent.take().unwrap_or(error).into_up()),
            };
            let is_last = task.is_end();
            let client = session.as_downstream_mut();
            if client.response_duplex_vec(vec![task]).await? || is_last {
                return Ok(is_last && sent_whole);
            }
            watch_next_piece(exchange);
        }
    }

    /// A piece of the answer as the client gets it.
    fn filter_answer(
        &self,
        session: &mut Session,
        exchange: &mut Box<Exchange>,
        mut task: HttpTask,
    ) -> Result<HttpTask> {
        match &mut task {
            HttpTask::Header(head, is_last) => {
                if !*is_last && ends_with_connection(head) {
                    // In chunks, so that the client's connection need not end with it.
                    head.set_version(Version::HTTP_11);
                    head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
                }
                self.take_answer(session, head, exchange)?;
                if !head.status.is_informational() {
                    // It is not sent again from here on.
                    exchange.body = Body::None;
                }
            }
            HttpTask::Body(piece, is_last) => {
                self.response_body_filter(session, piece, *is_last, exchange)?;
            }
            _ => {}
        }
        Ok(task)
    }
}

fn upstream_head(session: &Session, exchange: &Exchange) -> Result<Vec<u8>> {
    let Some(client) = session.as_downstream().as_http1() else {
        return Error::e_explain(ErrorType::InternalError, "only HTTP/1.1 is relayed");
    };
    let came = client.get_headers_raw_bytes();
    head_edit(session, exchange)?.wire(&came, &client.req_header().headers)
}

fn ends_with_connection(head: &ResponseHeader) -> bool {
    !head.status.is_informational()
        && !matches!(head.status.as_u16(), 204 | 304)
        && !head.headers.contains_key(header::TRANSFER_ENCODING)
        && !head.headers.contains_key(header::CONTENT_LENGTH)
}

/// The time of the upstream runs again; it stood while the client was written to.
fn watch_next_piece(exchange: &Exchange) {
    if let Some(upstream) = &exchange.upstream {
        let limit = upstream.config.idle_timeout;
        exchange.deadline.set(Waiting::ForMore, limit);
    }
}

/// Writes head and body, for each piece of which there is so much time.
async fn send(stream: &mut Stream, message: [&[u8]; 2], limit: Option<Duration>) -> Result<()> {
    const SENDING: &str = "sending a request";
    let [head, body] = message;
    let mut pieces = [IoSlice::new(head), IoSlice::new(body)];
    let mut left = &mut pieces[..];
    while !left.is_empty() {
        let piece = send_piece(stream, &mut left);
        let sent = match limit {
            None => piece.await,
            Some(limit) => timeout(limit, piece)
                .await
                .map_err(|_| Error::explain(ErrorType::WriteTimedout, SENDING).into_up())?,
        };
        sent.map_err(|why| Error::because(ErrorType::WriteError, SENDING, why).into_up())?;
    }
    Ok(())
}

/// Writes what the connection takes at once, and takes it away from `left`.
async fn send_piece(stream: &mut Stream, left: &mut &mut [IoSlice<'_>]) -> io::Result<()> {
    let written = stream.write_vectored(left).await?;
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    IoSlice::advance_slices(left, written);
    if left.is_empty() {
        stream.flush().await?;
    }
    Ok(())
}

/// Returns when the client leaves. What it sends in the meantime belongs to its next request.
async fn client_leaves(session: &mut Session) -> Box<Error> {
    loop {
        if let Err(error) = session.as_downstream_mut().read_body_or_idle(true).await {
            return error.into_down();
        }
    }
}
