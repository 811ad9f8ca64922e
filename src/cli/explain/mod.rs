//! `tiergate explain`: what would happen to a request, and which line of which file decides it. It asks the functions that
//! decide and carry live requests. It sends nothing of the request anywhere, and what it says does not hold the key.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use jiff::Timestamp;
use pingora_http::RequestHeader;
use serde::Serialize;

use crate::accounting::record::{logged_model, own_tier, set_tier, tier_reason};
use crate::bridge::{Answer, Converted, ModelsRequest, UpstreamBridge, models_answer};
use crate::codec::body_budget::Budget;
use crate::codec::error::{Cause, Refusal};
use crate::codec::service_tier::{Edits, Facts};
use crate::config::diagnostic::Location;
use crate::config::{Config, UpstreamKind};
use crate::policy::api_key::parse_digest;
use crate::policy::budget::Budgets;
use crate::policy::endpoint::Endpoint;
use crate::policy::file::CODEX_OVER_HTTP;
use crate::policy::group::{BudgetRule, FastModeSignal, ForcedTier, ModelRule, Scope};
use crate::policy::{
    CredentialHeader, Decision, Denied, Group, Head, Policy, TierAction, TierReason,
};
use crate::proxy::body_filter::{action_for_body, edits, is_held, may_be_empty, requests_usage};
use crate::proxy::bridge_exchange::conversion::{self, Conversion};
use crate::proxy::context::{logged_path, without_query};
use crate::proxy::may_upgrade;
use crate::proxy::request_body::{BufferedBody, StreamedBody};
use crate::proxy::upstream_request::{HeadEdit, Length};
use crate::upstream::Upstream;

/// How much of a rewritten body is shown, in characters.
const BODY_SHOWN: usize = 240;
/// The same of a body that was converted, which the client's does not tell.
const CONVERTED_SHOWN: usize = 16 * 1024;
/// Stands for a key that is not to be read.
const NO_SECRET: &[u8] = b"not-shown";

/// Whose request it is: the key itself, or its digest where nobody has the key at hand.
pub enum Caller {
    Key(String),
    Digest([u8; 32]),
}

/// A request as its client would send it.
pub struct Request {
    caller: Caller,
    head: RequestHeader,
    body: Bytes,
}

/// Tells the sums that a request of this group and key counts for, where the group has this budget; or why they are not known.
pub type SpentOf<'a> = dyn Fn(&Group, &BudgetRule, &[u8; 32]) -> Result<Budgets, String> + 'a;

/// What is left of the budget that a request counts for, as far as it is known.
struct BudgetState {
    key: [u8; 32],
    now: Timestamp,
    sums: Result<Budgets, String>,
}

/// What would become of a request.
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
#[derive(Debug, Serialize)]
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

/// A body as it would go to the upstream, and what it says.
struct Carried {
    facts: Facts,
    tier: Option<String>,
    /// None: the client's own bytes.
    rewritten: Option<Bytes>,
    converted: Option<Converted>,
}

impl Caller {
    /// # Errors
    /// Where no key or more than one has the name.
    pub fn by_name(name: &str, policy: &Policy) -> Result<Caller, String> {
        let mut named = policy.keys().filter(|key| &*key.name == name);
        match (named.next(), named.next()) {
            (Some(key), None) => Ok(Caller::Digest(*key.id)),
            (Some(_), Some(_)) => Err("several keys have that name; use --digest".to_owned()),
            (None, _) => Err("the policy has no key of that name".to_owned()),
        }
    }

    /// # Errors
    /// Where the text is no digest.
    pub fn by_digest(text: &str) -> Result<Caller, String> {
        let digest = text.strip_prefix("sha256:").and_then(parse_digest);
        digest
            .map(Caller::Digest)
            .ok_or_else(|| "expected `sha256:` and 64 hexadecimal digits".to_owned())
    }

    /// In the place of a key that is not at hand, something that a header can have.
    fn text(&self) -> &str {
        match self {
            Caller::Key(key) => key,
            Caller::Digest(_) => "key",
        }
    }
}

