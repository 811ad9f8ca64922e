//! What the policy says of a group, but for its names and limits: the tier, the models, the budget.

use jiff::tz::TimeZone;
use rust_decimal::Decimal;
use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::config::pattern::Pattern;

/// The tier that a group's requests are sent with, whatever the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ForcedTier {
    /// Requests are sent with `priority`.
    Priority,
    /// Requests are sent with `flex`.
    Flex,
    /// Requests are sent with `default`.
    Default,
    /// No tier at all, and no fast mode.
    None,
}

/// The models that a force is for. A request whose body names no model as a string is forced in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModelRule {
    /// All models.
    #[default]
    All,
    /// All but these.
    Except(Vec<Pattern>),
    /// These and no others.
    Only(Vec<Pattern>),
}

/// What is done where an upstream refuses the tier that was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum OnTierRefused {
    /// The client gets the refusal.
    #[default]
    Fail,
    /// The request is sent once more, without a tier.
    RetryWithout,
}

/// By what a client's request to `/v1/messages` asks for fast mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FastModeSignal {
    /// The token in the `anthropic-beta` header.
    #[default]
    Header,
    /// `speed: "fast"` in the body, and not the header.
    Speed,
    /// Nothing.
    Off,
}

/// A budget of the fast tier as a group has it.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetRule {
    /// The most that may be spent in a period, in USD; more than zero.
    pub usd: Decimal,
    /// How long a budget lasts before it begins anew.
    pub per: Period,
    /// Whether the group as a whole has the budget, or each of its keys.
    pub scope: Scope,
    /// What happens to requests for the fast tier when it is used up.
    pub then: AtLimit,
    /// Where days begin.
    pub time_zone: TimeZone,
}

/// How long a budget lasts.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    EnumString,
    IntoStaticStr,
    VariantNames,
)]
#[strum(serialize_all = "snake_case")]
pub enum Period {
    /// A day of the budget's time zone.
    Day,
    /// From Monday.
    Week,
    /// A calendar month of the budget's time zone.
    Month,
}

/// Whose spending is added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Scope {
    /// All keys of the group together.
    Group,
    /// Each key by itself.
    Key,
}

/// What happens to requests for the fast tier when the budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum AtLimit {
    /// They go as they came.
    Standard,
    /// They are answered 429.
    Refuse,
    /// Nothing, but that it is told.
    Alarm,
}

impl ForcedTier {
    /// Its word in the policy.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl FastModeSignal {
    /// Its word in the policy.
    pub fn as_str(self) -> &'static str {
        match self {
            FastModeSignal::Header => "true",
            FastModeSignal::Speed => "speed",
            FastModeSignal::Off => "false",
        }
    }
}
