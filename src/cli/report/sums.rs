//! What is summed over the requests of one row, and what one line adds to it.

use rust_decimal::Decimal;

use crate::accounting::access_log::line::{Field, Line};
use crate::accounting::prices::Prices;
use crate::accounting::usage::Usage;
use crate::cli::report::group_by::began;

pub(super) const COST_USD: Field = Field::named("cost_usd");
pub(super) const DOWNGRADED: Field = Field::named("downgraded");
pub(super) const MODEL: Field = Field::named("model");
pub(super) const OUTCOME: Field = Field::named("outcome");
pub(super) const SERVICE_TIER: Field = Field::named("service_tier");
pub(super) const SERVICE_TIER_BILLED: Field = Field::named("service_tier_billed");
pub(super) const TIME: Field = Field::named("time");
pub(super) const TIER_BILLED_BY: Field = Field::named("tier_billed_by");
pub(super) const TRANSPORT: Field = Field::named("transport");
pub(super) const TURN: Field = Field::named("turn");

/// Counts of tokens, as the log names them.
const TOKENS: [&str; 6] = [
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cache_write_long_tokens",
];

/// Counts of one line, by [`TOKENS`].
pub(crate) type Counts = [Option<u64>; TOKENS.len()];

/// How lines are read and priced.
pub(crate) struct Reading<'o> {
    /// By [`TOKENS`]; none where the log has no such field.
    tokens: [Option<Field>; TOKENS.len()],
    model_served: Option<Field>,
    /// Prices each request, in the place of the cost that its line holds.
    prices: Option<&'o Prices>,
    /// Has the price of the default tier, with which the cost of priority is compared.
    standard: Option<&'o Prices>,
}

/// What is summed over the requests of one row.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) requests: u64,
    /// Requests that the proxy did not let pass: denied by key, group or path, or rejected for their body.
    pub(super) refused: u64,
    /// Requests whose usage is not known at all.
    pub(super) without_usage: u64,
    /// By [`TOKENS`].
    pub(super) tokens: [u64; TOKENS.len()],
    /// None until a cost is known.
    pub(super) cost: Option<Decimal>,
    /// Requests with usage whose cost is not known, and so not in `cost`.
    pub(super) unpriced: u64,
    /// Requests that were sent on tier priority to an upstream.
    pub(super) priority: u64,
    /// Those of them that the upstream served on another tier.
    pub(super) downgraded: u64,
    /// What requests billed as priority cost above the default tier; none until that is known of one.
    pub(super) premium: Option<Decimal>,
}

/// A sum beyond what a decimal holds exactly.
struct TooLarge;

