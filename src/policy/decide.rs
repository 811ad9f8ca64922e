//! What is done to the tier of a request: decided by the group and the head, and where they leave it open, settled by what
//! the body says.

use std::borrow::Cow;

use crate::codec::error::Cause;
use crate::codec::service_tier::{
    Edit, Edits, PRIORITY, RequestFields, Tier, has_no_tier, observed_tier,
};
use crate::config::MessagesMode;
use crate::config::pattern::{Pattern, without_long_context};
use crate::policy::endpoint::{Endpoint, add_models};
use crate::policy::group::{FastModeSignal, ForcedTier, ModelRule, OnTierRefused};
use crate::policy::{ANTHROPIC_BETA, Group, Platform, has_fast_mode_token};

/// What is done to the tier of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierAction {
    /// Why the tier is set, for the access log.
    pub reason: TierReason,
    /// What is done to the body's `service_tier`.
    pub body: Edit,
    /// What is done to the fast-mode token of `anthropic-beta`.
    pub beta_header: BetaHeader,
    /// Whether `"speed": "fast"` is taken out of the body.
    pub remove_fast_speed: bool,
    /// What the body has to say for the action to be taken.
    pub condition: Condition,
}

/// What is done to the fast-mode token in the lines of `anthropic-beta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BetaHeader {
    /// They stay as they came.
    Keep,
    /// It is to be there, once.
    Set,
    /// It is taken away.
    Remove,
}

/// What the fast-mode token of an `anthropic-beta` is to its upstream, where no action sets or removes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientBeta {
    /// It says nothing to it, or there is none.
    #[default]
    Ignored,
    /// There is none, and the body may ask alone: some models take `speed` without it (Anthropic's Python SDK 2.15.0).
    LeftToSpeed,
    /// It asks for the fast tier.
    Asks,
    /// It would ask, and the group says that it does not: it is taken away.
    Removed,
}

impl ClientBeta {
    /// The same with a body that was read: where it has to say that fast mode is on, and does, the token is true.
    pub fn with_body(self, action: Option<TierAction>, facts: &RequestFields) -> Self {
        let goes_by_speed = action.is_some_and(|action| action.condition == Condition::FastSpeed);
        match self {
            Self::Removed if goes_by_speed && facts.fast_speed => Self::Asks,
            other => other,
        }
    }
}

/// What the body of a request has to say for an action to be taken. Where it is not [`Condition::Always`], nothing of the
/// request may be sent before its body was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing: the action is taken whatever the body says.
    Always,
    /// Its model is one that the group's force is for, or cannot be told.
    ModelRule,
    /// `"speed": "fast"`.
    FastSpeed,
}

/// Why the tier is what it is, where the proxy has a say. That a client named a tier itself is not the policy's to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum TierReason {
    /// The group forces a tier.
    GroupForce,
    /// The client asked for fast mode by the `anthropic-beta` header.
    FastModeBeta,
    /// The force is not for this model: the request goes as it came.
    ModelExempt,
    /// The budget of the fast tier is used up: the request goes as it came.
    BudgetExhausted,
}

impl ForcedTier {
    /// The tier that a body is to name, if one.
    pub fn tier(self) -> Option<Tier> {
        match self {
            ForcedTier::Priority => Some(Tier::Priority),
            ForcedTier::Flex => Some(Tier::Flex),
            ForcedTier::Default => Some(Tier::Default),
            ForcedTier::None => None,
        }
    }

    /// The body's part of it.
    fn edit(self) -> Edit {
        self.tier().map_or(Edit::Remove, Edit::Set)
    }

    /// What is done to a body and to the beta header on messages; none where the upstream knows no way to say it. Where another
    /// tier than priority is forced, no other sign of fast mode may stay.
    fn on_messages(self, mode: MessagesMode) -> Option<(Edit, BetaHeader)> {
        use BetaHeader::{Keep, Remove, Set};
        match (self, mode) {
            (ForcedTier::None, _) => Some((Edit::Remove, Remove)),
            (_, MessagesMode::Off) => None,
            // The bridge converts the body, and the tier is set in what comes of it.
            (ForcedTier::Priority, MessagesMode::Tier | MessagesMode::Responses) => {
                Some((self.edit(), Keep))
            }
            (ForcedTier::Priority, MessagesMode::TierAndBeta) => Some((self.edit(), Set)),
            (ForcedTier::Priority, MessagesMode::Beta) => Some((Edit::Remove, Set)),
            // The ordinary speed is had by asking for none.
            (ForcedTier::Default, MessagesMode::Beta) => Some((Edit::Remove, Remove)),
            (ForcedTier::Flex, MessagesMode::Beta) => None,
            (ForcedTier::Flex | ForcedTier::Default, _) => Some((self.edit(), Remove)),
        }
    }
}

