//! The policy as written: `policy.yaml` as structs of [`Field`]s, and the [`Policy`] that they resolve to, with every
//! mistake and its place. It decides nothing.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use jiff::tz::TimeZone;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use crate::config::diagnostic::{Diagnostic, Diagnostics, Location, check_name, nearest, shown};
use crate::config::field::{Field, List, Member, Members, Section, Text, TextOr, Word};
use crate::config::file::{MAX_IN_FLIGHT, ParsedConfig};
use crate::config::pattern::Pattern;
use crate::config::units::Amount;
use crate::config::{Config, MessagesMode, Upstream, UpstreamKind, yaml};
use crate::policy::api_key::{KeyTable, NewKey, digest};
use crate::policy::endpoint::Endpoint;
use crate::policy::group::{
    AtLimit, BudgetRule, FastModeSignal, ForcedTier, ModelRule, OnTierRefused, Period, Scope,
};
use crate::policy::key_shape::{check_digest, check_key};
use crate::policy::{Group, Platform, Policy};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyFile<'a> {
    version: Field<i64>,
    #[serde(borrow)]
    groups: Field<Members<'a, Section<GroupSection<'a>>>>,
    default_group: Field<Text<'a>>,
    keys: Field<Members<'a, TextOr<'a, KeySection<'a>>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GroupSection<'a> {
    platform: Field<Word<Platform>>,
    force_fast_mode: Field<bool>,
    /// Another spelling of `force_fast_mode`.
    force_openai_fast: Field<bool>,
    force_tier: Field<Word<ForcedTier>>,
    except_models: Field<List<String>>,
    only_models: Field<List<String>>,
    on_tier_refused: Field<Word<OnTierRefused>>,
    fast_mode_beta: Field<SignalWord>,
    budget: Field<Section<BudgetSection>>,
    batches: Field<Word<Batches>>,
    max_in_flight: Field<i64>,
    max_in_flight_per_key: Field<i64>,
    enabled: Field<bool>,
    #[serde(borrow)]
    upstream: Field<Text<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BudgetSection {
    usd: Field<Amount>,
    per: Field<Word<Period>>,
    scope: Field<Word<Scope>>,
    then: Field<Word<AtLimit>>,
    time_zone: Field<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KeySection<'a> {
    #[serde(borrow)]
    group: Field<Text<'a>>,
    name: Field<Text<'a>>,
    enabled: Field<bool>,
}

/// What is known of the ChatGPT backend, whose responses do not tell it.
pub(crate) const CODEX_OVER_HTTP: &str = "Codex is reported to serve requests over HTTP at the standard tier, whatever they ask for; only WebSockets get its fast lane";

/// The one word of `batches`.
#[derive(Clone, Copy, PartialEq, Eq, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
enum Batches {
    Allow,
}

/// `true`, `false` or `speed`.
#[derive(Clone, Copy)]
struct SignalWord(FastModeSignal);

/// The groups' names and their index: also of those with a mistake, so that it is told once and not at each key.
type GroupNames<'n> = HashMap<&'n str, u32>;

/// The names of keys so far.
#[derive(Default)]
struct Names {
    /// By the name in lower case: the first that has it, and how it is written there.
    first: HashMap<String, (Location, String)>,
    /// SHA-256 of each, to be looked up among the keys.
    digests: Vec<([u8; 32], Location)>,
}

/// A policy file as far as it could be read.
struct Rules {
    /// `None` in the place of a group with a mistake.
    groups: Vec<Option<Arc<Group>>>,
    default_group: Option<Arc<Group>>,
    keys: KeyTable,
}

impl Policy {
    /// The policy and warnings about it.
    ///
    /// # Errors
    /// Every mistake of the file.
    pub fn load(
        path: &Path,
        config: &Config,
    ) -> Result<(Policy, Vec<Diagnostic>), Vec<Diagnostic>> {
        let bytes = yaml::read(path).map_err(|diagnostic| vec![diagnostic])?;
        Policy::parse(path, &bytes, config)
    }

    /// [`Policy::load`] for bytes that have been read; `path` is for messages.
    ///
    /// # Errors
    /// Every mistake of the file.
    pub fn parse(
        path: &Path,
        bytes: &[u8],
        config: &Config,
    ) -> Result<(Policy, Vec<Diagnostic>), Vec<Diagnostic>> {
        let resolver = Resolver {
            config,
            errors: Diagnostics::new(path),
            warnings: Diagnostics::warnings(path),
        };
        let root = yaml::parse::<Field<Section<PolicyFile<'_>>>>(bytes, &resolver.errors);
        let rules = root.and_then(|root| resolver.rules(&root));
        match rules {
            Some(rules) if resolver.errors.is_empty() => Ok((
                Policy {
                    path: path.to_owned(),
                    revision: yaml::revision(bytes),
                    // Of rules without a mistake every group is there.
                    groups: rules.groups.into_iter().flatten().collect(),
                    default_group: rules.default_group,
                    keys: rules.keys,
                    tier_paths: config.tier_paths.clone(),
                },
                resolver.warnings.into_vec(),
            )),
            _ => Err(resolver.errors.into_vec()),
        }
    }

    /// The configuration and the policy that it names, with the warnings of both.
    ///
    /// # Errors
    /// Every mistake of both.
    pub fn load_with_config(
        path: &Path,
    ) -> Result<(Config, Policy, Vec<Diagnostic>), Vec<Diagnostic>> {
        Policy::load_with_parsed(ParsedConfig::read(path)?)
    }

    /// [`Policy::load_with_config`] for a configuration that has been read.
    pub(crate) fn load_with_parsed(
        parsed: ParsedConfig,
    ) -> Result<(Config, Policy, Vec<Diagnostic>), Vec<Diagnostic>> {
        // Without an upstream each group of the policy would be one more mistake, and none of its own making.
        if parsed.config.policy.as_os_str().is_empty() || parsed.config.upstreams.is_empty() {
            return Err(parsed.diagnostics);
        }
        let (mut diagnostics, mut warnings) = (parsed.diagnostics, parsed.warnings);
        match Policy::load(&parsed.config.policy, &parsed.config) {
            Ok((policy, more)) if diagnostics.is_empty() => {
                warnings.extend(more);
                Ok((parsed.config, policy, warnings))
            }
            Ok(_) => Err(diagnostics),
            Err(more) => {
                diagnostics.extend(more);
                Err(diagnostics)
            }
        }
    }
}

/// Resolves the sections of the file; every mistake is noted and passed over.
struct Resolver<'m> {
    config: &'m Config,
    errors: Diagnostics,
    warnings: Diagnostics,
}

