//! What tokens cost: a table of prices by model, tier and date. Every figure is an exact decimal, in USD per million tokens.
//! A price that is missing makes the cost unknown; it is never taken from another tier.

mod file;

use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::accounting::usage::{MODEL_SEPARATOR, Usage};
use crate::config::pattern::Pattern;

/// The largest price and the most decimals a price may have, and the most tokens of one class that are priced: within these
/// the product of the two, and the sum of five, fit a `Decimal` without rounding (15 + 13 digits; it holds 28).
const MAX_PRICE: u64 = 1_000_000;
const MAX_PRICE_DECIMALS: u32 = 9;
const MAX_TOKENS: u64 = 1_000_000_000_000;

/// Prices are for ten to this power of tokens: a million.
const PRICE_UNIT_EXPONENT: u32 = 6;

/// A price table, as resolved from its file.
#[derive(Debug)]
pub struct Prices {
    /// Of the file: `sha256:` and 12 hex digits.
    revision: String,
    /// In the order of the file: the first that applies wins.
    entries: Vec<Entry>,
}

/// The prices of some models from a day on.
#[derive(Debug)]
struct Entry {
    models: Vec<Pattern>,
    /// The first moment of that day in UTC.
    effective_from: Timestamp,
    /// Input tokens above which the whole request is priced by [`Tier::long`].
    long_context_above: Option<u64>,
    tiers: Vec<Tier>,
}

#[derive(Debug)]
struct Tier {
    /// As written, in lower case. Its other names lead here only where the entry has no tier of that name: see
    /// [`Entry::tier`].
    name: String,
    short: Rates,
    long: Option<Rates>,
}

/// Classes of tokens that have prices of their own: input, cached input, cache writes, cache writes that live for an hour or
/// longer, output.
const CLASSES: usize = 5;

/// USD per million tokens of each class; `None` where no price is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rates([Option<Decimal>; CLASSES]);

impl Prices {
    /// Revision of the price file: `sha256:` and 12 hexadecimal digits of the file.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// What a response cost in USD, without trailing zeros.
    ///
    /// `at` is when the request began, `tier` the tier that is billed: where the table has no tier of that name, `fast` is
    /// priced as `priority` and `standard` as `default`, and where no tier was named, as `default`. `auto`, which asks for what no tier asks for, is priced like none.
    ///
    /// `None` where the table has no such model, tier or class of tokens, where input or output was not counted, and where
    /// the parts of the input exceed the whole.
    pub fn cost(
        &self,
        at: Timestamp,
        model: &str,
        tier: Option<&str>,
        usage: &Usage,
    ) -> Option<Decimal> {
        let tokens = billable(usage)?;
        let entry = self.entry(at, model)?;
        let tier = entry.tier(tier.unwrap_or("default"))?;
        let rates = if entry.is_long(usage) {
            tier.long?
        } else {
            tier.short
        };
        rates.cost(tokens)
    }

    /// Whether some model has a price of the fast tier at that time.
    pub fn has_fast_tier(&self, at: Timestamp) -> bool {
        let entries = self.entries.iter();
        let mut in_force = entries.filter(|entry| entry.effective_from <= at);
        in_force.any(|entry| entry.tier("fast").is_some())
    }

    fn entry(&self, at: Timestamp, model: &str) -> Option<&Entry> {
        // Several have answered, and none of them has the price of all.
        if model.contains(MODEL_SEPARATOR) {
            return None;
        }
        self.entries.iter().find(|entry| {
            let mut models = entry.models.iter();
            entry.effective_from <= at && models.any(|pattern| pattern.matches(model))
        })
    }
}

impl Entry {
    /// The prices of every tier, those for long context too.
    fn rates(&self) -> impl Iterator<Item = &Rates> {
        let tiers = self.tiers.iter();
        tiers.flat_map(|tier| [&tier.short].into_iter().chain(&tier.long))
    }

    /// The tier of that name, else the one that is the same under another name: Anthropic calls OpenAI's `default`
    /// `standard`, newer models answer `fast` where they were asked for `priority`, and to ask for `auto` is to name none.
    fn tier(&self, name: &str) -> Option<&Tier> {
        let named = |name: &str| {
            let mut tiers = self.tiers.iter();
            tiers.find(|tier| tier.name.eq_ignore_ascii_case(name))
        };
        let same = match name.to_ascii_lowercase().as_str() {
            "standard" | "auto" => "default",
            "fast" => "priority",
            _ => return named(name),
        };
        named(name).or_else(|| named(same))
    }

