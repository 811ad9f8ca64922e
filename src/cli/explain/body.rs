//! The body of a request on its way to the upstream, by the functions of live traffic.

use std::sync::Arc;

use bytes::Bytes;

use super::{BudgetState, Request};
use crate::accounting::record::{own_tier, set_tier};
use crate::bridge::Converted;
use crate::codec::body_memory::BodyMemory;
use crate::codec::error::Refusal;
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

/// A body as it would go to the upstream, and what it says.
pub(super) struct OutgoingBody {
    pub facts: RequestFields,
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

/// The body's way to the upstream, past every check on it; `decision` is settled by what the body says.
pub(super) fn carry(
    config: &Config,
    decision: &mut Decision,
    request: &Request,
    allowed_by: Option<&BudgetState>,
) -> Result<OutgoingBody, Refusal> {
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
        let facts = streamed.finish(decision.endpoint.takes_tier());
        decision.action = within(allowed_by, decision, decision.action, &facts)?;
        return Ok(OutgoingBody {
            tier: match decision.action.filter(TierAction::changes) {
                Some(action) => set_tier(Some(action), None),
                None => own_tier(decision.client_beta, &facts),
            }
            .map(str::to_owned),
            facts,
            rewritten: None,
            is_held: false,
            converted: None,
        });
    }
    let mut held = BufferedBody::open(&head.headers, length, true, &limits, &memory)?;
    held.push(body)?;
    decision.client_beta = decision.client_beta.with_body(action, held.facts());
    let settled = action.and_then(|action| decision.group.settle(action, held.facts()));
    decision.action = within(allowed_by, decision, settled, held.facts())?;
    let ready = held.finish(edits(decision.action, requests_usage))?;
    let changed = decision.action.filter(TierAction::changes);
    let tier = match changed {
        Some(action) => {
            let found = action.outgoing_tier(&ready.bytes, limits.json_depth, false)?;
            set_tier(Some(action), found)
        }
        None => own_tier(decision.client_beta, &ready.facts),
    };
    Ok(OutgoingBody {
        tier: tier.map(str::to_owned),
        rewritten: (!ready.is_original).then_some(ready.bytes),
        is_held: true,
        facts: ready.facts,
        converted: None,
    })
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
) -> Result<OutgoingBody, Refusal> {
    let limits = Arc::new(config.limits.clone());
    let memory = BodyMemory::new(limits.buffered);
    let headers = &request.head.headers;
    let mut held = BufferedBody::open(headers, Some(request.length()), false, &limits, &memory)?;
    held.push(&request.body)?;
    let ready = held.finish(Edits::default())?;
    let group = &decision.group;
    let converted = conversion.convert(group, headers, &ready.bytes);
    let mut converted = converted.map_err(|refusal| conversion::refusal_of(&refusal))?;
    let settled = conversion.decide(group, headers, &ready.facts, &converted)?;
    decision.action = within(allowed_by, decision, settled, &ready.facts)?;
    let outgoing = conversion::outgoing(&mut converted, decision.action, &limits, &memory)?;
    Ok(OutgoingBody {
        facts: ready.facts,
        tier: outgoing.tier,
        rewritten: Some(outgoing.bytes),
        is_held: true,
        converted: Some(converted),
    })
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
