//! The price table as written: `prices.yaml` as structs of [`Field`]s, and the [`Prices`] that they resolve to, with every
//! mistake and its place.

use std::path::Path;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use rust_decimal::Decimal;
use serde::Deserialize;

use super::{CLASSES, Entry, MAX_PRICE, MAX_PRICE_DECIMALS, MAX_TOKENS, Prices, Rates, Tier};
use crate::codec::service_tier::KNOWN_TIERS;
use crate::config::diagnostic::{Diagnostic, Diagnostics, Location, nearest};
use crate::config::field::{Field, List, Members, Section};
use crate::config::pattern::Pattern;
use crate::config::units::Amount;
use crate::config::yaml;

/// No model's dearest class of tokens costs less than this, in USD per million.
const LEAST_PRICE: Decimal = Decimal::from_parts(1, 0, 0, false, 3);
/// Of all models in a table the dearest output costs more than this, in USD per million.
const LEAST_OUTPUT_PRICE: Decimal = Decimal::from_parts(1, 0, 0, false, 1);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PricesFile<'a> {
    version: Field<i64>,
    #[serde(borrow)]
    prices: Field<List<Section<EntrySection<'a>>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EntrySection<'a> {
    models: Field<List<String>>,
    effective_from: Field<String>,
    /// For people.
    source: Field<String>,
    long_context_above: Field<i64>,
    #[serde(borrow)]
    tiers: Field<Members<'a, Section<TierSection>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TierSection {
    input: Field<Amount>,
    cached_input: Field<Amount>,
    cache_write: Field<Amount>,
    cache_write_long: Field<Amount>,
    output: Field<Amount>,
    long: Field<Section<RatesSection>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RatesSection {
    input: Field<Amount>,
    cached_input: Field<Amount>,
    cache_write: Field<Amount>,
    cache_write_long: Field<Amount>,
    output: Field<Amount>,
}

impl Prices {
    /// Reads a price file.
    ///
    /// # Errors
    /// Every mistake in it. `path` is only for these.
    pub fn load(path: &Path) -> Result<Prices, Vec<Diagnostic>> {
        Prices::load_with_warnings(path).map(|(prices, _)| prices)
    }

    /// As [`Prices::load`], from bytes that have been read already.
    ///
    /// # Errors
    /// Every mistake in them.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Prices, Vec<Diagnostic>> {
        parse(path, bytes).map(|(prices, _)| prices)
    }

    /// A price file and warnings about it.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn load_with_warnings(path: &Path) -> Result<(Prices, Vec<Diagnostic>), Vec<Diagnostic>> {
        parse(
            path,
            &yaml::read(path).map_err(|diagnostic| vec![diagnostic])?,
        )
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<(Prices, Vec<Diagnostic>), Vec<Diagnostic>> {
    let resolver = Resolver {
        errors: Diagnostics::new(path),
        warnings: Diagnostics::warnings(path),
    };
    let root = yaml::parse::<Field<Section<PricesFile<'_>>>>(bytes, &resolver.errors);
    let entries = root.and_then(|root| resolver.file(&root));
    match entries {
        Some(entries) if resolver.errors.is_empty() => {
            let revision = yaml::revision(bytes);
            Ok((Prices { revision, entries }, resolver.warnings.into_vec()))
        }
        _ => Err(resolver.errors.into_vec()),
    }
}

/// Resolves the sections of the file; every mistake is noted and passed over.
struct Resolver {
    errors: Diagnostics,
    warnings: Diagnostics,
}

impl Resolver {
    fn file(&self, root: &Field<Section<PricesFile<'_>>>) -> Option<Vec<Entry>> {
        let file = root.whole_file(&self.errors)?;
        file.check_version(&file.version, root.location());
        let prices = file.required("prices", &file.prices)?;
        let mut entries = Vec::new();
        for item in prices.iter() {
            if let Some(entry) = self.entry(item) {
                self.warn_of_hidden(&entries, &entry, item.location());
                self.warn_of_order(&entry, item.location());
                entries.push((item.location(), entry));
            }
        }
        if prices.is_empty() {
            let message = "there is no price: no request has a cost";
            self.warnings.add(file.prices.location(), message);
        }
        self.warn_of_units(&entries, file.prices.location());
        Some(entries.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Prices are also told by the token or by the thousand.
    fn warn_of_units(&self, entries: &[(Location, Entry)], location: Location) {
        for (location, entry) in entries {
            let most = entry.rates().flat_map(Rates::all).max();
            if most.is_some_and(|most| !most.is_zero() && most < LEAST_PRICE) {
                let message = "these look like prices of one token each; they are meant in USD per million tokens";
                self.warnings.add(*location, message);
            }
        }
        let rates = entries.iter().flat_map(|(_, entry)| entry.rates());
        let most = rates.filter_map(Rates::output).max();
        if most.is_some_and(|most| (LEAST_PRICE..LEAST_OUTPUT_PRICE).contains(&most)) {
            let message = "these look like prices of a thousand tokens each; they are meant in USD per million tokens";
            self.warnings.add(location, message);
        }
    }

    /// Prices that stand in each other's place, mostly.
    fn warn_of_order(&self, entry: &Entry, location: Location) {
        for tier in &entry.tiers {
            let Rates([input, cached_input, ..]) = tier.short;
            if cached_input > input && input.is_some() {
                let message = format!(
                    "`cached_input` of tier `{}` costs more than `input`",
                    tier.name
                );
                self.warnings.add(location, message);
            }
            if tier.short == Rates::default() && tier.long.is_none() {
                let message = format!(
                    "tier `{}` has no price: its requests have no cost",
                    tier.name
                );
                self.warnings.add(location, message);
            }
        }
        let tier = |name: &str| entry.tiers.iter().find(|tier| tier.name == name);
        for (cheap, dear) in [
            ("default", "priority"),
            ("default", "fast"),
            ("flex", "default"),
            ("batch", "default"),
        ] {
            if let (Some(low), Some(high)) = (tier(cheap), tier(dear))
                && low.short.output() > high.short.output()
                && high.short.output().is_some()
            {
                let message = format!("output costs less on tier `{dear}` than on `{cheap}`");
                self.warnings.add(location, message);
            }
        }
    }

    /// An entry, or none after mistakes in it.
    fn entry(&self, item: &Field<Section<EntrySection<'_>>>) -> Option<Entry> {
        let section = item.value(&self.errors)?;
        let given = section.read(item.location(), &self.errors);
        let models = given.required("models", &given.models);
        let models = models.map(|models| self.models(models, given.models.location()));
        let effective_from = self.date(&given.effective_from);
        given.source.optional(&self.errors);
        let long_context_above = given
            .long_context_above
            .integer_or_null(1..=MAX_TOKENS, &self.errors);
        let tiers = given.required("tiers", &given.tiers);
        let has_long = given.long_context_above.is_given();
        let tiers = tiers.map(|tiers| self.tiers(tiers, has_long));
        Some(Entry {
            models: models?,
            effective_from: effective_from?,
            long_context_above,
            tiers: tiers?,
        })
    }

    fn models(&self, models: &List<String>, location: Location) -> Vec<Pattern> {
        if models.is_empty() {
            self.errors.add(location, "`models` names no model");
        }
        models.parse(Pattern::parse, &self.errors)
    }

    /// The first moment of a day in UTC; of all time where no day is given.
    fn date(&self, field: &Field<String>) -> Option<Timestamp> {
        if !field.is_given() {
            return Some(Timestamp::MIN);
        }
        let text = field.value(&self.errors)?;
        let date = text.parse::<Date>().ok();
        let midnight = date.and_then(|date| date.to_zoned(TimeZone::UTC).ok());
        if midnight.is_none() {
            let expected = "expected a date like `2026-11-01`";
            self.errors.add(field.location(), expected);
        }
        midnight.map(|midnight| midnight.timestamp())
    }

    fn tiers(&self, members: &Members<'_, Section<TierSection>>, has_long: bool) -> Vec<Tier> {
        let mut tiers: Vec<Tier> = Vec::new();
        for member in members.unique(&self.errors) {
            let name = member.key.to_ascii_lowercase();
            self.check_tier(&name, &tiers, member.location);
            let Some(section) = member.value.value(&self.errors) else {
                continue;
            };
            let given = section.read(member.location, &self.errors);
            tiers.push(Tier {
                name,
                short: self.rates([
                    &given.input,
                    &given.cached_input,
                    &given.cache_write,
                    &given.cache_write_long,
                    &given.output,
                ]),
                long: self.long(&given.long, has_long),
            });
        }
        tiers
    }

    fn check_tier(&self, name: &str, before: &[Tier], location: Location) {
        if !KNOWN_TIERS.contains(&name) {
            let message = match nearest(name, KNOWN_TIERS.into_iter()) {
                Some(near) => format!(
                    "no upstream is known to serve a tier of this name; did you mean `{near}`?"
                ),
                None => "no upstream is known to serve a tier of this name".to_owned(),
            };
            self.warnings.add(location, message);
        }
        if before.iter().any(|tier| tier.name == name) {
            self.errors.add(location, "this tier has its prices above");
        }
    }

    fn long(&self, field: &Field<Section<RatesSection>>, has_long: bool) -> Option<Rates> {
        let given = field.section(&self.errors)?;
        if !has_long {
            let message = "`long` never applies without `long_context_above`";
            self.errors.add(field.location(), message);
        }
        Some(self.rates([
            &given.input,
            &given.cached_input,
            &given.cache_write,
            &given.cache_write_long,
            &given.output,
        ]))
    }

    fn rates(&self, classes: [&Field<Amount>; CLASSES]) -> Rates {
        Rates(classes.map(|field| self.price(field)))
    }

    fn price(&self, field: &Field<Amount>) -> Option<Decimal> {
        let Amount(price) = *field.optional(&self.errors)?;
        if price > Decimal::from(MAX_PRICE) || price.scale() > MAX_PRICE_DECIMALS {
            let message = format!(
                "a price is at most {MAX_PRICE} USD per million tokens, with at most {MAX_PRICE_DECIMALS} decimals"
            );
            self.errors.add(field.location(), message);
        }
        Some(price)
    }

    /// An entry whose every model is taken by entries above it, whose day comes no later, never decides.
    fn warn_of_hidden(&self, above: &[(Location, Entry)], entry: &Entry, location: Location) {
        let is_taken = |model: &Pattern| {
            let above = above.iter().map(|(_, other)| other);
            let mut earlier = above.filter(|other| other.effective_from <= entry.effective_from);
            earlier.any(|other| other.models.iter().any(|pattern| pattern.covers(model)))
        };
        if !entry.models.is_empty() && entry.models.iter().all(is_taken) {
            self.warnings.add(
                location,
                "this entry never applies: entries above it have all of its models from the same day or an earlier one",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::field::schema::{assert_schema, words_of};

    fn warnings(entries: &str) -> Vec<String> {
        let text = format!("version: 1\nprices:\n{entries}");
        let (_, warnings) = parse(Path::new("p"), text.as_bytes()).unwrap();
        warnings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_entry_that_never_applies_is_warned_of() {
        let later = "  - {models: [gpt-*], effective_from: 2026-02-01, tiers: {}}\n";
        let earlier = "  - {models: [GPT-5, gpt-6*], effective_from: 2026-01-01, tiers: {}}\n";
        assert_eq!(warnings(&format!("{later}{earlier}")), [""; 0]);
        let told = warnings(&format!(
            "{}{later}",
            earlier.replace("GPT-5, gpt-6*", "gp*")
        ));
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("p:4:5: warning: this entry never applies"));
    }

    #[test]
    fn prices_by_the_token_are_warned_of() {
        let entry = |input: &str| {
            let price = format!("{{input: {input}, output: 0}}");
            warnings(&format!(
                "  - {{models: [a], tiers: {{default: {price}}}}}\n"
            ))
        };
        assert!(
            entry("0.00000125")[0].starts_with("p:3:5: warning: these look like prices of one")
        );
        for figure in ["0", "0.001", "1.25"] {
            assert_eq!(entry(figure), [""; 0], "{figure}");
        }
    }

    #[test]
    fn one_entry_by_the_token_is_seen_among_others() {
        let good = "  - {models: [a], tiers: {default: {input: 5, output: 30}}}\n";
        let by_token = "  - {models: [b], tiers: {default: {input: 0.000005, output: 0.00003}}}\n";
        let told = warnings(&format!("{good}{by_token}"));
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("p:4:5: warning: these look like prices of one token"));
    }

    #[test]
    fn prices_by_the_thousand_are_warned_of() {
        let told = |output: &str| {
            warnings(&format!(
                "  - {{models: [a], tiers: {{default: {{input: 0.005, output: {output}}}}}}}\n"
            ))
        };
        assert!(
            told("0.03")[0].starts_with("p:3:3: warning: these look like prices of a thousand")
        );
        assert_eq!(told("0.1"), [""; 0]);
    }

    #[test]
    fn prices_in_each_others_place_are_warned_of() {
        for (tiers, told) in [
            (
                "default: {input: 5, cached_input: 6, output: 30}",
                "`cached_input` of tier `default` costs more than `input`",
            ),
            (
                "default: {output: 30}, priority: {output: 15}",
                "output costs less on tier `priority` than on `default`",
            ),
            (
                "default: {output: 30}, flex: {output: 60}",
                "output costs less on tier `default` than on `flex`",
            ),
            (
                "default: {}",
                "tier `default` has no price: its requests have no cost",
            ),
        ] {
            let all = warnings(&format!("  - {{models: [a], tiers: {{{tiers}}}}}\n"));
            assert_eq!(all, [format!("p:3:5: warning: {told}")], "{tiers}");
        }
        let in_order = "default: {input: 5, cached_input: 5, output: 30}, flex: {output: 30}, priority: {output: 30}";
        assert_eq!(
            warnings(&format!("  - {{models: [a], tiers: {{{in_order}}}}}\n")),
            [""; 0]
        );
        let (_, none) = parse(Path::new("p"), b"version: 1\nprices: []\n").unwrap();
        assert_eq!(
            none[0].to_string(),
            "p:2:9: warning: there is no price: no request has a cost"
        );
    }

    #[test]
    fn a_tier_that_no_upstream_has_is_warned_of() {
        let told =
            warnings("  - {models: [a], tiers: {prioritiy: {input: 1}, flex: {input: 1}}}\n");
        assert_eq!(
            told,
            [
                "p:3:27: warning: no upstream is known to serve a tier of this name; did you mean `priority`?"
            ]
        );
    }

    #[test]
    fn a_table_may_have_every_tier_that_is_known() {
        for tier in KNOWN_TIERS {
            let told = warnings(&format!(
                "  - {{models: [a], tiers: {{{tier}: {{input: 1}}}}}}\n"
            ));
            assert_eq!(told, [""; 0], "{tier}");
        }
        let told = warnings("  - {models: [a], tiers: {priority: {input: 1}, fast: {input: 2}}}\n");
        assert_eq!(told, [""; 0]);
    }

    #[test]
    fn the_prices_that_are_shipped_have_no_warning() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/prices.yaml");
        let (_, warnings) = Prices::load_with_warnings(Path::new(path)).unwrap();
        assert_eq!(warnings, []);
    }

    #[test]
    fn the_schema_for_editors_has_every_setting() {
        let mappings = [
            ("", words_of::<PricesFile<'_>>()),
            ("/definitions/entry", words_of::<EntrySection<'_>>()),
            ("/definitions/tier", words_of::<TierSection>()),
            ("/definitions/rates", words_of::<RatesSection>()),
        ];
        assert_schema("prices.schema.json", &mappings, &[]);
    }
}