impl Resolver<'_> {
    fn rules(&self, root: &Field<Section<PolicyFile<'_>>>) -> Option<Rules> {
        let file = root.whole_file(&self.errors)?;
        file.check_version(&file.version, Location::START);
        let groups = file.required("groups", &file.groups);
        let groups = groups.iter().flat_map(|groups| groups.unique(&self.errors));
        let groups: Vec<&Member<'_, _>> = groups.collect();
        let names: GroupNames<'_> = (0..)
            .zip(&groups)
            .map(|(index, group)| (&*group.key, index))
            .collect();
        let groups = groups
            .into_iter()
            .map(|group| self.group(group).map(Arc::new));
        let groups: Vec<Option<Arc<Group>>> = groups.collect();
        let default_group = file.default_group.optional(&self.errors);
        let default_group = default_group
            .and_then(|name| self.group_name(name, file.default_group.location(), &names))
            .and_then(|index| groups[index as usize].clone());
        if let Some(group) = &default_group {
            self.warn_of_default(group, file.default_group.location());
        }
        let keys = file.keys.optional(&self.errors);
        Some(Rules {
            groups,
            default_group,
            keys: keys.map_or_else(KeyTable::default, |keys| self.keys(keys, &names)),
        })
    }

    fn group(&self, member: &Member<'_, Section<GroupSection<'_>>>) -> Option<Group> {
        check_name(&member.key, member.location, &self.errors);
        let section = member.value.value(&self.errors)?;
        let given = section.read(member.location, &self.errors);
        let errors = &self.errors;
        let platform = given.required("platform", &given.platform);
        let (force, force_location) = self.force(&given);
        let most = |field: &Field<i64>| field.integer_or_null(1..=MAX_IN_FLIGHT, errors);
        let group = Group {
            force,
            force_location,
            models: self.models(&given),
            on_tier_refused: given.on_tier_refused.word(OnTierRefused::Fail, errors),
            fast_mode_beta: given
                .fast_mode_beta
                .or(SignalWord(FastModeSignal::Header), errors)
                .0,
            budget: self.budget(&given.budget),
            batches_allowed: given.batches.value(errors).is_some(),
            max_in_flight: most(&given.max_in_flight),
            max_in_flight_per_key: most(&given.max_in_flight_per_key),
            enabled: given.enabled.or(true, errors),
            // Asked for in any case: what is wrong with the two is told at once.
            upstream: self.upstream(&given.upstream, member.location)?,
            name: (&*member.key).into(),
            platform: platform?.0,
            location: member.location,
        };
        self.warn_of(&group, &given);
        Some(group)
    }

    /// The forced tier, and where it is written.
    fn force(&self, given: &GroupSection<'_>) -> (Option<ForcedTier>, Option<Location>) {
        let alias = &given.force_openai_fast;
        if given.force_fast_mode.is_given() && alias.is_given() {
            self.errors.add(
                alias.location(),
                "`force_openai_fast` is another spelling of `force_fast_mode`, which is given too",
            );
        }
        let fast = match given.force_fast_mode.value(&self.errors) {
            Some(fast) => Some((*fast, given.force_fast_mode.location())),
            None => alias
                .value(&self.errors)
                .map(|fast| (*fast, alias.location())),
        };
        let tier = given.force_tier.value(&self.errors).map(|word| word.0);
        if let (Some((fast, _)), Some(tier)) = (fast, tier)
            && fast.then_some(ForcedTier::Priority) != Some(tier)
        {
            self.errors.add(
                given.force_tier.location(),
                "`force_fast_mode: true` is short for `force_tier: priority`; here the two say different things",
            );
        }
        match (tier, fast) {
            (Some(tier), _) => (Some(tier), Some(given.force_tier.location())),
            (None, Some((fast, location))) => {
                (fast.then_some(ForcedTier::Priority), Some(location))
            }
            (None, None) => (None, None),
        }
    }

    fn models(&self, given: &GroupSection<'_>) -> ModelRule {
        let except = self.patterns(&given.except_models);
        let only = self.patterns(&given.only_models);
        match (except, only) {
            (Some(_), Some(_)) => {
                let message = "`except_models` and `only_models` are not given together";
                self.errors.add(given.only_models.location(), message);
                ModelRule::All
            }
            (Some(except), None) => ModelRule::Except(except),
            (None, Some(only)) => ModelRule::Only(only),
            (None, None) => ModelRule::All,
        }
    }

    fn patterns(&self, field: &Field<List<String>>) -> Option<Vec<Pattern>> {
        let list = field.optional(&self.errors)?;
        if list.is_empty() {
            let expected = "expected at least one model, like `gpt-5.5` or `*-mini`";
            self.errors.add(field.location(), expected);
        }
        Some(list.parse(Pattern::parse, &self.errors))
    }

    fn budget(&self, field: &Field<Section<BudgetSection>>) -> Option<BudgetRule> {
        let given = field.section(&self.errors)?;
        let usd = given.required("usd", &given.usd);
        let per = given.required("per", &given.per);
        if usd.is_some_and(|usd| usd.0.is_zero()) {
            let message = "`usd` must be more than zero";
            self.errors.add(given.usd.location(), message);
        }
        let rule = BudgetRule {
            scope: given.scope.word(Scope::Group, &self.errors),
            then: given.then.word(AtLimit::Standard, &self.errors),
            time_zone: self.time_zone(&given.time_zone),
            usd: usd?.0,
            per: per?.0,
        };
        Some(rule)
    }

    fn time_zone(&self, field: &Field<String>) -> TimeZone {
        let Some(name) = field.value(&self.errors) else {
            return TimeZone::UTC;
        };
        TimeZone::get(name).unwrap_or_else(|_| {
            let expected =
                "expected a time zone like `UTC` or `Europe/Berlin`, which this machine knows";
            self.errors.add(field.location(), expected);
            TimeZone::UTC
        })
    }

    fn upstream(&self, field: &Field<Text<'_>>, group: Location) -> Option<Arc<Upstream>> {
        let all = &self.config.upstreams;
        if !field.is_given() && !field.is_null() {
            if all.len() != 1 {
                let message = "`upstream` is missing; it is required where there are several";
                self.errors.add(group, message);
            }
            return all.first().cloned();
        }
        let name = field.value(&self.errors)?;
        let found = self.config.upstream(name).cloned();
        if found.is_none() {
            let known = all.iter().map(|upstream| &*upstream.name);
            self.errors
                .add(field.location(), unknown("upstream", name, known));
        }
        found
    }

    fn warn_of(&self, group: &Group, given: &GroupSection<'_>) {
        let written = if given.force_tier.is_given() {
            "force_tier"
        } else {
            "force_fast_mode"
        };
        if group.force.is_some() && !group.is_forced() {
            let message = format!(
                "`{written}` has no effect on platform `{}`",
                group.platform.as_str()
            );
            self.warnings.add(group.location, message);
        }
        let sends_a_tier = group.is_forced() && group.force != Some(ForcedTier::None);
        if sends_a_tier && group.upstream.messages == MessagesMode::Off {
            let message = "requests of this group to `/v1/messages` are refused: its upstream has `messages: off`";
            self.warnings.add(group.location, message);
        }
        if sends_a_tier && group.upstream.kind == UpstreamKind::Codex {
            self.warnings.add(group.location, CODEX_OVER_HTTP);
        }
        self.warn_of_force_rules(group, given);
        self.warn_of_signal(group, given);
        self.warn_of_in_flight(group, given);
        if given.budget.is_given() {
            self.warn_of_budget(group, given.budget.location());
        }
    }

    /// Settings that say more about a force, where there is none, or none that they could be about.
    fn warn_of_force_rules(&self, group: &Group, given: &GroupSection<'_>) {
        let has_all =
            |models: &[Pattern]| models.iter().any(|model| model.covers(&Pattern::new("*")));
        let (excepts_all, only_all) = match &group.models {
            ModelRule::Except(models) => (has_all(models), false),
            ModelRule::Only(models) => (false, has_all(models)),
            ModelRule::All => (false, false),
        };
        let (except, only) = (&given.except_models, &given.only_models);
        let refused = &given.on_tier_refused;
        let about_force = [
            ("except_models", except.is_given(), except.location()),
            ("only_models", only.is_given(), only.location()),
            (
                "batches",
                given.batches.is_given(),
                given.batches.location(),
            ),
        ];
        if group.force.is_none() {
            for (name, _, location) in about_force.iter().filter(|(_, is_given, _)| *is_given) {
                let message =
                    format!("`{name}` has no effect without `force_fast_mode` or `force_tier`");
                self.warnings.add(*location, message);
            }
            let asked = group.action(Endpoint::Messages, &[], true);
            if refused.is_given() && asked == Ok(None) {
                let message = "`on_tier_refused` has no effect where nothing sets a tier";
                self.warnings.add(refused.location(), message);
            }
            return;
        }
        if excepts_all {
            let message = "`except_models` has every model: the force is for none of them";
            self.warnings.add(except.location(), message);
        }
        if only_all {
            let message = "`only_models` has every model, and has no effect";
            self.warnings.add(only.location(), message);
        }
        if group.force == Some(ForcedTier::None) && refused.is_given() {
            let message =
                "`on_tier_refused` has no effect with `force_tier: none`, which sends no tier";
            self.warnings.add(refused.location(), message);
        }
    }

    /// What a client may ask for is asked on `/v1/messages` of a group whose tier nobody sets.
    fn warn_of_signal(&self, group: &Group, given: &GroupSection<'_>) {
        if !given.fast_mode_beta.is_given() {
            return;
        }
        let why = if group.platform != Platform::OpenAi {
            format!("on platform `{}`", group.platform.as_str())
        } else if group.force.is_some() {
            "in a group whose tier is forced".to_owned()
        } else if group.upstream.messages == MessagesMode::Off {
            "where the upstream has `messages: off`".to_owned()
        } else {
            return;
        };
        let message = format!("`fast_mode_beta` has no effect {why}");
        self.warnings.add(given.fast_mode_beta.location(), message);
    }

    /// Limits that another one is always reached before.
    fn warn_of_in_flight(&self, group: &Group, given: &GroupSection<'_>) {
        let all = self.config.limits.requests_in_flight;
        let limits = [
            ("max_in_flight_per_key", group.max_in_flight_per_key),
            ("max_in_flight", group.max_in_flight),
            ("limits.requests_in_flight", all),
        ];
        let fields = [&given.max_in_flight_per_key, &given.max_in_flight];
        for (at, field) in fields.into_iter().enumerate() {
            let (name, value) = limits[at];
            let lower = |(_, bound): &&(_, Option<u64>)| bound.is_some() && value > *bound;
            for (other, _) in limits[at + 1..].iter().filter(lower) {
                let message = format!("`{name}` is never reached: `{other}` is lower");
                self.warnings.add(field.location(), message);
            }
        }
    }

    fn warn_of_budget(&self, group: &Group, location: Location) {
        let is_never_fast = group.is_forced()
            && group.force != Some(ForcedTier::Priority)
            && group.models == ModelRule::All;
        if is_never_fast {
            self.warnings.add(location, "a budget is of the fast tier, to which this group sends nothing: it is never used up");
        }
        if self.config.state.is_none() {
            self.warnings.add(location, "without `state` in the configuration the budget is counted in memory, and begins anew at each start");
        }
        if self.config.prices.is_none() {
            self.warnings.add(location, "without `prices` in the configuration no request has a cost, and the budget is never used up");
        }
    }

    fn warn_of_default(&self, group: &Group, location: Location) {
        if group.enabled && group.upstream.credential_file.is_some() {
            self.warnings.add(location, "whoever reaches the proxy, with any key, may use the upstream's key: an open relay");
        }
    }

    fn keys(
        &self,
        keys: &Members<'_, TextOr<'_, KeySection<'_>>>,
        groups: &GroupNames<'_>,
    ) -> KeyTable {
        let mut names = Names::default();
        let members = keys.unique(&self.errors);
        let listed = members.filter_map(|member| self.key(member, groups, &mut names));
        let table = KeyTable::new(listed, &self.errors);
        for (name, location) in names.digests {
            if table.find(&name).is_some() {
                self.errors.add(
                    location,
                    "the name of a key is written to the log, and this one is a listed key itself",
                );
            }
        }
        table
    }

    fn key<'n>(
        &'n self,
        member: &'n Member<'_, TextOr<'_, KeySection<'_>>>,
        groups: &GroupNames<'_>,
        names: &mut Names,
    ) -> Option<NewKey<'n>> {
        let digest = self.listed_digest(member);
        let (mut name, mut enabled) = (None, true);
        let group = match member.value.value(&self.errors)? {
            TextOr::Text(group) => self.group_name(group, member.value.location(), groups),
            TextOr::Section(section) => {
                let section = section.read(member.location, &self.errors);
                let given = section.members();
                let group = section.required("group", &given.group);
                enabled = given.enabled.or(true, &self.errors);
                name = self.key_name(&given.name, member);
                self.warn_of_name(name, given.name.location(), names);
                group.and_then(|group| self.group_name(group, given.group.location(), groups))
            }
        };
        Some(NewKey {
            digest: digest?,
            location: member.location,
            group: group?,
            name: name.unwrap_or_default(),
            enabled,
        })
    }

    fn listed_digest<T>(&self, member: &Member<'_, T>) -> Option<[u8; 32]> {
        let key = &*member.key;
        let listed = match key.strip_prefix("sha256:") {
            Some(digits) => check_digest(digits),
            None => check_key(key).map(|()| digest(key.as_bytes())),
        };
        self.errors.note(member.location, listed)
    }

    fn key_name<'n, T>(
        &self,
        field: &'n Field<Text<'_>>,
        member: &Member<'_, T>,
    ) -> Option<&'n str> {
        let name = field.value(&self.errors)?;
        check_name(name, field.location(), &self.errors);
        // Also where the key is none that could be listed.
        if **name == *member.key {
            self.errors.add(
                field.location(),
                "the name of a key is written to the log and cannot be the key itself",
            );
            return None;
        }
        Some(name)
    }

    /// Names that people take for one another, in a bill or in its filter.
    fn warn_of_name(&self, name: Option<&str>, location: Location, names: &mut Names) {
        let Some(name) = name else {
            return;
        };
        names.digests.push((digest(name.as_bytes()), location));
        let entry = names.first.entry(name.to_lowercase());
        let (first, written) = entry.or_insert_with(|| (location, name.to_owned()));
        if *first == location {
            return;
        }
        self.warnings.add_with(location, || match written == name {
            true => format!("the key at {first} has the same name: in the log the two are one"),
            false => format!("the key at {first} has this name in another case"),
        });
    }

    fn group_name(&self, name: &str, location: Location, groups: &GroupNames<'_>) -> Option<u32> {
        let found = groups.get(name).copied();
        if found.is_none() {
            let message = || unknown("group", name, groups.keys().copied());
            self.errors.add_with(location, message);
        }
        found
    }
}

