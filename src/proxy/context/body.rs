//! What becomes of a request's body once it is here: what is decided by it, and that nothing else leaves.

use std::time::Instant;

use bytes::Bytes;
use jiff::Timestamp;

use super::{Body, RequestContext};
use crate::accounting::record::own_tier;
use crate::codec::error::{Cause, Refusal};
use crate::policy::{BetaHeader, Condition, TierAction};
use crate::proxy::body_filter::{edits, requests_usage};
use crate::proxy::error_mapping::refuse_unforced;

impl RequestContext {
    /// All of a held body is here. `head_is_sent`: what [`Self::resolve_without_body`] has decided is decided.
    ///
    /// # Errors
    /// Where it is not what can be sent.
    pub fn finish_buffered(&mut self, head_is_sent: bool) -> Result<(), Refusal> {
        if let Body::Buffered(held) = std::mem::replace(&mut self.body, Body::None) {
            self.record.facts = held.facts().clone();
            let decided = self.record.action.filter(|_| head_is_sent);
            if decided.is_none_or(|action| action.condition != Condition::Always) {
                self.resolve_action()?;
            }
            if let Some(action) = self.record.action {
                action.check_place(self.request_info.endpoint, &self.record.facts)?;
            }
            let ready = held.finish(edits(self.record.action, self.requests_usage()))?;
            self.record.facts = ready.facts;
            self.is_original = ready.is_original;
            self.usage_requested = ready.usage_requested;
            self.body = Body::Ready(ready.bytes);
            if let Some(stream) = &self.stream {
                // The attempt began before its body was here.
                if self.retries_without_tier() {
                    stream.keep_error();
                }
                stream.release_request();
                self.attempted = Instant::now();
            }
        }
        Ok(())
    }

    /// Decides what the head of the request left open, now that its body was read.
    ///
    /// # Errors
    /// Where the budget of the fast tier is used up and its requests are to be refused.
    fn resolve_action(&mut self) -> Result<(), Refusal> {
        let record = &mut self.record;
        let Some(group) = &record.group else {
            return Ok(());
        };
        record.client_beta = record.client_beta.with_body(record.action, &record.facts);
        record.action = record
            .action
            .and_then(|action| group.settle(action, &record.facts));
        self.spend_budget()
    }

    /// Decides what has to be known before the body: of a body without a length the head is made before it is read. So what
    /// the body says counts only where the head is the same in both cases: elsewhere it cannot ask for the fast tier, nor take
    /// the request out of the force. `has_two_heads`: it tells a coding of the body, or a hint of the tier.
    ///
    /// # Errors
    /// As above.
    pub fn resolve_without_body(&mut self, has_two_heads: bool) -> Result<(), Refusal> {
        let action = self.record.action.and_then(|action| {
            let has_one_head = action.beta_header == BetaHeader::Keep && !has_two_heads;
            match action.condition {
                Condition::FastSpeed | Condition::ModelRule if has_one_head => Some(action),
                Condition::FastSpeed => None,
                Condition::Always | Condition::ModelRule => Some(TierAction {
                    condition: Condition::Always,
                    ..action
                }),
            }
        });
        self.record.action = action;
        // What the body is still to settle goes by the budget then.
        match action.map(|action| action.condition) {
            None | Some(Condition::Always) => self.spend_budget(),
            Some(Condition::FastSpeed | Condition::ModelRule) => Ok(()),
        }
    }

    /// Sets the action aside where the budget of the fast tier is used up.
    ///
    /// # Errors
    /// Where such requests are to be refused.
    pub fn spend_budget(&mut self) -> Result<(), Refusal> {
        let (Some(group), Some(credential)) = (&self.record.group, &self.credential) else {
            return Ok(());
        };
        let record = &self.record;
        let (action, own) = (record.action, own_tier(record.client_beta, &record.facts));
        let (budgets, now) = (&self.state.budgets, Timestamp::now());
        let allowed = group.within_budget(action, own, &credential.key.digest, budgets, now);
        self.record.action = allowed.map_err(Refusal::over_budget)?;
        Ok(())
    }

    /// Whether its body has to be here before it is known whether its budget lets it through.
    pub fn holds_for_budget(&self) -> bool {
        let group = self.record.group.as_ref();
        self.request_info.endpoint.takes_tier()
            && group.is_some_and(|group| group.holds_for_budget())
    }

    /// Whether a budget may change what is done to the request.
    pub fn has_budget(&self) -> bool {
        let group = self.record.group.as_ref();
        group.is_some_and(|group| group.budget.is_some())
    }

    /// Whether a chat stream is to be asked for its usage.
    pub fn requests_usage(&self) -> bool {
        let (upstream, info) = (self.upstream.as_ref(), &self.request_info);
        upstream
            .is_some_and(|upstream| requests_usage(&upstream.config, info.endpoint, &info.method))
    }

    /// The bytes that now leave for the upstream: the last place to find that they are not what was ordered.
    ///
    /// # Errors
    /// Where they are not.
    pub fn send_ready(&mut self) -> Result<Bytes, Refusal> {
        let Body::Ready(bytes) = &self.body else {
            return Err(Cause::Internal.into());
        };
        let bytes = bytes.clone();
        let found = match self.record.action {
            Some(action) => action.outgoing_tier(&bytes, self.json_depth, false),
            None => Ok(None),
        };
        let id = self.request_info.id;
        let found =
            found.map_err(|_| refuse_unforced(&self.state, format_args!("request {id}")))?;
        self.record.sent_whole(bytes.len() as u64, found);
        Ok(bytes)
    }

    /// Whether the end of the client's body has been here, and nothing of it is left to send in the newest attempt.
    pub fn is_sent(&self) -> bool {
        let waits = matches!(self.body, Body::Ready(_)) && self.record.sent.is_outdated();
        self.body_complete && !waits
    }

    /// Gives back the memory of a body that nothing can send again: the response has begun, and all of the body has been on
    /// its way before.
    pub fn release_body(&mut self) {
        let has_begun = self.record.answer.upstream_status.is_some();
        if has_begun && self.body_complete && !self.record.sent.is_outdated() {
            self.drop_body();
        }
    }

    /// Keeps of the body what the line tells of it.
    pub(super) fn drop_body(&mut self) {
        match std::mem::replace(&mut self.body, Body::None) {
            Body::Streamed(body) => {
                self.record.facts = body.finish(self.request_info.endpoint.takes_tier());
            }
            Body::Buffered(held) => self.record.facts = held.facts().clone(),
            Body::Ready(_) | Body::None => {}
        }
    }
}