impl ModelRule {
    /// Whether the force is not for the model of this body. It is for every body whose model cannot be told as one name.
    pub fn exempts(&self, facts: &RequestFields) -> bool {
        self.exempts_model(facts.sole_model())
    }

    /// Whether the force is for none of these models, of which an upstream may serve any.
    fn exempts_all(&self, models: &[String]) -> bool {
        models.iter().all(|model| {
            // With an escape, parameters or a list in it, or a dot at its end, some upstream reads another name.
            let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"%;,".contains(&byte);
            let model = Some(&**model)
                .filter(|model| model.bytes().all(is_plain))
                .filter(|model| !model.split('/').any(|segment| segment.ends_with('.')));
            self.exempts_model(model)
        })
    }

    /// Whether the force is not for this model; it is where none can be told.
    pub fn exempts_model(&self, model: Option<&str>) -> bool {
        let Some(model) = model else {
            return false;
        };
        // The bridge serves both by the same model.
        let bare = without_long_context(model);
        let is_listed = |patterns: &[Pattern]| {
            [model, bare].map(|model| patterns.iter().any(|pattern| pattern.matches(model)))
        };
        match self {
            ModelRule::All => false,
            ModelRule::Except(patterns) => is_listed(patterns) == [true; 2],
            ModelRule::Only(patterns) => is_listed(patterns) == [false; 2],
        }
    }
}

impl Group {
    /// The tier that each of its generation requests is sent with, if one is forced; [`Group::force`] is what is written.
    pub fn forced_tier(&self) -> Option<ForcedTier> {
        self.force.filter(|_| self.platform == Platform::OpenAi)
    }

    /// Whether the tier of each of its generation requests is set.
    pub fn is_forced(&self) -> bool {
        self.forced_tier().is_some()
    }

    /// The models that this target names for the group's upstream; see [`add_models`].
    pub(crate) fn models_in_target(
        &self,
        path: &str,
        query: &[u8],
        endpoint: Endpoint,
    ) -> Vec<String> {
        let mut models = Vec::new();
        for url in &self.upstream.urls {
            let path = match &*url.prefix {
                "" => Cow::Borrowed(path),
                prefix => Cow::Owned([prefix, path].concat()),
            };
            add_models(&mut models, &path, query, endpoint);
        }
        models
    }

    /// What is done to a request for this endpoint, as far as its head tells, whose target names these models. `Err`: it has to
    /// be forced, and the upstream knows no way.
    pub(crate) fn action(
        &self,
        endpoint: Endpoint,
        models: &[String],
        beta_asked: bool,
    ) -> Result<Option<TierAction>, Cause> {
        if !endpoint.takes_tier() || self.platform != Platform::OpenAi {
            return Ok(None);
        }
        let Some(forced) = self.force else {
            return Ok(self.asked_action(endpoint, beta_asked));
        };
        let condition = match self.models {
            ModelRule::All => Condition::Always,
            ModelRule::Except(_) | ModelRule::Only(_) if self.models.exempts_all(models) => {
                Condition::ModelRule
            }
            ModelRule::Except(_) | ModelRule::Only(_) => Condition::Always,
        };
        let reason = TierReason::GroupForce;
        let action = self.set(forced, endpoint, reason, condition);
        action.map(Some).ok_or(Cause::MessagesNotForced)
    }

    /// What a fast-mode token that nothing was decided about is to the upstream: the client's own (`beta_asked`: there is
    /// one), or one of the upstream's settings, which replaces it.
    pub(crate) fn client_beta(&self, endpoint: Endpoint, beta_asked: bool) -> ClientBeta {
        let is_read = matches!(
            self.upstream.messages,
            MessagesMode::Beta | MessagesMode::TierAndBeta
        );
        let edits = &self.upstream.headers;
        let mut set = edits.set.iter().filter(|(name, _)| *name == ANTHROPIC_BETA);
        let is_sent = match set.next() {
            Some((_, value)) => has_fast_mode_token(value),
            None => beta_asked && !edits.remove.contains(&ANTHROPIC_BETA),
        };
        let is_openai = self.platform == Platform::OpenAi;
        match (self.force, self.fast_mode_beta) {
            _ if !(is_read && endpoint == Endpoint::Messages) => ClientBeta::Ignored,
            (_, FastModeSignal::Header) if !is_sent => ClientBeta::LeftToSpeed,
            _ if !is_sent => ClientBeta::Ignored,
            (None, FastModeSignal::Speed | FastModeSignal::Off) if is_openai => ClientBeta::Removed,
            _ => ClientBeta::Asks,
        }
    }

