//! An HTTP/2 stream of a client that can keep from Pingora that the client has left, as `patient.rs` does for a connection
//! of HTTP/1. There is one connection for many requests, so it stands in the place of Pingora's session for one of them.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;
use http::HeaderMap;
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session as CustomSession;
use pingora_core::protocols::http::v2::server::HttpSession as H2Session;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};

use crate::http1::connection::Deadline;

/// Pingora's own session for the stream, and what is not to be told of it.
struct PatientSession {
    stream: H2Session,
    deadline: Arc<Deadline>,
    /// The client has left: nothing is written any more.
    alone: bool,
}

/// From now on, whether a client of HTTP/2 that leaves ends its request is up to `deadline`. Does nothing on HTTP/1.
pub fn make_patient(session: &mut ServerSession, deadline: &Arc<Deadline>) {
    if !session.is_http2() {
        return;
    }
    let nobody = ServerSession::new_http1(Box::new(Cursor::new(Vec::new())));
    *session = match std::mem::replace(session, nobody) {
        ServerSession::H2(stream) => ServerSession::Custom(Box::new(PatientSession {
            stream,
            deadline: deadline.clone(),
            alone: false,
        })),
        other => other,
    };
}

impl PatientSession {
    /// What Pingora is to see of a write: none that could not be done, where the answer is read on. A client that is there
    /// and takes nothing has not left.
    fn written<T>(&mut self, result: Result<T>, as_if: T) -> Result<T> {
        match result {
            Err(error) if *error.etype() != ErrorType::WriteTimedout => {
                self.alone = self.deadline.client_leaves();
                if self.alone { Ok(as_if) } else { Err(error) }
            }
            other => other,
        }
    }
}

/// Whether the answer ends with one of these.
fn ends(tasks: &[HttpTask]) -> bool {
    tasks.iter().any(HttpTask::is_end)
}

fn failure(tasks: Vec<HttpTask>) -> Option<Box<Error>> {
    tasks.into_iter().find_map(|task| match task {
        HttpTask::Failed(error) => Some(error),
        _ => None,
    })
}

#[async_trait]
impl CustomSession for PatientSession {
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if !self.alone {
            match self.stream.read_body_or_idle(no_body_expected).await {
                Err(_) if self.deadline.client_leaves() => self.alone = true,
                other => return other,
            }
        }
        // Nobody has to be woken: nothing more will come from here.
        std::future::pending().await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let ends = ends(&tasks);
        if self.alone {
            return failure(tasks).map_or(Ok(ends), Err);
        }
        match self.stream.response_duplex_vec(tasks).await {
            // The upstream's failure, passed on.
            Err(error) if *error.esource() != ErrorSource::Downstream => Err(error),
            result => self.written(result, ends),
        }
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, end: bool) -> Result<()> {
        if self.alone {
            return Ok(());
        }
        let result = self.stream.write_response_header(head, end);
        self.written(result, ())
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        if self.alone {
            return Ok(());
        }
        let result = self.stream.write_response_header_ref(head, end);
        self.written(result, ())
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        if self.alone {
            return Ok(());
        }
        let result = self.stream.write_body(data, end).await;
        self.written(result, ())
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        if self.alone {
            return Ok(());
        }
        let result = self.stream.write_trailers(trailers);
        self.written(result, ())
    }

    async fn finish(&mut self) -> Result<()> {
        if self.alone {
            return Ok(());
        }
        let result = self.stream.finish();
        self.written(result, ())
    }

    async fn shutdown(&mut self, _code: u32, _why: &str) {
        self.stream.shutdown();
    }

    fn req_header(&self) -> &RequestHeader {
        self.stream.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.stream.req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.stream.read_body_bytes().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.stream.drain_request_body().await
    }

    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.stream.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.stream.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.stream.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.stream.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.stream.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.stream.response_written()
    }

    fn is_body_done(&mut self) -> bool {
        self.stream.is_body_done()
    }

    fn is_body_empty(&mut self) -> bool {
        self.stream.is_body_empty()
    }

    fn body_bytes_sent(&self) -> usize {
        self.stream.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.stream.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.stream.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.stream.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.stream.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.stream.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.stream.pseudo_raw_h1_request_header()
    }

    fn enable_retry_buffering(&mut self) {
        self.stream.enable_retry_buffering();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.stream.retry_buffer_truncated()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.stream.get_retry_buffer()
    }

    // HTTP/2 has no messages of another kind.

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(
        &mut self,
        _writer: Box<dyn CustomMessageWrite>,
    ) -> Result<()> {
        Ok(())
    }
}
