//! The upstream's side of a bridged request: one connection or stream, from Pingora's connectors.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header;
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::time::timeout;

use super::decoding::Decoding;
use crate::proxy::client_response::is_interim;
use crate::upstream::connector::{Http2Session, UpstreamConnector};

/// How long the end of a message may take whose last event is here, before its connection is given up.
const END_TIME: Duration = Duration::from_secs(1);

/// A request under way. Dropped before its end it is ended: an upstream is not to work for nobody.
pub(super) struct Connection {
    /// Gone when it was given back.
    http: Option<HttpSession<Http2Session>>,
    peer: HttpPeer,
    connector: Arc<Connector<UpstreamConnector>>,
}

impl Connection {
    /// Takes one of the pool or makes one; true for one of the pool.
    pub async fn open(
        connector: &Arc<Connector<UpstreamConnector>>,
        peer: HttpPeer,
    ) -> Result<(Self, bool)> {
        let (http, reused) = connector.get_http_session(&peer).await?;
        let connection = Self {
            http: Some(http),
            peer,
            connector: connector.clone(),
        };
        Ok((connection, reused))
    }

    /// Sends a whole request, and reads the head of its answer.
    pub async fn send(&mut self, head: Box<RequestHeader>, body: Bytes) -> Result<()> {
        let http = self.http()?;
        http.write_request_header(head).await?;
        http.write_request_body(body, false).await?;
        http.finish_request_body().await?;
        loop {
            http.read_response_header().await?;
            let status = http.response_header().map(|head| head.status);
            // Of the interim ones only 101 is an answer, if one that nobody asked for.
            if !status.is_some_and(is_interim) {
                break;
            }
        }
        if let HttpSession::H1(http) = http {
            http.respect_keepalive();
        }
        Ok(())
    }

    /// The next piece of the answer's body; none at its end.
    pub async fn read(&mut self) -> Result<Option<Bytes>> {
        let read = self.http()?.read_response_body().await;
        read.map_err(|error| error.into_up())
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.http.as_ref()?.digest()
    }

    pub fn response_head(&self) -> Result<&ResponseHeader> {
        let head = self.http.as_ref().and_then(|http| http.response_header());
        head.ok_or_else(|| Error::new_up(ErrorType::InternalError))
    }

    /// What decodes its body.
    pub fn decoding(&self) -> Result<Decoding> {
        let head = self.response_head()?;
        Ok(Decoding::of(&head.headers))
    }

    pub fn content_type(&self) -> Option<&str> {
        self.header(&header::CONTENT_TYPE)
    }

    pub fn retry_after(&self) -> Option<&str> {
        self.header(&header::RETRY_AFTER)
    }

    /// The answer was read as far as anybody wants it; the connection is for the next request.
    pub fn release(mut self) {
        let Some(mut http) = self.http.take() else {
            return;
        };
        let (peer, connector) = (self.peer.clone(), self.connector.clone());
        tokio::spawn(async move {
            let ended = timeout(END_TIME, read_to_end(&mut http)).await;
            if !matches!(ended, Ok(Ok(()))) {
                http.shutdown().await;
            }
            give_back(&connector, http, &peer).await;
        });
    }

    fn http(&mut self) -> Result<&mut HttpSession<Http2Session>> {
        let gone = || Error::explain(ErrorType::InternalError, "the connection was given back");
        self.http.as_mut().ok_or_else(gone)
    }

    fn header(&self, name: &http::HeaderName) -> Option<&str> {
        let head = self.http.as_ref()?.response_header()?;
        head.headers.get(name)?.to_str().ok()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(mut http) = self.http.take() else {
            return;
        };
        let (peer, connector) = (self.peer.clone(), self.connector.clone());
        // At the end of the process there is no runtime to do it, and no need.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            http.shutdown().await;
            if matches!(http, HttpSession::Custom(_)) {
                // The others on the connection of HTTP/2 go on.
                give_back(&connector, http, &peer).await;
            }
        });
    }
}

async fn read_to_end(http: &mut HttpSession<Http2Session>) -> Result<()> {
    while http.read_response_body().await?.is_some() {}
    Ok(())
}

async fn give_back(
    connector: &Connector<UpstreamConnector>,
    http: HttpSession<Http2Session>,
    peer: &HttpPeer,
) {
    let idle = peer.idle_timeout();
    connector.release_http_session(http, peer, idle).await;
}