impl<'o> Reading<'o> {
    pub(crate) fn new(prices: Option<&'o Prices>, premium: Option<&'o Prices>) -> Reading<'o> {
        let field = |name: &str| name.parse::<Field>().ok();
        Reading {
            tokens: TOKENS.map(field),
            model_served: field("model_served"),
            prices,
            standard: premium.or(prices),
        }
    }

    /// The fields that it looks at.
    pub(crate) fn fields(&self) -> impl Iterator<Item = Field> {
        let fixed = [
            COST_USD,
            DOWNGRADED,
            MODEL,
            OUTCOME,
            SERVICE_TIER,
            SERVICE_TIER_BILLED,
            TIER_BILLED_BY,
            TIME,
            TRANSPORT,
            TURN,
        ];
        let optional = self.tokens.into_iter().chain([self.model_served]);
        fixed.into_iter().chain(optional.flatten())
    }

    pub(crate) fn counts(&self, line: &Line<'_>) -> Counts {
        self.tokens
            .map(|field| field.and_then(|field| line.count(field)))
    }

    /// What one line adds.
    pub(super) fn sums(&self, line: &Line<'_>) -> Sums {
        if is_connection(line) {
            return Sums::default();
        }
        let counts = self.counts(line);
        let has_usage = counts.iter().any(Option::is_some);
        let billed = line.text(SERVICE_TIER_BILLED);
        let cost = match self.prices {
            Some(prices) if has_usage => self.price(prices, line, counts, billed.as_deref()),
            Some(_) => None,
            None => line
                .text(COST_USD)
                .and_then(|text| Decimal::from_str_exact(&text).ok()),
        };
        let on_priority = is_priority(line, SERVICE_TIER) && billed.is_some();
        Sums {
            requests: 1,
            refused: u64::from(is_refused(line)),
            without_usage: u64::from(!has_usage),
            tokens: counts.map(Option::unwrap_or_default),
            cost,
            unpriced: u64::from(has_usage && cost.is_none()),
            priority: u64::from(on_priority),
            downgraded: u64::from(on_priority && line.is_true(DOWNGRADED)),
            premium: self.premium(line, counts, cost),
        }
    }

    /// What a request that is billed as priority cost above the default tier.
    fn premium(&self, line: &Line<'_>, counts: Counts, cost: Option<Decimal>) -> Option<Decimal> {
        let standard = self
            .standard
            .filter(|_| is_priority(line, SERVICE_TIER_BILLED))?;
        cost?.checked_sub(self.price(standard, line, counts, Some("default"))?)
    }

    /// What the tokens of a request cost on a tier.
    pub(crate) fn price(
        &self,
        prices: &Prices,
        line: &Line<'_>,
        counts: Counts,
        tier: Option<&str>,
    ) -> Option<Decimal> {
        prices.cost(
            began(line)?,
            &self.priced_model(line)?,
            tier,
            &usage(counts),
        )
    }

    /// The model that served, where the upstream's word decides what is billed; else the one that was asked for.
    fn priced_model<'l>(&self, line: &Line<'l>) -> Option<std::borrow::Cow<'l, str>> {
        let trusted = line.raw(TIER_BILLED_BY) == "\"served\"";
        let served = self.model_served.filter(|_| trusted);
        served
            .and_then(|field| line.text(field))
            .or_else(|| line.text(MODEL))
    }
}

impl Sums {
    pub(super) fn add(&mut self, more: &Sums) {
        self.requests += more.requests;
        self.refused += more.refused;
        self.without_usage += more.without_usage;
        for (sum, count) in self.tokens.iter_mut().zip(more.tokens) {
            *sum = sum.saturating_add(count);
        }
        match sum(self.cost, more.cost) {
            Ok(cost) => self.cost = cost,
            Err(TooLarge) => self.unpriced += more.requests,
        }
        self.unpriced += more.unpriced;
        self.priority += more.priority;
        self.downgraded += more.downgraded;
        self.premium = sum(self.premium, more.premium).unwrap_or(self.premium);
    }

    /// The share of priority requests that were served on another tier.
    pub(super) fn downgrade_rate(&self) -> Option<Decimal> {
        Decimal::from(self.downgraded).checked_div(Decimal::from(self.priority))
    }
}

/// Adds what is known.
fn sum(a: Option<Decimal>, b: Option<Decimal>) -> Result<Option<Decimal>, TooLarge> {
    match (a, b) {
        (Some(a), Some(b)) => a.checked_add(b).map(Some).ok_or(TooLarge),
        _ => Ok(a.or(b)),
    }
}

/// The counts of [`TOKENS`] that prices know.
fn usage(counts: Counts) -> Usage {
    let mut usage = Usage::default();
    let fields = [
        &mut usage.input_tokens,
        &mut usage.cached_input_tokens,
        &mut usage.cache_write_tokens,
        &mut usage.output_tokens,
        &mut usage.reasoning_tokens,
        &mut usage.cache_write_long_tokens,
    ];
    for (field, count) in fields.into_iter().zip(counts) {
        *field = count;
    }
    usage
}

/// `fast` is another word for it.
fn is_priority(line: &Line<'_>, tier: Field) -> bool {
    matches!(line.raw(tier), "\"priority\"" | "\"fast\"")
}

/// Whether the proxy itself refused it.
pub(crate) fn is_refused(line: &Line<'_>) -> bool {
    matches!(line.raw(OUTCOME), "\"denied\"" | "\"rejected\"")
}

/// Whether the line is the one of a WebSocket's connection, beside those of the responses on it.
pub(crate) fn is_connection(line: &Line<'_>) -> bool {
    line.raw(TRANSPORT) == "\"websocket\"" && line.count(TURN) == Some(0)
}