impl Request {
    /// Of the default body: an empty object, or none with a method that goes without.
    ///
    /// # Errors
    /// What cannot be a request.
    pub fn new(
        caller: Caller,
        method: &Method,
        path: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Option<Vec<u8>>,
    ) -> Result<Request, String> {
        let body = body.unwrap_or_else(|| default_body(method).to_owned());
        let path = without_origin(path)?;
        let mut head = RequestHeader::build(method.clone(), path.as_bytes(), None)
            .map_err(|_| "the path cannot stand in a request")?;
        let bearer = HeaderValue::try_from(format!("Bearer {}", caller.text()));
        let bearer = bearer.map_err(|_| "the key cannot stand in a header")?;
        let own = [(header::AUTHORIZATION, bearer)];
        for (name, value) in own.into_iter().chain(headers) {
            head.append_header(name, value)
                .map_err(|_| "too many headers")?;
        }
        if !body.is_empty() || !may_be_empty(method) {
            head.insert_header(header::CONTENT_LENGTH, body.len())
                .map_err(|_| "too many headers")?;
        }
        Ok(Request {
            caller,
            head,
            body: body.into(),
        })
    }

    fn length(&self) -> u64 {
        self.body.len() as u64
    }

    /// Whether it would become a WebSocket, if the upstream agrees.
    fn upgrades(&self, endpoint: Endpoint) -> bool {
        let asked = self.head.headers.contains_key(header::UPGRADE);
        asked && may_upgrade(&self.head.method, endpoint)
    }

    /// Text of the request's that is shown only if the key is not in it.
    fn shown<'t>(&self, text: &'t str) -> &'t str {
        match &self.caller {
            Caller::Key(key) if text.contains(key) => "(not shown: the key is in it)",
            _ => text,
        }
    }
}

/// Path and query of a URL; a path is taken as it is, whatever is in it.
fn without_origin(path: &str) -> Result<&str, String> {
    let Some((scheme, rest)) = path.split_once("://").filter(|_| !path.starts_with('/')) else {
        return Ok(path);
    };
    if !matches!(scheme, "http" | "https" | "ws" | "wss") {
        return Err(
            "expected a path, or a URL that begins with `http://` or `https://`".to_owned(),
        );
    }
    let path = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
    let path = path.split('#').next().unwrap_or_default();
    Ok(if path.is_empty() { "/" } else { path })
}

fn default_body(method: &Method) -> &'static [u8] {
    if may_be_empty(method) { b"" } else { b"{}" }
}