    fn is_long(&self, usage: &Usage) -> bool {
        self.long_context_above
            .is_some_and(|above| usage.input_tokens.is_some_and(|input| input > above))
    }
}

impl Rates {
    /// The price of each class that has one.
    fn all(&self) -> impl Iterator<Item = Decimal> {
        self.0.into_iter().flatten()
    }

    fn output(&self) -> Option<Decimal> {
        let [.., output] = self.0;
        output
    }

    fn cost(&self, tokens: [u64; CLASSES]) -> Option<Decimal> {
        let classes = self.0.into_iter().zip(tokens);
        let mut cost = Decimal::ZERO;
        for (price, tokens) in classes.filter(|(_, tokens)| *tokens > 0) {
            if tokens > MAX_TOKENS {
                return None;
            }
            cost = cost.checked_add(price?.checked_mul(Decimal::from(tokens))?)?;
        }
        // Dividing by moving the decimal point loses nothing.
        cost.set_scale(cost.scale() + PRICE_UNIT_EXPONENT).ok()?;
        Some(cost.normalize())
    }
}

/// The tokens of each class.
fn billable(usage: &Usage) -> Option<[u64; CLASSES]> {
    let cached = usage.cached_input_tokens.unwrap_or(0);
    let written = usage.cache_write_tokens.unwrap_or(0);
    let written_long = usage.cache_write_long_tokens.unwrap_or(0);
    let read = usage.input_tokens?.checked_sub(cached)?;
    Some([
        read.checked_sub(written)?,
        cached,
        written.checked_sub(written_long)?,
        written_long,
        usage.output_tokens?,
    ])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// A table with two prices of one model, long context, a tier of each kind, and gaps.
    const TABLE: &str = r#"
version: 1
prices:
  - models: [new-model]
    effective_from: 2026-08-21
    source: a page
    tiers:
      default: {input: 4, cached_input: 0.4, cache_write: 5, output: 20}
  - models: [new-model]
    effective_from: 2026-07-09
    tiers:
      default: {input: 5, output: 30}
  - models: [long-*, "*-wide"]
    long_context_above: 1000
    tiers:
      default: {input: 2.5, cached_input: 0.25, output: "15", long: {input: 5, output: 22.5}}
      priority: {input: 5, output: 30}
      flex: {output: null}
"#;

    fn table(text: &str) -> Prices {
        Prices::parse(Path::new("prices.yaml"), text.as_bytes()).unwrap()
    }

    fn diagnostics(text: &str) -> Vec<String> {
        let diagnostics = Prices::parse(Path::new("prices.yaml"), text.as_bytes()).unwrap_err();
        diagnostics.iter().map(ToString::to_string).collect()
    }

    fn tokens(input: u64, cached: u64, cache_write: u64, output: u64) -> Usage {
        Usage {
            input_tokens: Some(input),
            cached_input_tokens: Some(cached),
            cache_write_long_tokens: None,
            cache_write_tokens: Some(cache_write),
            output_tokens: Some(output),
            reasoning_tokens: Some(output),
        }
    }

    /// The cost by [`TABLE`], late in 2026.
    fn cost(model: &str, tier: impl Into<Option<&'static str>>, usage: Usage) -> Option<String> {
        let at = "2026-11-01T00:00:00Z".parse().unwrap();
        let cost = table(TABLE).cost(at, model, tier.into(), &usage);
        cost.map(|cost| cost.to_string())
    }

    /// The cost by a table that has these tiers for every model.
    fn cost_by(tiers: &str, tier: &str, usage: Usage) -> Option<String> {
        let text = format!("version: 1\nprices: [{{models: ['*'], tiers: {{{tiers}}}}}]\n");
        let cost = table(&text).cost(Timestamp::UNIX_EPOCH, "m", Some(tier), &usage);
        cost.map(|cost| cost.to_string())
    }

    #[test]
    fn each_class_of_tokens_has_its_price() {
        // 500 × 4 + 3,000 × 0.4 + 40 × 5 + 500 × 20, in millionths
        let told = cost("new-model", "default", tokens(3540, 3000, 40, 500));
        assert_eq!(told.as_deref(), Some("0.0134"));
        let untold = Usage {
            cached_input_tokens: None,
            cache_write_tokens: None,
            ..tokens(1, 0, 0, 0)
        };
        assert_eq!(cost("new-model", None, untold).as_deref(), Some("0.000004"));
        let nothing = tokens(0, 0, 0, 0);
        assert_eq!(cost("new-model", None, nothing).as_deref(), Some("0"));
    }

    #[test]
    fn the_first_entry_whose_day_has_come_decides() {
        let prices = table(TABLE);
        let usage = tokens(1_000_000, 0, 0, 0);
        for (at, usd) in [
            ("2026-07-08T23:59:59.999999Z", None),
            ("2026-07-09T00:00:00Z", Some(5)),
            ("2026-08-20T23:59:59.999999Z", Some(5)),
            ("2026-08-21T01:00:00+02:00", Some(5)),
            ("2026-08-21T00:00:00Z", Some(4)),
        ] {
            let cost = prices.cost(at.parse().unwrap(), "new-model", None, &usage);
            assert_eq!(cost, usd.map(Decimal::from), "{at}");
        }
    }

    #[test]
    fn a_missing_price_is_never_another_price() {
        let (input, output) = (tokens(100, 0, 0, 0), tokens(0, 0, 0, 100));
        assert_eq!(cost("other-model", None, input), None);
        assert_eq!(cost("long-a", "ultrafast", input), None);
        assert_eq!(cost("long-a", "auto", input), cost("long-a", None, input));
        assert_eq!(cost("long-a", "flex", input), None);
        assert_eq!(cost("long-a", "flex", output), None);
        assert_eq!(cost("long-a", "priority", tokens(100, 1, 0, 0)), None);
        assert_eq!(cost("long-a", "priority", input).as_deref(), Some("0.0005"));
        // The first entry that matches decides, also where a later one would have the price.
        assert_eq!(cost("new-model", "priority", input), None);
    }

    #[test]
    fn long_context_reprices_the_whole_request() {
        let cost = |tier, usage| cost("long-a", tier, usage);
        let short = cost(None, tokens(1000, 0, 0, 0));
        assert_eq!(short.as_deref(), Some("0.0025"));
        let long = cost(None, tokens(1001, 0, 0, 2));
        assert_eq!(long.as_deref(), Some("0.00505"));
        assert_eq!(cost(None, tokens(1001, 1001, 0, 0)), None);
        assert_eq!(cost(Some("priority"), tokens(1001, 0, 0, 0)), None);
    }

    #[test]
    fn usage_that_cannot_be_right_has_no_cost() {
        let without_output = Usage {
            output_tokens: None,
            ..tokens(1, 0, 0, 0)
        };
        for usage in [
            tokens(100, 60, 41, 0),
            tokens(0, u64::MAX, u64::MAX, 0),
            without_output,
            Usage::default(),
            tokens(MAX_TOKENS + 1, 0, 0, 0),
        ] {
            assert_eq!(cost("new-model", None, usage), None, "{usage:?}");
        }
    }

    #[test]
    fn tiers_and_models_match_without_regard_to_case_and_fast_is_priority() {
        let input = tokens(100, 0, 0, 0);
        for (model, tier) in [
            ("long-a", "fast"),
            ("LONG-", "Priority"),
            ("extra-Wide", "FAST"),
        ] {
            let told = cost(model, tier, input);
            assert_eq!(told.as_deref(), Some("0.0005"), "{model} {tier}");
        }
        for model in ["long", "wide", "along-b", "x-wider", ""] {
            assert_eq!(cost(model, None, input), None, "{model}");
        }
    }

    #[test]
    fn the_largest_numbers_are_exact() {
        let tiers = "default: {input: 999999.999999999, output: 1000000}";
        let cost = |input, output| cost_by(tiers, "default", tokens(input, 0, 0, output));
        let told = cost(MAX_TOKENS, MAX_TOKENS - 1);
        assert_eq!(told.as_deref(), Some("1999999999998.999"));
        let told = cost(MAX_TOKENS - 1, MAX_TOKENS);
        assert_eq!(told.as_deref(), Some("1999999999998.999000000000001"));
    }

    #[test]
    fn all_mistakes_are_told_with_their_places() {
        let text = r#"
version: 2
prices:
  - models: []
    effective_from: 2026-02-30
    tiers:
      default: {input: -1, cached: 2, output: 1e3}
  - model: [a]
    tiers:
      fast: {input: 1}
      Flex: {input: 0.0000000001, long: {input: 1000001}}
      flex: {input: 1_000}
"#;
        let amount = "expected an amount in USD like `12.5`";
        let most = "a price is at most 1000000 USD per million tokens, with at most 9 decimals";
        assert_eq!(
            diagnostics(text),
            [
                "prices.yaml:2:10: unknown version; this release reads version 1".to_owned(),
                "prices.yaml:4:13: `models` names no model".to_owned(),
                "prices.yaml:5:21: expected a date like `2026-11-01`".to_owned(),
                format!("prices.yaml:7:24: {amount}"),
                "prices.yaml:7:28: unknown key; expected one of `input`, `cached_input`, `cache_write`, `cache_write_long`, `output`, `long`"
                    .to_owned(),
                "prices.yaml:8:5: unknown key `model`; did you mean `models`?".to_owned(),
                format!("prices.yaml:11:21: {most}"),
                "prices.yaml:11:41: `long` never applies without `long_context_above`".to_owned(),
                format!("prices.yaml:11:49: {most}"),
                "prices.yaml:12:7: this tier has its prices above".to_owned(),
                format!("prices.yaml:12:21: {amount}"),
            ]
        );
        assert_eq!(diagnostics("version: 1\nversion: 1\nprices: []\n").len(), 1);
        assert_eq!(diagnostics("{}").len(), 2);
    }

    #[test]
    fn writes_that_live_long_have_a_price_of_their_own_or_none() {
        let written = |write: u64, long: u64| Usage {
            cache_write_long_tokens: Some(long),
            ..tokens(write, 0, write, 0)
        };
        let cost = |more: &str, usage: Usage| {
            let tiers = format!("default: {{input: 1, cache_write: 2{more}, output: 1}}");
            cost_by(&tiers, "default", usage)
        };
        let both = ", cache_write_long: 8";
        assert_eq!(cost(both, written(100, 25)).as_deref(), Some("0.00035"));
        assert_eq!(cost("", written(100, 0)).as_deref(), Some("0.0002"));
        assert_eq!(cost("", written(100, 25)), None);
        assert_eq!(cost(both, written(100, 101)), None);
    }

    #[test]
    fn a_tier_of_another_name_is_the_same_tier_where_the_table_has_none_of_that_name() {
        let cost = |tiers, tier| cost_by(tiers, tier, tokens(1_000_000, 0, 0, 0));
        let openai = "default: {input: 1}, priority: {input: 2}";
        assert_eq!(cost(openai, "standard").as_deref(), Some("1"));
        assert_eq!(cost(openai, "Fast").as_deref(), Some("2"));
        let anthropic = "default: {input: 1}, standard: {input: 3}";
        assert_eq!(cost(anthropic, "standard").as_deref(), Some("3"));
        assert_eq!(cost("standard: {input: 3}", "default"), None);
        assert_eq!(cost(openai, "flex"), None);
    }

    #[test]
    fn the_revision_is_that_of_the_bytes() {
        assert_eq!(
            table("version: 1\nprices: []\n").revision(),
            "sha256:4531c6ae394e"
        );
    }

    #[test]
    fn the_prices_that_are_shipped_can_be_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/prices.yaml");
        let prices = Prices::load(Path::new(path)).unwrap();
        let at = "2026-11-22T00:00:00Z".parse().unwrap();
        let usage = tokens(1_000_000, 0, 0, 1_000_000);
        for (model, tier, usd) in [
            ("gpt-4o-2024-11-20", "priority", Some("21.25")),
            ("gpt-4o-2024-05-13", "priority", Some("35")),
            ("gpt-6-astra", "fast", Some("190")),
            ("gpt-5.5", "priority", None),
        ] {
            let cost = prices.cost(at, model, Some(tier), &usage);
            assert_eq!(cost, usd.map(|usd| usd.parse().unwrap()), "{model} {tier}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn costs_agree_with_whole_numbers(
            input in 0u64..1_000_000_000_000, cached in 0u64..1_000_000, output in 0u64..1_000_000_000_000,
            price in 0u64..1_000_000_000_000, decimals in 0u32..=6,
        ) {
            let price_text = Decimal::new(price as i64, decimals + 6).to_string();
            let rates = format!("{{input: {price_text}, cached_input: 1, output: {price_text}}}");
            prop_assume!(decimals + 6 <= MAX_PRICE_DECIMALS);
            let text = format!("version: 1\nprices: [{{models: ['*'], tiers: {{default: {rates}}}}}]\n");
            let usage = tokens(input.saturating_add(cached).min(MAX_TOKENS), cached, 0, output);
            let plain = usage.input_tokens.unwrap() - cached;
            let units = u128::from(price) * u128::from(plain + output) + u128::from(cached) * 10u128.pow(decimals + 6);
            let expected = Decimal::from_i128_with_scale(units as i128, decimals + 12).normalize();
            prop_assert_eq!(table(&text).cost(Timestamp::UNIX_EPOCH, "m", None, &usage), Some(expected));
        }
    }
}
