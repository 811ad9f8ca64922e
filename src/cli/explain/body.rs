//! The body of a request on its way to the upstream, by the functions of live traffic.

use std::sync::Arc;

use bytes::Bytes;

use super::{BudgetState, Request};
use crate::accounting::record::{own_tier, set_tier};
use crate::bridge::{self, Converted};
use crate::codec::body_memory::BodyMemory;
use crate::codec::error::{Cause, Refusal};
use crate::codec::service_tier::{Edits, RequestFields};
use crate::config::Config;
use crate::policy::{Decision, TierAction};
use crate::proxy::body_filter::{action_for_body, edits, is_held, requests_usage};
use crate::proxy::bridge_exchange::conversion::{self, Conversion};
use crate::proxy::request_body::{BufferedBody, StreamedBody};

/// How much of a rewritten body is shown, in characters.
const BODY_SHOWN: usize = 240;
/// The same of a body that was converted, which the client's does not tell.
const CONVERTED_SHOWN: usize = 16 * 1024;

/// A body as it would go to the upstream.
pub(super) struct OutgoingBody {
    pub tier: Option<String>,
    /// None: the client's own bytes.
    pub rewritten: Option<Bytes>,
    /// It was read whole before anything was decided.
    pub is_held: bool,
    pub converted: Option<Converted>,
}

impl OutgoingBody {
    /// The beginning of the body, where it is not the client's own.
    pub fn shown(&self, request: &Request) -> Option<String> {
        let most = match self.converted {
            Some(_) => CONVERTED_SHOWN,
            None => BODY_SHOWN,
        };
        let bytes = self.rewritten.as_ref()?;
        Some(request.shown(&beginning(bytes, most)).to_owned())
    }
}

/// Why a body does not go on, and the status that says so.
pub(super) struct Refused {
    pub refusal: Refusal,
    pub status: u16,
}

/// The body's way to the upstream, past every check on it; `decision` is settled by what the body says, and `facts` are what
/// was read of it by then.
pub(super) fn carry(
    config: &Config,
    decision: &mut Decision,
    request: &Request,
    allowed_by: Option<&BudgetState>,
    facts: &mut RequestFields,
) -> Result<OutgoingBody, Refused> {
    let limits = Arc::new(config.limits.clone());
    let (head, body) = (&request.head, &request.body);
    let length = Some(request.length());
    let memory = BodyMemory::new(limits.buffered);
    let action = action_for_body(decision.action, &head.method, body.is_empty());
    let upstream = &decision.group.upstream;
    let requests_usage = requests_usage(upstream, decision.endpoint, &head.method);
    let for_budget = !body.is_empty() && allowed_by.is_some() && decision.group.holds_for_budget();
    if !is_held(action, requests_usage, for_budget) {
        let mut streamed = StreamedBody::open(&head.headers, length, &limits, &memory)?;
        streamed.pass(body)?;
        *facts = streamed.finish(decision.endpoint.takes_tier());
        decision.action = within(allowed_by, decision, decision.action, facts)?;
        return Ok(OutgoingBody {
            tier: match decision.action.filter(TierAction::changes) {
                Some(action) => set_tier(Some(action), None),
                None => own_tier(decision.client_beta, facts),
            }
            .map(str::to_owned),
            rewritten: None,
            is_held: false,
            converted: None,
        });
    }
    let mut held = BufferedBody::open(&head.headers, length, true, &limits, &memory)?;
    push(&mut held, body, facts)?;
    decision.client_beta = decision.client_beta.with_body(action, facts);
    let settled = action.and_then(|action| decision.group.settle(action, facts));
    decision.action = within(allowed_by, decision, settled, facts)?;
    if let Some(action) = decision.action {
        action.check_place(decision.endpoint, facts)?;
    }
    let ready = held.finish(edits(decision.action, requests_usage))?;
    *facts = ready.facts;
    let changed = decision.action.filter(TierAction::changes);
    let tier = match changed {
        Some(action) => {
            let found = action.outgoing_tier(&ready.bytes, limits.json_depth, false)?;
            set_tier(Some(action), found)
        }
        None => own_tier(decision.client_beta, facts),
    };
    Ok(OutgoingBody {
        tier: tier.map(str::to_owned),
        rewritten: (!ready.is_original).then_some(ready.bytes),
        is_held: true,
        converted: None,
    })
}

/// Takes a whole body, and notes what was read of it where it is refused too.
fn push(held: &mut BufferedBody, body: &[u8], facts: &mut RequestFields) -> Result<(), Refusal> {
    let pushed = held.push(body);
    facts.clone_from(held.facts());
    pushed
}

/// The action as far as the budget allows it.
fn within(
    budget: Option<&BudgetState>,
    decision: &Decision,
    action: Option<TierAction>,
    facts: &RequestFields,
) -> Result<Option<TierAction>, Refusal> {
    match budget {
        Some(budget) => {
            let own = own_tier(decision.client_beta, facts);
            budget.allow(&decision.group, action, own)
        }
        None => Ok(action),
    }
}

/// The body's way to an upstream that speaks another protocol.
pub(super) fn convert(
    config: &Config,
    decision: &mut Decision,
    request: &Request,
    allowed_by: Option<&BudgetState>,
    conversion: &Conversion,
    facts: &mut RequestFields,
) -> Result<OutgoingBody, Refused> {
    let limits = Arc::new(config.limits.clone());
    let memory = BodyMemory::new(limits.buffered);
    let headers = &request.head.headers;
    let mut held = BufferedBody::open(headers, Some(request.length()), false, &limits, &memory)?;
    push(&mut held, &request.body, facts)?;
    let ready = held.finish(Edits::default())?;
    *facts = ready.facts;
    let group = &decision.group;
    let mut converted = conversion.convert(group, headers, &ready.bytes)?;
    let settled = conversion.decide(group, headers, facts, &converted)?;
    decision.action = within(allowed_by, decision, settled, facts)?;
    let outgoing = conversion::outgoing(&mut converted, decision.action, &limits, &memory)?;
    Ok(OutgoingBody {
        tier: outgoing.tier,
        rewritten: Some(outgoing.bytes),
        is_held: true,
        converted: Some(converted),
    })
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let status = refusal.cause.status();
        Self { refusal, status }
    }
}

impl From<Cause> for Refused {
    fn from(cause: Cause) -> Self {
        Refusal::from(cause).into()
    }
}

impl From<bridge::Refusal> for Refused {
    fn from(refusal: bridge::Refusal) -> Self {
        Self {
            refusal: conversion::refusal_of(&refusal),
            status: refusal.status,
        }
    }
}

/// The first part of a body, on one line.
fn beginning(body: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(body);
    let mut shown: String = text
        .chars()
        .take(most)
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}