/// What would happen to the request under these files, at this moment.
pub fn explain(
    config: &Config,
    policy: &Policy,
    request: &Request,
    spent: &SpentOf<'_>,
    now: Timestamp,
) -> Explanation {
    let asked = Head {
        method: &request.head.method,
        path: without_query(request.head.raw_path()),
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
        let key = decision.credential.digest;
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
            key: None,
            group: None,
            platform: None,
            policy: policy.revision().to_owned(),
            method: request.head.method.to_string(),
            path: request.shown(&logged_path(path)).to_owned(),
            endpoint: "other",
            model: None,
            service_tier: None,
            service_tier_client: None,
            tier_reason: None,
            upstream: None,
            status: None,
            request_bytes: 0,
            upstream_request_bytes: 0,
            bridge: None,
            bridge_dropped: None,
            model_upstream: None,
            denied: None,
        };
        Explanation {
            record,
            refusal: None,
            key_location: None,
            group: None,
            conversation: false,
            edits: Vec::new(),
            body: None,
            policy_path: policy.path().to_owned(),
            config_path: config.path.clone(),
            upstream_url: None,
            outgoing_url: None,
            answered_from: None,
            budget: None,
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

    fn refuse(&mut self, refusal: Refusal) {
        self.record.denied = Some(refusal.cause.code());
        self.record.status = Some(refusal.cause.status());
        self.refusal = Some(refusal);
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
        let carried = match &conversion {
            Some(conversion) => {
                self.record.bridge = Some(conversion.endpoint.protocol().log_word());
                self.record.bridge_dropped = Some(String::new());
                convert(config, &mut decision, request, budget, conversion)
            }
            None => carry(config, &mut decision, request, budget),
        };
        let facts = carried.as_ref().map(|carried| carried.facts.clone());
        self.record.tier_reason = Some(tier_reason(decision.action, &facts.unwrap_or_default()));
        match carried.and_then(|carried| self.send(request, &decision, conversion, carried)) {
            Ok(()) => {}
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// It needs no upstream.
    fn answer(&mut self, decision: &Decision, answer: Result<Answer, Refusal>) {
        self.record.tier_reason = Some(tier_reason(decision.action, &Facts::default()));
        match answer {
            Ok(answer) => {
                self.record.status = Some(answer.status);
                self.answered_from = Some(decision.group.upstream.name.clone());
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn send(
        &mut self,
        request: &Request,
        decision: &Decision,
        conversion: Option<Conversion>,
        carried: Carried,
    ) -> Result<(), Refusal> {
        let Carried {
            facts,
            tier,
            rewritten,
            converted,
        } = carried;
        let settings = &decision.group.upstream;
        let upstream = Upstream::new(settings.clone()).map_err(|_| Cause::Internal)?;
        if settings.credential_file.is_some() {
            upstream
                .load_credential(Ok(NO_SECRET.to_vec().into()))
                .map_err(|_| Cause::Internal)?;
        }
        let outgoing = match &conversion {
            Some(conversion) => bridged_head(request, decision, &upstream, conversion, &rewritten)?,
            None => outgoing_head(request, decision, &upstream, rewritten.as_ref())?,
        };
        let is_replaced = settings.credential_file.is_some();
        self.edits = header_edits(request, &outgoing, is_replaced);
        let target = String::from_utf8_lossy(outgoing.raw_path());
        // Which one is a matter of turns; the first stands for all.
        self.outgoing_url = settings
            .urls
            .first()
            .map(|url| url.with_path(request.shown(&target)));
        self.upstream_url = Some(urls_of(&upstream));
        let most = match converted {
            Some(_) => CONVERTED_SHOWN,
            None => BODY_SHOWN,
        };
        self.body = rewritten
            .as_ref()
            .map(|bytes| request.shown(&beginning(bytes, most)).to_owned());
        if let Some(converted) = &converted {
            let dropped = converted.dropped.join(",");
            self.record.bridge_dropped = Some(request.shown(&dropped).to_owned());
            let model = &converted.context.upstream_model;
            self.record.model_upstream = Some(request.shown(model).to_owned());
        }
        let sent = rewritten.as_ref().unwrap_or(&request.body);
        self.record.model = logged_model(&facts).map(|model| request.shown(model).to_owned());
        self.record.service_tier_client = facts
            .service_tier
            .map(|tier| request.shown(tier.as_str()).to_owned());
        self.record.service_tier = tier.map(|tier| request.shown(&tier).to_owned());
        self.record.upstream = Some(settings.name.clone());
        self.record.upstream_request_bytes = sent.len() as u64;
        Ok(())
    }
}

/// The body's way to the upstream, past every check on it; `decision` is settled by what the body says.
fn carry(
    config: &Config,
    decision: &mut Decision,
    request: &Request,
    allowed_by: Option<&BudgetState>,
) -> Result<Carried, Refusal> {
    let limits = Arc::new(config.limits.clone());
    let (head, body) = (&request.head, &request.body);
    let length = Some(request.length());
    let budget = Budget::new(limits.buffered);
    let action = action_for_body(decision.action, &head.method, body.is_empty());
    let upstream = &decision.group.upstream;
    let requests_usage = requests_usage(upstream, decision.endpoint, &head.method);
    let for_budget = !body.is_empty() && allowed_by.is_some() && decision.group.holds_for_budget();
    if !is_held(action, requests_usage, for_budget) {
        let mut streamed = StreamedBody::open(&head.headers, length, &limits, &budget)?;
        streamed.pass(body)?;
        let facts = streamed.finish();
        decision.action = within(allowed_by, decision, decision.action, &facts)?;
        return Ok(Carried {
            tier: match decision.action {
                Some(_) => set_tier(decision.action, None),
                None => own_tier(&facts),
            }
            .map(str::to_owned),
            facts,
            rewritten: None,
            converted: None,
        });
    }
    let mut held = BufferedBody::open(&head.headers, length, true, &limits, &budget)?;
    held.push(body)?;
    let settled = action.and_then(|action| decision.group.settle(action, held.facts()));
    decision.action = within(allowed_by, decision, settled, held.facts())?;
    let ready = held.finish(edits(decision.action, requests_usage))?;
    let changed = decision.action.filter(|action| action.changes());
    let tier = match changed {
        Some(action) => {
            let found = action.outgoing_tier(&ready.bytes, limits.json_depth, false)?;
            set_tier(Some(action), found)
        }
        None => own_tier(&ready.facts),
    };
    Ok(Carried {
        tier: tier.map(str::to_owned),
        rewritten: (!ready.is_original).then_some(ready.bytes),
        facts: ready.facts,
        converted: None,
    })
}

/// The action as far as the budget allows it.
fn within(
    budget: Option<&BudgetState>,
    decision: &Decision,
    action: Option<TierAction>,
    facts: &Facts,
) -> Result<Option<TierAction>, Refusal> {
    match budget {
        Some(budget) => budget.allow(&decision.group, action, own_tier(facts)),
        None => Ok(action),
    }
}

/// The answer to a request that is answered from the model map.
fn answered_here(request: &Request, decision: &Decision) -> Option<Result<Answer, Refusal>> {
    let settings = &decision.group.upstream;
    let path = logged_path(without_query(request.head.raw_path()));
    let upstream = UpstreamBridge::of(settings)?;
    let asked = ModelsRequest {
        protocol: conversion::models_protocol(&request.head.headers),
        name: conversion::asked_model(settings, &request.head.method, &path)?,
        query: request.head.uri.query().unwrap_or_default(),
    };
    let answer = models_answer(&asked, &upstream.models);
    Some(answer.map_err(|refusal| conversion::refusal_of(&refusal)))
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

/// The body's way to an upstream that speaks another protocol.
fn convert(
    config: &Config,
    decision: &mut Decision,
    request: &Request,
    allowed_by: Option<&BudgetState>,
    conversion: &Conversion,
) -> Result<Carried, Refusal> {
    let limits = Arc::new(config.limits.clone());
    let budget = Budget::new(limits.buffered);
    let headers = &request.head.headers;
    let mut held = BufferedBody::open(headers, Some(request.length()), false, &limits, &budget)?;
    held.push(&request.body)?;
    let ready = held.finish(Edits::default())?;
    let group = &decision.group;
    let converted = conversion.convert(group, headers, &ready.bytes);
    let mut converted = converted.map_err(|refusal| conversion::refusal_of(&refusal))?;
    let settled = conversion.decide(group, headers, &ready.facts, &converted)?;
    decision.action = within(allowed_by, decision, settled, &ready.facts)?;
    let outgoing = conversion::outgoing(&mut converted, decision.action, &limits, &budget)?;
    Ok(Carried {
        facts: ready.facts,
        tier: outgoing.tier,
        rewritten: Some(outgoing.bytes),
        converted: Some(converted),
    })
}

/// The head of a converted request as the upstream gets it.
fn bridged_head(
    request: &Request,
    decision: &Decision,
    upstream: &Upstream,
    conversion: &Conversion,
    body: &Option<Bytes>,
) -> Result<RequestHeader, Refusal> {
    let target = conversion.upstream.path(conversion.endpoint);
    let edit = HeadEdit {
        is_http2: false,
        // Its ids are new for each request.
        trace: None,
        upstream,
        // Which one is a matter of turns; the first stands for all.
        origin: &upstream.origins[0],
        target: target.as_bytes(),
        credential: Some(decision.credential),
        endpoint: decision.endpoint,
        action: decision.action,
        upgrade: false,
        length: Length::Known(body.as_ref().map_or(0, Bytes::len)),
    };
    let headers = &request.head.headers;
    let head = conversion.head(headers, Some(decision.credential), edit);
    head.map(|head| *head).map_err(|_| Cause::Internal.into())
}

/// The head as the upstream gets it.
fn outgoing_head(
    request: &Request,
    decision: &Decision,
    upstream: &Upstream,
    rewritten: Option<&Bytes>,
) -> Result<RequestHeader, Refusal> {
    // Which one is a matter of turns; the first stands for all.
    let origin = &upstream.origins[0];
    let edit = HeadEdit {
        is_http2: false,
        // Its ids are new for each request.
        trace: None,
        upstream,
        origin,
        target: request.head.raw_path(),
        credential: Some(decision.credential),
        endpoint: decision.endpoint,
        action: decision.action,
        upgrade: request.upgrades(decision.endpoint),
        length: rewritten.map_or(Length::Same, |bytes| Length::Known(bytes.len())),
    };
    let mut outgoing = request.head.clone();
    edit.apply(&mut outgoing).map_err(|_| Cause::Internal)?;
    Ok(outgoing)
}

/// What becomes of the request's headers, a line each. `is_replaced`: the client's key, by that of the upstream.
fn header_edits(request: &Request, outgoing: &RequestHeader, is_replaced: bool) -> Vec<String> {
    let (before, after) = (&request.head.headers, &outgoing.headers);
    let mut names: Vec<&HeaderName> = before.keys().chain(after.keys()).collect();
    names.sort_unstable_by_key(|name| name.as_str());
    names.dedup();
    let told = names.into_iter().filter_map(|name| {
        let (old, new) = (before.get_all(name), after.get_all(name));
        let (old_text, new_text) = (lines(before, name), lines(after, name));
        (old != new).then(|| header_edit(request, name, is_replaced, [&old_text, &new_text]))
    });
    told.collect()
}

fn header_edit(
    request: &Request,
    name: &HeaderName,
    is_replaced: bool,
    [old, new]: [&str; 2],
) -> String {
    let secret = CredentialHeader::ALL
        .iter()
        .any(|header| header.name() == name);
    match (old, new) {
        (_, "") => format!("{name}: removed"),
        _ if secret && is_replaced => {
            format!("{name}: the key of `credential_file`, in place of the client's")
        }
        _ if secret => format!("{name}: the key that decides, and no other"),
        ("", new) => format!("{name}: {new}"),
        // What was taken out of it is a key.
        (_, new) if name == header::SEC_WEBSOCKET_PROTOCOL => format!("{name}: {new}"),
        (old, new) => format!("{name}: {new}  (was {})", request.shown(old)),
    }
}

/// The values of a header in one text.
fn lines(headers: &HeaderMap, name: &HeaderName) -> String {
    let values = headers.get_all(name).iter();
    let texts: Vec<_> = values
        .map(|value| match value.is_sensitive() {
            true => "a value of the configuration".into(),
            false => String::from_utf8_lossy(value.as_bytes()),
        })
        .collect();
    texts.join(", ")
}

fn urls_of(upstream: &Upstream) -> String {
    let urls = upstream.config.urls.iter().map(ToString::to_string);
    urls.collect::<Vec<_>>().join(", ")
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

/// For people. A row: what it is about, what is the case, and the line of a file that makes it so.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.verdict())?;
        writeln!(f)?;
        let rows = self.rows();
        let placed = rows.iter().filter(|row| row.location.is_some());
        let width = placed
            .map(|row| row.text.chars().count())
            .max()
            .unwrap_or(0);
        for row in rows {
            let mut line = format!("  {:<10}{:<width$}", row.about, row.text);
            if let Some(location) = row.location {
                write!(line, "   {location}")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

struct Row {
    about: &'static str,
    text: String,
    location: Option<String>,
}

impl Row {
    fn new(about: &'static str, text: impl Into<String>, location: Option<String>) -> Row {
        Row {
            about,
            text: text.into(),
            location,
        }
    }
}

impl Explanation {
    fn verdict(&self) -> String {
        let Record { method, path, .. } = &self.record;
        let request = format!("{method} {path}");
        match (
            &self.refusal,
            &self.record.upstream,
            &self.record.service_tier,
        ) {
            (Some(refusal), ..) => format!(
                "{request} is refused: {} {}",
                refusal.cause.status(),
                refusal.cause.code()
            ),
            _ if self.answered_from.is_some() => {
                let upstream = self.answered_from.as_deref().unwrap_or_default();
                format!("{request} is answered here, from the `models` of `{upstream}`")
            }
            (None, Some(upstream), Some(tier)) => {
                format!("{request} is sent to `{upstream}` with service_tier `{tier}`")
            }
            (None, upstream, _) => {
                let upstream = upstream.as_deref().unwrap_or_default();
                format!("{request} is sent to `{upstream}` without a service_tier")
            }
        }
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        if let Some(refusal) = &self.refusal {
            rows.push(Row::new("why", refusal.message.as_ref(), None));
        }
        rows.push(self.key_row());
        rows.extend(self.group.as_ref().map(|group| self.group_row(group)));
        rows.push(Row::new("endpoint", self.record.endpoint, None));
        rows.extend(self.group.as_ref().map(|group| self.tier_row(group)));
        if let Some(tier) = &self.record.service_tier_client {
            rows.push(Row::new("client", format!("asked for `{tier}`"), None));
        }
        let budget = self.budget.iter();
        rows.extend(budget.map(|text| Row::new("budget", text, None)));
        rows.extend(self.bridge_row());
        if self.refusal.is_none() && self.answered_from.is_none() {
            rows.extend(self.group.as_ref().map(|group| self.upstream_row(group)));
            let slow = self.group.as_ref();
            let slow = slow.filter(|group| self.is_slow_on_codex(group));
            rows.extend(slow.map(|_| Row::new("note", CODEX_OVER_HTTP, None)));
            let url = self.outgoing_url.as_deref();
            rows.extend(url.map(|url| Row::new("url", url, None)));
            let edits = self.edits.iter();
            rows.extend(edits.map(|edit| Row::new("header", edit, None)));
            rows.extend(self.body_rows());
        }
        rows
    }

    fn key_row(&self) -> Row {
        let text = match (&self.record.key, &self.group) {
            (Some(name), _) => name.clone(),
            (None, Some(_)) => "not listed; `default_group` takes it".to_owned(),
            (None, None) => "not listed".to_owned(),
        };
        Row::new(
            "key",
            text,
            self.key_location.map(|location| self.policy_at(location)),
        )
    }

    fn group_row(&self, group: &Group) -> Row {
        let text = format!("{}, platform {}", group.name, group.platform.as_str());
        Row::new("group", text, Some(self.policy_at(group.location)))
    }

    fn tier_row(&self, group: &Group) -> Row {
        let force = group.force_place.map(|location| self.policy_at(location));
        let reason = self.record.tier_reason;
        let is_forced = reason == Some(TierReason::GroupForce.as_str());
        let tier = self.record.service_tier.as_deref();
        let text = match group.forced_tier() {
            Some(forced) if self.refusal.is_some() => {
                format!("the group forces `{}`", forced.as_str())
            }
            None if self.refusal.is_some() => "the group forces none".to_owned(),
            Some(forced) if is_forced => self.forced_text(group, forced),
            _ if reason == Some(TierReason::ModelExempt.as_str()) => {
                self.client_text("the force of the group is not for this model")
            }
            _ if reason == Some(TierReason::BudgetExhausted.as_str()) => {
                self.client_text("the budget of the fast tier is spent")
            }
            _ if reason == Some(TierReason::FastModeBeta.as_str()) => {
                let sign = match group.fast_mode_beta {
                    FastModeSignal::Speed => "`speed: \"fast\"`",
                    FastModeSignal::Header | FastModeSignal::Off => "the fast-mode beta",
                };
                let tier = tier.unwrap_or("none");
                return Row::new(
                    "tier",
                    format!("{tier}: the client asks for it by {sign}"),
                    None,
                );
            }
            _ if self.record.endpoint == Endpoint::Other.as_str() => {
                return Row::new("tier", "not touched: this path takes none", None);
            }
            _ => match tier {
                Some(tier) => format!("{tier}: the client names it, and the group forces none"),
                None => "none: neither client nor group names one".to_owned(),
            },
        };
        Row::new("tier", text, force)
    }

    fn forced_text(&self, group: &Group, forced: ForcedTier) -> String {
        let by_model = match group.models {
            ModelRule::All => "",
            _ if !self.conversation => "",
            ModelRule::Except(_) | ModelRule::Only(_) => ", where it is for the model",
        };
        let tier = forced.as_str();
        match &self.record.service_tier {
            _ if self.conversation => format!(
                "{tier} in each `response.create` of the WebSocket: the group forces it{by_model}"
            ),
            Some(tier) => format!("{tier}: the group forces it"),
            None if self.record.request_bytes == 0 => {
                "none: a request without a body carries no tier".to_owned()
            }
            None if forced == ForcedTier::None => {
                "none: the group forces it, and takes every tier away".to_owned()
            }
            None => format!("none: so the upstream is asked for `{tier}`, which the group forces"),
        }
    }

    /// Of a request that goes as it came in spite of the force.
    fn client_text(&self, why: &str) -> String {
        match &self.record.service_tier {
            Some(tier) => format!("{tier}: the client names it, and {why}"),
            None => format!("none: {why}"),
        }
    }

    /// Whether the upstream is said to serve it at another speed than was asked for.
    fn is_slow_on_codex(&self, group: &Group) -> bool {
        group.upstream.kind == UpstreamKind::Codex
            && !self.conversation
            && self.record.service_tier.as_deref() == Some(ForcedTier::Priority.as_str())
    }

    fn bridge_row(&self) -> Option<Row> {
        let between = self.record.bridge?;
        let mut text = between.to_owned();
        if let Some(model) = &self.record.model_upstream {
            let _ = write!(text, ", model `{model}`");
        }
        match self.record.bridge_dropped.as_deref() {
            None | Some("") => {}
            Some(dropped) => {
                let _ = write!(text, "; dropped: {}", dropped.replace(',', ", "));
            }
        }
        Some(Row::new("bridge", text, None))
    }

    fn upstream_row(&self, group: &Group) -> Row {
        let url = self.upstream_url.as_deref().unwrap_or_default();
        let location = group.upstream.location;
        Row::new(
            "upstream",
            format!("{}, {url}", group.upstream.name),
            Some(format!("{}:{location}", self.config_path.display())),
        )
    }

    fn body_rows(&self) -> Vec<Row> {
        let sizes = match &self.body {
            Some(_) if self.record.bridge.is_some() => format!(
                "converted, {} bytes from the client, {} to the upstream",
                self.record.request_bytes, self.record.upstream_request_bytes
            ),
            Some(_) => format!(
                "rewritten, {} bytes from the client, {} to the upstream",
                self.record.request_bytes, self.record.upstream_request_bytes
            ),
            None if self.record.request_bytes == 0 => "none".to_owned(),
            None => format!("{} bytes, sent as they came", self.record.request_bytes),
        };
        let shown = self.body.iter().map(|body| Row::new("", body, None));
        [Row::new("body", sizes, None)]
            .into_iter()
            .chain(shown)
            .collect()
    }

    fn policy_at(&self, location: Location) -> String {
        format!("{}:{location}", self.policy_path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_url_the_path_and_the_query_are_taken() {
        for (given, path) in [
            ("/v1/responses", "/v1/responses"),
            (
                "https://gateway.example/v1/responses?a=b#c",
                "/v1/responses?a=b",
            ),
            ("http://h:8080", "/"),
            ("wss://h/v1/responses", "/v1/responses"),
            ("/a?u=http://x", "/a?u=http://x"),
        ] {
            let taken = without_origin(given);
            assert_eq!(taken.as_deref(), Ok(path), "{given}");
        }
        assert!(without_origin("ftp://h/x").is_err());
    }
}