impl<'de> Deserialize<'de> for SignalWord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SignalVisitor)
    }
}

struct SignalVisitor;

impl Visitor<'_> for SignalVisitor {
    type Value = SignalWord;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false or `speed`")
    }

    fn visit_bool<E>(self, by_header: bool) -> Result<SignalWord, E> {
        Ok(SignalWord(if by_header {
            FastModeSignal::Header
        } else {
            FastModeSignal::Off
        }))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<SignalWord, E> {
        match text {
            "speed" => Ok(SignalWord(FastModeSignal::Speed)),
            _ => Err(E::unknown_variant(text, &["true", "false", "speed"])),
        }
    }
}

fn unknown<'k>(what: &str, name: &str, known: impl Iterator<Item = &'k str>) -> String {
    match nearest(name, known) {
        Some(near) => format!("unknown {what} `{name}`; did you mean `{near}`?"),
        None => format!("unknown {what}{}", shown(name)),
    }
}

#[cfg(test)]
mod tests {
    use strum::VariantNames;

    use super::*;
    use crate::config::field::schema::{assert_schema, words_of};

    fn config(more: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiergate.yaml");
        let text = format!("policy: p\nupstreams: {{u: {{url: http://u}}}}\n{more}");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).unwrap().0
    }

    fn group(settings: &str) -> Group {
        let text = format!("version: 1\ngroups: {{g: {{platform: openai, {settings}}}}}\n");
        let parsed = Policy::parse(Path::new("p"), text.as_bytes(), &config(""));
        let (policy, _) = parsed.unwrap_or_else(|told| panic!("{settings}: {told:?}"));
        let group = policy.groups.into_iter().next().unwrap();
        Arc::into_inner(group).unwrap()
    }

    #[test]
    fn a_force_is_written_in_three_ways() {
        let force = |settings| group(settings).force;
        assert_eq!(force(""), None);
        assert_eq!(force("force_fast_mode: false"), None);
        for settings in [
            "force_fast_mode: true",
            "force_openai_fast: true",
            "force_tier: priority",
            "force_tier: priority, force_fast_mode: true",
        ] {
            assert_eq!(force(settings), Some(ForcedTier::Priority), "{settings}");
        }
        assert_eq!(force("force_tier: none"), Some(ForcedTier::None));
        assert_eq!(force("force_tier: flex"), Some(ForcedTier::Flex));
    }

    /// What a body says that names this model.
    fn names(model: &str) -> crate::codec::service_tier::RequestFields {
        let mut observer = crate::codec::service_tier::Observer::new();
        observer.feed(format!(r#"{{"model":"{model}"}}"#).as_bytes());
        observer.finish()
    }

    #[test]
    fn models_are_left_out_or_listed() {
        let rule = group("force_fast_mode: true, except_models: [\"*-mini\"]").models;
        assert!(!rule.exempts(&names("gpt-5.5")) && rule.exempts(&names("GPT-5.5-mini")));
        let rule = group("force_fast_mode: true, only_models: [gpt-5.5*]").models;
        assert!(!rule.exempts(&names("gpt-5.5-mini")) && rule.exempts(&names("gpt-5.6")));
        assert!(!group("").models.exempts(&names("any")));
    }

    #[test]
    fn fast_mode_is_asked_for_by_header_or_speed_or_not_at_all() {
        let signal = |settings| group(settings).fast_mode_beta;
        assert_eq!(signal(""), FastModeSignal::Header);
        assert_eq!(signal("fast_mode_beta: true"), FastModeSignal::Header);
        assert_eq!(signal("fast_mode_beta: speed"), FastModeSignal::Speed);
        assert_eq!(signal("fast_mode_beta: false"), FastModeSignal::Off);
    }

    #[test]
    fn a_budget_is_exact_and_has_a_period() {
        for usd in ["\"50.10\"", "50.10", "50.1"] {
            let budget = group(&format!("budget: {{usd: {usd}, per: week}}")).budget;
            let budget = budget.unwrap();
            assert_eq!(budget.usd, rust_decimal::Decimal::new(501, 1));
            assert_eq!(
                (budget.per, budget.scope, budget.then),
                (Period::Week, Scope::Group, AtLimit::Standard)
            );
        }
        let budget =
            group("budget: {usd: 1, per: day, scope: key, then: alarm, time_zone: Europe/Berlin}");
        let budget = budget.budget.unwrap();
        assert_eq!(budget.time_zone.iana_name(), Some("Europe/Berlin"));
        assert_eq!((budget.scope, budget.then), (Scope::Key, AtLimit::Alarm));
    }

    #[test]
    fn a_budget_that_cannot_count_or_is_forgotten_is_warned_of() {
        let text = "version: 1\ngroups: {g: {platform: openai, budget: {usd: 1, per: day}}}\n";
        let warnings = |more: &str| {
            let parsed = Policy::parse(Path::new("p"), text.as_bytes(), &config(more));
            parsed.unwrap().1.len()
        };
        assert_eq!(warnings(""), 2);
        assert_eq!(warnings("state: s.redb"), 1);
        assert_eq!(warnings("state: s.redb\nprices: prices.yaml"), 0);
    }

    #[test]
    fn the_schema_for_editors_has_every_setting() {
        let mappings = [
            ("", words_of::<PolicyFile<'_>>()),
            ("/definitions/group", words_of::<GroupSection<'_>>()),
            (
                "/definitions/group/properties/budget",
                words_of::<BudgetSection>(),
            ),
            ("/definitions/key", words_of::<KeySection<'_>>()),
        ];
        let of_group = |name: &str| format!("/definitions/group/properties/{name}");
        let of_budget = |name: &str| of_group(&format!("budget/properties/{name}"));
        let enums: [(String, &[&str]); 8] = [
            (of_group("platform"), Platform::VARIANTS),
            (of_group("force_tier"), ForcedTier::VARIANTS),
            (of_group("on_tier_refused"), OnTierRefused::VARIANTS),
            (of_group("fast_mode_beta"), &["speed"]),
            (of_group("batches"), Batches::VARIANTS),
            (of_budget("per"), Period::VARIANTS),
            (of_budget("scope"), Scope::VARIANTS),
            (of_budget("then"), AtLimit::VARIANTS),
        ];
        assert_schema("policy.schema.json", &mappings, &enums);
    }
}