    /// What is done where nothing is forced and the client may ask.
    fn asked_action(&self, endpoint: Endpoint, beta_asked: bool) -> Option<TierAction> {
        let condition = match self.fast_mode_beta {
            FastModeSignal::Header if beta_asked => Condition::Always,
            FastModeSignal::Speed => Condition::FastSpeed,
            FastModeSignal::Header | FastModeSignal::Off => return None,
        };
        if endpoint != Endpoint::Messages {
            return None;
        }
        let reason = TierReason::FastModeBeta;
        self.set(ForcedTier::Priority, endpoint, reason, condition)
    }

    fn set(
        &self,
        tier: ForcedTier,
        endpoint: Endpoint,
        reason: TierReason,
        condition: Condition,
    ) -> Option<TierAction> {
        let is_fast = tier == ForcedTier::Priority;
        let (body, beta_header) = match endpoint {
            Endpoint::Messages => tier.on_messages(self.upstream.messages)?,
            _ if is_fast => (tier.edit(), BetaHeader::Keep),
            _ => (tier.edit(), BetaHeader::Remove),
        };
        Some(TierAction {
            reason,
            body,
            beta_header,
            remove_fast_speed: !is_fast,
            condition,
        })
    }

    /// Whether a request that this was done to is sent once more without a tier, should its upstream refuse the tier.
    pub fn retries_without_tier(&self, action: TierAction) -> bool {
        self.on_tier_refused == OnTierRefused::RetryWithout && action.sets_tier()
    }

    /// The action on a request whose whole body said this. None: the request goes as it came, as if nothing had been decided.
    pub fn settle(&self, action: TierAction, facts: &RequestFields) -> Option<TierAction> {
        let settled = TierAction {
            condition: Condition::Always,
            ..action
        };
        match action.condition {
            Condition::FastSpeed if !facts.fast_speed => None,
            Condition::ModelRule if self.models.exempts(facts) => {
                Some(TierAction::none(TierReason::ModelExempt))
            }
            _ => Some(settled),
        }
    }
}

impl TierAction {
    /// Nothing is done, and this is why.
    pub const fn none(reason: TierReason) -> TierAction {
        TierAction {
            reason,
            body: Edit::Keep,
            beta_header: BetaHeader::Keep,
            remove_fast_speed: false,
            condition: Condition::Always,
        }
    }

    /// Whether it can be done to a body that says this.
    ///
    /// # Errors
    /// Where the tier is that of another place in the body than is looked at.
    pub fn check_place(&self, endpoint: Endpoint, facts: &RequestFields) -> Result<(), Cause> {
        match endpoint == Endpoint::Extra && facts.names_agent && self.changes() {
            true => Err(Cause::TierNotForced),
            false => Ok(()),
        }
    }

    /// Whether the request is changed at all.
    pub fn changes(&self) -> bool {
        *self != TierAction::none(self.reason)
    }

    /// Whether it asks for the fast tier, which budgets are about.
    pub fn asks_for_priority(&self) -> bool {
        self.body == Edit::Set(Tier::Priority) || self.beta_header == BetaHeader::Set
    }

    /// Whether it makes the request ask for a tier, which an upstream may refuse.
    pub fn sets_tier(&self) -> bool {
        matches!(self.body, Edit::Set(_)) || self.beta_header == BetaHeader::Set
    }

    /// What is done to the request instead where its upstream has refused the tier: it asks for none.
    pub fn without_tier(self) -> TierAction {
        TierAction {
            body: Edit::Remove,
            beta_header: BetaHeader::Remove,
            remove_fast_speed: true,
            ..self
        }
    }

    /// What is done to the body; `request_usage` where a chat stream is to tell its usage.
    pub fn edits(&self, request_usage: bool) -> Edits {
        Edits {
            tier: self.body,
            remove_fast_speed: self.remove_fast_speed,
            request_usage,
        }
    }

    /// The tier that the headers ask for.
    pub fn tier_in_header(&self) -> Option<&'static str> {
        (self.beta_header == BetaHeader::Set).then_some(PRIORITY)
    }

    /// The tier in a body as it leaves, read from its bytes.
    ///
    /// # Errors
    /// Where it is not what was to be done: such a body must not be sent. `json_depth` is the limit that it was read under;
    /// `is_message`: of a WebSocket.
    pub fn outgoing_tier(
        &self,
        bytes: &[u8],
        json_depth: usize,
        is_message: bool,
    ) -> Result<Option<&'static str>, Cause> {
        let found = observed_tier(bytes);
        let holds = match self.body {
            Edit::Keep => true,
            Edit::Set(tier) => found == Some(tier.as_str()),
            // Where the header asks for the tier, one that is left in the body does no harm.
            Edit::Remove => {
                self.beta_header == BetaHeader::Set || {
                    has_no_tier(bytes, json_depth, is_message)
                }
            }
        };
        holds.then_some(found).ok_or(Cause::Internal)
    }
}

