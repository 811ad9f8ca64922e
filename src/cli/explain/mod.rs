//! `tiergate explain`: what would happen to a request, and which line of which file decides it. It asks the functions that
//! decide and carry live requests. It sends nothing of the request anywhere, and what it says does not hold the key.

mod body;
mod headers;
mod request;
mod text;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::accounting::record::{own_tier, tier_reason};
use crate::bridge::{Answer, ModelsRequest, UpstreamBridge, models_answer};
pub use crate::cli::explain::request::{Caller, Request};
use crate::codec::error::{Cause, Refusal};
use crate::codec::service_tier::RequestFields;
use crate::config::diagnostic::Location;
use crate::config::{self, Config};
use crate::policy::budget::Budgets;
use crate::policy::endpoint::Endpoint;
use crate::policy::group::{BudgetRule, Scope};
use crate::policy::{Decision, Denied, Group, Head, Policy, TierAction};
use crate::proxy::bridge_exchange::conversion::{self, Conversion};
use crate::proxy::context::{logged_path, path_and_query, without_query};
use crate::upstream::Upstream;
use body::{OutgoingBody, Refused, carry, convert};
use headers::{header_edits, outgoing_head};

/// Stands for a key that is not to be read.
const NO_SECRET: &[u8] = b"not-shown";

/// Tells the sums that a request of this group and key counts for, where the group has this budget; or why they are not known.
pub type SpentOf<'a> = dyn Fn(&Group, &BudgetRule, &[u8; 32]) -> Result<Budgets, String> + 'a;

/// What is left of the budget that a request counts for, as far as it is known.
struct BudgetState {
    key: [u8; 32],
    now: Timestamp,
    sums: Result<Budgets, String>,
}

/// What would become of a request.
#[derive(Default)]
pub struct Explanation {
    pub record: Record,
    refusal: Option<Refusal>,
    key_location: Option<Location>,
    group: Option<Arc<Group>>,
    /// It becomes a WebSocket whose messages are judged one by one.
    conversation: bool,
    edits: Vec<String>,
    /// The beginning of the body, where it is rewritten.
    body: Option<String>,
    policy_path: PathBuf,
    config_path: PathBuf,
    upstream_url: Option<String>,
    /// Where the request goes to, whole.
    outgoing_url: Option<String>,
    /// The upstream from whose model map it is answered, where it needs no upstream.
    answered_from: Option<String>,
    /// What is spent of the budget, in words.
    budget: Option<String>,
}

/// The fields of the access log that are known before a request is sent.
#[derive(Debug, Default, Serialize)]
pub struct Record {
    pub key: Option<String>,
    pub group: Option<String>,
    pub platform: Option<&'static str>,
    pub policy: String,
    pub method: String,
    pub path: String,
    pub endpoint: &'static str,
    pub model: Option<String>,
    pub service_tier: Option<String>,
    pub service_tier_client: Option<String>,
    pub tier_reason: Option<&'static str>,
    pub upstream: Option<String>,
    /// What the proxy itself would answer.
    pub status: Option<u16>,
    pub request_bytes: u64,
    pub upstream_request_bytes: u64,
    pub bridge: Option<&'static str>,
    pub bridge_dropped: Option<String>,
    pub model_upstream: Option<String>,
    /// The code of the error.
    pub denied: Option<&'static str>,
}

/// What would happen to the request under these files, at this moment.
pub fn explain(
    config: &Config,
    policy: &Policy,
    request: &Request,
    spent: &SpentOf<'_>,
    now: Timestamp,
) -> Explanation {
    let (path, query) = path_and_query(request.head.raw_path());
    let asked = Head {
        method: &request.head.method,
        path,
        query,
        headers: &request.head.headers,
    };
    let mut explanation = Explanation::new(config, policy, request);
    let decided = match &request.caller {
        Caller::Key(_) => policy.decide(&asked),
        Caller::Digest(digest) => policy.decide_as(digest, &asked),
    };
    match decided {
        Ok(decision) => {
            let budget = BudgetState::of(&decision, spent, now);
            explanation.admit(config, request, &decision, budget.as_ref());
        }
        Err(denied) => explanation.deny(denied),
    }
    explanation
}

