//! The attempts of a request at its upstream: how each begins, and what its failure means.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType};
use pingora_http::ResponseHeader;

use super::{Body, RequestContext};
use crate::accounting::record::{Termination, set_tier};
use crate::accounting::usage::refuses_tier;
use crate::codec::error::Cause;
use crate::codec::service_tier::Rewriter;
use crate::policy::TierAction;
use crate::proxy::client_connection::ClientConnection;
use crate::proxy::error_mapping::{
    FailureContext, TIER_REFUSED, is_stale_connection, is_unprocessed,
};
use crate::upstream::Upstream;
use crate::upstream::connector::control::{AwaitedPhase, StreamControl};
use crate::upstream::error_text::describe_error;

/// A connection that ends so soon after a request was sent on it has ended by itself: no model answers as fast. A balancer in
/// between acknowledges a request that its server, which has just closed an idle connection, never sees.
const STALE_TIME: Duration = Duration::from_millis(40);

impl RequestContext {
    /// Where the next attempt goes, by a connection of its own where a pooled one has ended under the attempt before; none
    /// while no address is known.
    pub fn next_peer(&mut self) -> Option<HttpPeer> {
        self.stream = None;
        let upstream = self.upstream.as_ref()?;
        let address = self.attempts.next(upstream)?;
        let mut peer = address.request_peer(self.only_http1).clone();
        if self.has_met_stale {
            // Pingora pools by it: no connection of another request has this one.
            peer.group_key = self.request_info.id.as_u64_pair().1;
        }
        Some(peer)
    }

    /// A head is about to go out.
    pub fn begin_attempt(&mut self) {
        let reached = !matches!(self.body, Body::Buffered(_));
        let in_header = set_tier(self.record.action, None).filter(|_| reached);
        self.record
            .sent
            .begin(reached, in_header.map(str::to_owned));
        self.attempted = Instant::now();
        self.trailers_seen = false;
        self.pipe = None;
        if let Some(stream) = &self.stream {
            let upstream = self.upstream.as_ref();
            let write_limit = upstream.map(|upstream| upstream.config.idle_timeout);
            stream.begin(!reached, self.upgrade, write_limit);
            if self.retries_without_tier() {
                stream.keep_error();
            }
        }
        match self.body_complete || self.upgrade {
            true => self.await_response(),
            false => self.await_body(),
        }
    }

    /// The upstream's connection is to read as ended: the request is refused, or a WebSocket is over.
    pub fn end_upstream(&self) {
        if let Some(stream) = &self.stream {
            stream.end();
        }
    }

    /// Whether a refusal of the tier is answered by another attempt without it: of a body that can be sent again, once.
    pub(super) fn retries_without_tier(&self) -> bool {
        let (Some(group), Some(action)) = (&self.record.group, self.record.action) else {
            return false;
        };
        let is_first = !self.without_tier && matches!(self.body, Body::Ready(_));
        is_first && group.retries_without_tier(action)
    }

    /// Whether the response to this attempt refuses its tier, and another attempt is to be made without it, for which the body
    /// is changed.
    pub fn drop_refused_tier(&mut self, response: &ResponseHeader) -> bool {
        let error = self.stream.as_ref().and_then(|stream| stream.kept_error());
        let endpoint = self.request_info.endpoint;
        let has_refused = error.is_some_and(|body| {
            refuses_tier(endpoint, response.status.as_u16(), &response.headers, &body)
        });
        let Body::Ready(bytes) = &self.body else {
            return false;
        };
        if !has_refused || !self.retries_without_tier() {
            return false;
        }
        let rewriter = Rewriter::new(self.json_depth, bytes.len());
        let Some((mut buffer, start)) = rewriter.without_tier(bytes) else {
            return false;
        };
        self.body = Body::Ready(buffer.split_off(start).into());
        self.without_tier = true;
        self.record.tier_refused = true;
        self.record.action = self.record.action.map(TierAction::without_tier);
        true
    }

    /// What is awaited from here on, and for how long.
    pub fn enter(&self, phase: AwaitedPhase, limit: Option<Duration>) {
        if let Some(stream) = &self.stream {
            stream.enter(phase, limit);
        }
    }

    /// Something of a body that passes as it comes is about to leave. In a new attempt it comes from its beginning.
    pub fn restart_where_new(&mut self) {
        if let Body::Streamed(body) = &mut self.body
            && self.record.sent.renew()
        {
            body.restart();
            self.record.request_bytes = 0;
        }
    }