impl TierReason {
    /// The word for it in the access log.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::service_tier::Observer;

    fn facts(body: &str) -> RequestFields {
        let mut observer = Observer::new();
        observer.feed(body.as_bytes());
        observer.finish()
    }

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::new(text)).collect()
    }

    #[test]
    fn a_model_is_exempt_where_the_rule_says_so_and_only_then() {
        let except = ModelRule::Except(patterns(&["*-mini", "o9"]));
        let only = ModelRule::Only(patterns(&["gpt-5.5*"]));
        for (model, by_except, by_only) in [
            ("gpt-5.5", false, false),
            ("gpt-5.5-MINI", true, false),
            ("O9", true, true),
            ("o9x", false, true),
            ("gpt-5.5[1m]", false, false),
            ("o9[1m]", false, true),
            ("gpt-mini[1m]", false, true),
        ] {
            let facts = facts(&format!(r#"{{"model":"{model}"}}"#));
            assert!(!ModelRule::All.exempts(&facts));
            assert_eq!(except.exempts(&facts), by_except, "{model}");
            assert_eq!(only.exempts(&facts), by_only, "{model}");
        }
    }

    #[test]
    fn a_body_whose_model_may_be_read_in_two_ways_is_never_exempt() {
        let except = ModelRule::Except(patterns(&["*"]));
        let only = ModelRule::Only(Vec::new());
        for body in [
            r#"{}"#,
            r#"{"model":null}"#,
            r#"{"model":5}"#,
            r#"{"model":["a"]}"#,
            r#"{"model":{"model":"a"}}"#,
            r#"{"model":"a","model":"a"}"#,
            r#"{"model":"a","Model":"b"}"#,
            r#"{"MODEL":"b","model":"a"}"#,
            r#"{"mo\u0044el":"a"}"#,
            r#"{"Model":"a"}"#,
            r#"{"model":"a "}"#,
            r#"{"model":"a\u0000"}"#,
            r#"{"model":"b,a"}"#,
            r#"{"model":"\ud800a"}"#,
            r#"{"model":"é"}"#,
            r#"{"model":"a","models":["b"]}"#,
            r#"{"model":"a","Model\u017f":"b"}"#,
            r#"{"fallbacks":[{"model":"b"}],"model":"a"}"#,
            r#"{"model":"a","context_window_fallbacks":[{"a":["b"]}]}"#,
            r#"{"content_policy_fallbac\u212as":{},"model":"a"}"#,
        ] {
            let facts = facts(body);
            assert!(!except.exempts(&facts) && !only.exempts(&facts), "{body}");
        }
        let long = facts(&format!(r#"{{"model":"{}"}}"#, "a".repeat(257)));
        assert!(!except.exempts(&long) && !only.exempts(&long));
        assert!(except.exempts(&facts(r#"{"m\u006fdel":"\u0061"}"#)));
        assert!(except.exempts(&facts(r#"{"model":"a","models":null,"fallback":"b"}"#)));
    }

    #[test]
    fn what_leaves_is_held_against_what_was_to_be_done() {
        let action = |body, beta_header| TierAction {
            body,
            beta_header,
            ..TierAction::none(TierReason::GroupForce)
        };
        let outgoing =
            |action: TierAction, body: &str| action.outgoing_tier(body.as_bytes(), 10, true);
        for tier in Tier::ALL {
            let set = action(Edit::Set(tier), BetaHeader::Keep);
            for other in Tier::ALL {
                let body = format!(r#"{{"service_tier":"{}"}}"#, other.as_str());
                let found = outgoing(set, &body);
                assert_eq!(found.is_ok(), tier == other, "{body}");
                if tier == other {
                    assert_eq!(found, Ok(Some(tier.as_str())));
                }
            }
        }
        let remove = action(Edit::Remove, BetaHeader::Remove);
        assert_eq!(outgoing(remove, r#"{"a":1}"#), Ok(None));
        for body in [
            r#"{"a":1,"Service_Tier":"x"}"#,
            r#"{"response":{"service_tier":"x"}}"#,
            r#"{"a":"#,
        ] {
            assert_eq!(outgoing(remove, body), Err(Cause::Internal), "{body}");
        }
    }
}