impl BudgetState {
    /// None where no budget is about such requests.
    fn of(decision: &Decision, spent: &SpentOf<'_>, now: Timestamp) -> Option<BudgetState> {
        let group = &decision.group;
        let rule = group.budget.as_ref();
        let rule = rule.filter(|_| decision.endpoint.takes_tier())?;
        let key = decision.credential.key.digest;
        let sums = spent(group, rule, &key);
        Some(BudgetState { key, now, sums })
    }

    /// What is done to a request whose client asks for the tier `own` itself.
    fn allow(
        &self,
        group: &Group,
        action: Option<TierAction>,
        own: Option<&str>,
    ) -> Result<Option<TierAction>, Refusal> {
        let Ok(budgets) = &self.sums else {
            return Ok(action);
        };
        let allowed = group.within_budget(action, own, &self.key, budgets, self.now);
        allowed.map_err(Refusal::over_budget)
    }

    /// What is spent of it, in words.
    fn text(&self, group: &Group) -> Option<String> {
        let rule = group.budget.as_ref()?;
        let (per, then): (&str, &str) = (rule.per.as_str(), rule.then.into());
        let whose = match rule.scope {
            Scope::Group => "the group",
            Scope::Key => "the key",
        };
        let limit = format!("{} USD a {per} of {whose}, then {then}", rule.usd);
        Some(match &self.sums {
            Ok(budgets) => {
                let account = rule.account(&group.name, &self.key);
                let standing = budgets.standing(rule, &account, self.now);
                format!(
                    "{} of {limit}; begins anew {}",
                    standing.spent.normalize(),
                    standing.window.ends
                )
            }
            Err(why) => format!("{limit}; what is spent is not known: {why}"),
        })
    }
}

impl Explanation {
    fn new(config: &Config, policy: &Policy, request: &Request) -> Explanation {
        let path = without_query(request.head.raw_path());
        let record = Record {
            policy: policy.revision().to_owned(),
            method: request.head.method.to_string(),
            path: request.shown(&logged_path(path)).to_owned(),
            endpoint: Endpoint::Other.as_str(),
            ..Record::default()
        };
        Explanation {
            record,
            policy_path: policy.path().to_owned(),
            config_path: config.path.clone(),
            ..Explanation::default()
        }
    }

    fn key_context(
        &mut self,
        key: Option<Arc<str>>,
        location: Option<Location>,
        group: Option<Arc<Group>>,
        endpoint: &'static str,
    ) {
        self.record.key = key.map(|name| name.to_string());
        self.record.group = group.as_ref().map(|group| group.name.to_string());
        self.record.platform = group.as_ref().map(|group| group.platform.as_str());
        self.record.endpoint = endpoint;
        self.key_location = location;
        self.group = group;
    }

    fn deny(&mut self, denied: Denied) {
        let endpoint = denied.endpoint.as_str();
        self.key_context(denied.key, denied.key_location, denied.group, endpoint);
        self.refuse(denied.cause.into());
    }

    fn refuse(&mut self, refused: Refused) {
        self.record.denied = Some(refused.refusal.cause.code());
        self.record.status = Some(refused.status);
        self.refusal = Some(refused.refusal);
    }

    fn admit(
        &mut self,
        config: &Config,
        request: &Request,
        decision: &Decision,
        budget: Option<&BudgetState>,
    ) {
        self.key_context(
            decision.key.clone(),
            decision.key_location,
            Some(decision.group.clone()),
            decision.endpoint.as_str(),
        );
        self.budget = budget.and_then(|budget| budget.text(&decision.group));
        self.record.request_bytes = request.length();
        self.conversation =
            decision.endpoint == Endpoint::Responses && request.upgrades(decision.endpoint);
        if let Some(answer) = answered_here(request, decision) {
            return self.answer(decision, answer);
        }
        let mut decision = decision.clone();
        let conversion = conversion_of(request, &decision);
        let mut facts = RequestFields::default();
        let carried = match &conversion {
            Some(conversion) => {
                self.record.bridge = Some(conversion.endpoint.protocol().log_word());
                self.record.bridge_dropped = Some(String::new());
                convert(
                    config,
                    &mut decision,
                    request,
                    budget,
                    conversion,
                    &mut facts,
                )
            }
            None => carry(config, &mut decision, request, budget, &mut facts),
        };
        let own = own_tier(decision.client_beta, &facts);
        self.record.tier_reason = Some(tier_reason(decision.action, own));
        self.record.take_facts(request, &facts);
        match carried.and_then(|carried| self.send(request, &decision, conversion, carried)) {
            Ok(()) => {}
            Err(refused) => self.refuse(refused),
        }
    }

