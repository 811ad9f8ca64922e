//! What is summed over the requests of one row, and what one line adds to it.

use std::borrow::Cow;

use rust_decimal::Decimal;

use crate::accounting::access_log::line::{Field, Line};
use crate::accounting::prices::Prices;
use crate::accounting::usage::Usage;
use crate::cli::report::group_by::began;

const BRIDGE: Field = Field::named("bridge");
pub(super) const COST_USD: Field = Field::named("cost_usd");
pub(super) const DOWNGRADED: Field = Field::named("downgraded");
const ENDPOINT: Field = Field::named("endpoint");
const MODEL: Field = Field::named("model");
const MODEL_SERVED: Field = Field::named("model_served");
const MODEL_UPSTREAM: Field = Field::named("model_upstream");
pub(super) const OUTCOME: Field = Field::named("outcome");
const PRICES: Field = Field::named("prices");
pub(super) const SERVICE_TIER: Field = Field::named("service_tier");
pub(super) const SERVICE_TIER_BILLED: Field = Field::named("service_tier_billed");
const SERVICE_TIER_SERVED: Field = Field::named("service_tier_served");
pub(super) const TIME: Field = Field::named("time");
pub(super) const TIER_BILLED_BY: Field = Field::named("tier_billed_by");
pub(super) const TRANSPORT: Field = Field::named("transport");
pub(super) const TURN: Field = Field::named("turn");
pub(super) const USAGE_STATE: Field = Field::named("usage_state");

/// Counts of tokens, as the log names them.
const TOKENS: [Field; 6] = [
    Field::named("input_tokens"),
    Field::named("cached_input_tokens"),
    Field::named("cache_write_tokens"),
    Field::named("output_tokens"),
    Field::named("reasoning_tokens"),
    Field::named("cache_write_long_tokens"),
];

/// Counts of one line, by [`TOKENS`].
pub(crate) type Counts = [Option<u64>; TOKENS.len()];

/// How lines are read and priced.
pub(crate) struct Reading<'o> {
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
    /// Requests whose usage is not known, or only in part.
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
        Reading {
            prices,
            standard: premium.or(prices),
        }
    }

    /// The fields that it looks at.
    pub(crate) fn fields() -> impl Iterator<Item = Field> {
        let fixed = [
            BRIDGE,
            COST_USD,
            DOWNGRADED,
            ENDPOINT,
            MODEL,
            MODEL_SERVED,
            MODEL_UPSTREAM,
            OUTCOME,
            PRICES,
            SERVICE_TIER,
            SERVICE_TIER_BILLED,
            SERVICE_TIER_SERVED,
            TIER_BILLED_BY,
            TIME,
            TRANSPORT,
            TURN,
            USAGE_STATE,
        ];
        fixed.into_iter().chain(TOKENS)
    }

    /// What one line adds.
    pub(super) fn sums(&self, line: &Line<'_>) -> Sums {
        if is_connection(line) {
            return Sums::default();
        }
        let counts = counts(line);
        let has_usage = counts.iter().any(Option::is_some);
        let billed = line.text(SERVICE_TIER_BILLED);
        let priced = priced_tier(line);
        let cost = match self.prices {
            Some(prices) if has_usage => self.price(prices, line, counts, priced.as_deref()),
            Some(_) => None,
            None => told_cost(line),
        };
        let on_priority = is_priority(line, SERVICE_TIER) && billed.is_some();
        Sums {
            requests: 1,
            refused: u64::from(is_refused(line)),
            without_usage: u64::from(!has_usage || is_partial(line)),
            tokens: counts.map(Option::unwrap_or_default),
            cost,
            unpriced: u64::from(has_usage && cost.is_none() && !lacks_count(line, counts)),
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
        let model = self.priced_model(line, counts)?;
        cost(prices, line, &model, counts, tier)
    }

    /// The model that the line was priced by: the one that served, where the upstream is trusted and named one, else the one
    /// that the upstream was asked for.
    pub(crate) fn priced_model<'l>(&self, line: &Line<'l>, counts: Counts) -> Option<Cow<'l, str>> {
        let bridged = Some(MODEL_UPSTREAM).filter(|_| line.raw(BRIDGE) != "null");
        let asked = bridged.and_then(|field| line.text(field));
        let asked = asked.or_else(|| line.text(MODEL));
        let served = line.text(MODEL_SERVED);
        let is_trusted = match (line.raw(TIER_BILLED_BY), line.raw(SERVICE_TIER_SERVED)) {
            ("\"served\"", _) => true,
            // Told no tier, an upstream is billed by what was sent, trusted or not.
            (_, "null") => !self.was_priced_by(line, asked.as_deref(), served.as_deref(), counts),
            _ => false,
        };
        served.filter(|_| is_trusted).or(asked)
    }

    /// Whether the cost in the line shows that it is that of the first model and not of the other: by a file that is at hand.
    fn was_priced_by(
        &self,
        line: &Line<'_>,
        model: Option<&str>,
        other: Option<&str>,
        counts: Counts,
    ) -> bool {
        let (Some(model), Some(other)) = (model, other) else {
            return false;
        };
        let revision = line.text(PRICES);
        let mut files = self.prices.into_iter().chain(self.standard);
        let file = files.find(|file| revision.as_deref() == Some(file.revision()));
        let Some(prices) = file.filter(|_| model != other) else {
            return false;
        };
        let told = told_cost(line);
        let tier = priced_tier(line);
        let would_be = |model| cost(prices, line, model, counts, tier.as_deref());
        told == would_be(model) && told != would_be(other)
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

/// What a line tells of its tokens.
pub(crate) fn counts(line: &Line<'_>) -> Counts {
    TOKENS.map(|field| line.count(field))
}

/// The tier that is billed, by the name that it was served or sent by: there may be a price for `fast` beside that for
/// `priority`.
pub(crate) fn priced_tier<'l>(line: &Line<'l>) -> Option<Cow<'l, str>> {
    let own_name = match line.raw(TIER_BILLED_BY) {
        "\"served\"" => line.text(SERVICE_TIER_SERVED),
        "\"sent\"" => line.text(SERVICE_TIER),
        _ => None,
    };
    own_name.or_else(|| line.text(SERVICE_TIER_BILLED))
}

/// The cost that the line holds.
fn told_cost(line: &Line<'_>) -> Option<Decimal> {
    Decimal::from_str_exact(&line.text(COST_USD)?).ok()
}

/// What the tokens of the line cost by this model and tier.
fn cost(
    prices: &Prices,
    line: &Line<'_>,
    model: &str,
    counts: Counts,
    tier: Option<&str>,
) -> Option<Decimal> {
    prices.cost(began(line)?, model, tier, &usage(line, counts))
}

/// The counts of [`TOKENS`] that prices know.
fn usage(line: &Line<'_>, counts: Counts) -> Usage {
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
    // Embeddings have no output, and none of it costs nothing.
    if line.raw(ENDPOINT) == "\"embeddings\"" {
        usage.output_tokens.get_or_insert(0);
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

/// Whether a response did not tell how much output it made, or of how much input, which no price can make a cost of.
fn lacks_count(line: &Line<'_>, counts: Counts) -> bool {
    let [input, _, _, output, ..] = counts;
    is_partial(line) && (input.is_none() || output.is_none())
}

/// Whether a response was cut before it told all of its usage.
pub(super) fn is_partial(line: &Line<'_>) -> bool {
    line.raw(USAGE_STATE) == "\"partial\""
}