    /// An attempt has failed after its connection was there. The error says whether there is to be another one: for what a
    /// dead pooled connection swallowed, where that is safe. `replayable`: the same bytes can be sent again.
    pub fn attempt_failed(
        &mut self,
        mut error: Box<Error>,
        reused: bool,
        replayable: bool,
    ) -> Box<Error> {
        if *error.etype() == TIER_REFUSED {
            error.set_retry(replayable);
            return error;
        }
        let is_refused = is_unprocessed(&error);
        if is_refused {
            self.attempts.record_refusal();
        }
        // A connection that was made for it is not pooled, and two that end in this way are no accident.
        let is_stale = reused && !self.has_met_stale && self.is_stale(&error);
        self.has_met_stale |= is_stale;
        let unprocessed = is_refused || is_stale;
        self.only_http1 |= *error.etype() == ErrorType::H2Downgrade;
        error.set_retry(replayable && unprocessed && self.may_try_again());
        if let Some(upstream) = &self.upstream
            && !reused
            && self.failure_context().is_reset(&error)
        {
            self.attempts.record_failure(upstream, &error);
        }
        error
    }

    /// Whether the error is the end of a pooled connection that had crossed the request, or of one whose request may be made
    /// twice. A connection of HTTP/2 that others use does not end for being idle: what its server had taken it may have
    /// worked on (RFC 9113 §8.7).
    fn is_stale(&self, error: &Error) -> bool {
        let is_safe = self.request_info.method.is_safe();
        let has_crossed = |stream: &Arc<StreamControl>| {
            let is_fresh =
                !stream.has_received() && stream.expired().is_none() && !stream.is_shared();
            let is_unseen = stream.is_untaken() || self.attempted.elapsed() < STALE_TIME;
            is_fresh && (is_safe || is_unseen)
        };
        is_stale_connection(error, is_safe) && self.stream.as_ref().is_some_and(has_crossed)
    }

    fn may_try_again(&self) -> bool {
        let may_go_on = |upstream: &Arc<Upstream>| self.attempts.may_go_on(upstream);
        self.record.answer.upstream_status.is_none()
            && self.refusal.is_none()
            && self.upstream.as_ref().is_some_and(may_go_on)
    }

    /// What is known of it when an error ends it.
    pub fn failure_context(&self) -> FailureContext {
        let (client, stream) = (self.client.as_deref(), self.stream.as_deref());
        FailureContext {
            refusal: self.refusal.as_ref().map(|refusal| refusal.cause),
            is_answered: self.record.answer.upstream_status.is_some(),
            expired: stream.and_then(StreamControl::expired),
            is_drained: client.is_some_and(ClientConnection::is_body_cut),
        }
    }

    /// No connection could be made for an attempt. The error says whether there is to be another one.
    pub fn connect_failed(&mut self, mut error: Box<Error>) -> Box<Error> {
        let upstream = self.upstream.as_ref();
        let again = upstream.is_some_and(|upstream| {
            let attempts = &mut self.attempts;
            attempts.record_connect_failure(upstream, &error, self.only_http1)
        });
        error.set_retry(again);
        error
    }

    /// Takes note that no attempt is left. True where the client is to be told, by `refusal`.
    pub fn conclude_failure(&mut self, error: &Error) -> bool {
        let Termination::Refused(cause) = self.failure_context().termination_of(error) else {
            return false;
        };
        self.refusal.get_or_insert_with(|| cause.into());
        if cause.status() >= 500 && cause != Cause::Draining {
            self.log_failure(cause, error);
        }
        true
    }

    /// Tells of the place that failed and not of the request, so that the requests that fail there are one line with a count.
    /// The access log has each of them.
    fn log_failure(&self, cause: Cause, error: &Error) {
        let (id, code, why) = (self.request_info.id, cause.code(), describe_error(error));
        log::debug!("request {id}: {code}: {why}");
        let name = self.upstream.as_ref().map(|upstream| &upstream.config.name);
        let socket = self.attempts.address().map(|address| &address.socket);
        match (name, socket) {
            (Some(name), Some(socket)) => log::warn!("upstream `{name}` {socket}: {why}"),
            (Some(name), None) => log::warn!("upstream `{name}`: {why}"),
            (None, _) => log::warn!("{code}: {why}"),
        }
    }
}