    /// It needs no upstream.
    fn answer(&mut self, decision: &Decision, answer: Result<Answer, Refused>) {
        self.record.tier_reason = Some(tier_reason(decision.action, None));
        match answer {
            Ok(answer) => {
                self.record.status = Some(answer.status);
                self.answered_from = Some(decision.group.upstream.name.clone());
            }
            Err(refused) => self.refuse(refused),
        }
    }

    fn send(
        &mut self,
        request: &Request,
        decision: &Decision,
        conversion: Option<Conversion>,
        carried: OutgoingBody,
    ) -> Result<(), Refused> {
        let settings = &decision.group.upstream;
        let upstream = upstream_of(settings)?;
        let outgoing = outgoing_head(request, decision, &upstream, conversion.as_ref(), &carried)?;
        self.edits = header_edits(request, &outgoing, upstream.has_credential());
        let target = String::from_utf8_lossy(outgoing.raw_path());
        // Which one is a matter of turns; the first stands for all.
        self.outgoing_url = settings
            .urls
            .first()
            .map(|url| url.with_path(request.shown(&target)));
        self.upstream_url = Some(urls_of(&upstream));
        self.body = carried.shown(request);
        self.record.upstream = Some(settings.name.clone());
        self.record.take_outgoing(request, carried);
        Ok(())
    }
}

impl Record {
    /// Takes over what was read of the client's body.
    fn take_facts(&mut self, request: &Request, facts: &RequestFields) {
        let shown = |text: &str| request.shown(text).to_owned();
        self.model = facts.model.as_deref().map(shown);
        self.service_tier_client = facts.named_tier().map(shown);
    }

    /// Takes over what is known of a request once its outgoing body is.
    fn take_outgoing(&mut self, request: &Request, outgoing: OutgoingBody) {
        let shown = |text: &str| request.shown(text).to_owned();
        let sent = outgoing.rewritten.as_ref().unwrap_or(&request.body);
        self.upstream_request_bytes = sent.len() as u64;
        if let Some(converted) = &outgoing.converted {
            self.bridge_dropped = Some(shown(&converted.dropped.join(",")));
            self.model_upstream = Some(shown(&converted.context.upstream_model));
        }
        self.service_tier = outgoing.tier.as_deref().map(shown);
    }
}

/// The answer to a request that is answered from the model map.
fn answered_here(request: &Request, decision: &Decision) -> Option<Result<Answer, Refused>> {
    let settings = &decision.group.upstream;
    let path = logged_path(without_query(request.head.raw_path()));
    let upstream = UpstreamBridge::of(settings)?;
    let asked = ModelsRequest {
        protocol: conversion::models_protocol(&request.head.headers),
        name: conversion::asked_model(settings, &request.head.method, &path)?,
        query: request.head.uri.query().unwrap_or_default(),
    };
    let answer = models_answer(&asked, &upstream.models);
    Some(answer.map_err(Refused::from))
}

/// What of the request is converted, if anything is.
fn conversion_of(request: &Request, decision: &Decision) -> Option<Conversion> {
    let settings = &decision.group.upstream;
    let path = logged_path(without_query(request.head.raw_path()));
    let method = &request.head.method;
    let endpoint = conversion::endpoint(settings, decision.endpoint, method, &path)?;
    let upstream = Arc::new(UpstreamBridge::of(settings)?);
    Some(Conversion { endpoint, upstream })
}

/// The upstream, with something in the place of its key.
fn upstream_of(settings: &Arc<config::Upstream>) -> Result<Upstream, Refusal> {
    let upstream = Upstream::new(settings.clone()).map_err(|_| Cause::Internal)?;
    if settings.credential_file.is_some() {
        upstream
            .load_credential(Ok(NO_SECRET.to_vec().into()))
            .map_err(|_| Cause::Internal)?;
    }
    Ok(upstream)
}

fn urls_of(upstream: &Upstream) -> String {
    let urls = upstream.config.urls.iter().map(ToString::to_string);
    urls.collect::<Vec<_>>().join(", ")
}
