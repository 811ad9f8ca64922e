//! What changes when one policy takes the place of another: told to the operator at each reload, and reason to hold one that
//! loses most of its keys.

use std::fmt::Write;

use crate::config::pattern::Pattern;
use crate::config::units::counted;
use crate::config::watch::Review;
use crate::policy::api_key::Key;
use crate::policy::group::{BudgetRule, ForcedTier, ModelRule};
use crate::policy::{Group, Policy};

/// From so many keys on, a policy that loses more than half of them is held.
const HOLD_FROM_KEYS: usize = 10;
/// One of the two [`settings`] that say which tier is forced.
pub(crate) const FORCE_FAST_MODE: &str = "force_fast_mode";
/// The other one.
pub(crate) const FORCE_TIER: &str = "force_tier";
/// Groups whose changes are told one by one.
const MAX_TOLD_GROUPS: usize = 20;

/// Compares a policy that has been loaded with the one in force.
pub fn review(old: &Policy, new: &Policy) -> Review {
    let (before, lost) = (old.key_count(), missing(old, new));
    let loses_most = before >= HOLD_FROM_KEYS && lost * 2 > before;
    Review {
        held: loses_most.then(|| {
            format!(
                "{} would lose more than half of its keys ({lost} of {before})",
                new.path().display()
            )
        }),
        summary: summary(old, new),
    }
}

/// `sha256:…, 3 groups, 12 keys; keys +2 −1, group codex-fast: force_fast_mode false → true`
fn summary(old: &Policy, new: &Policy) -> String {
    let changes = changes(old, new);
    let changes = if changes.is_empty() {
        "nothing changes".to_owned()
    } else {
        changes.join(", ")
    };
    format!(
        "{}, {}, {}; {changes}",
        new.revision(),
        counted(new.groups().len() as u64, "group"),
        counted(new.key_count() as u64, "key")
    )
}

fn changes(old: &Policy, new: &Policy) -> Vec<String> {
    let mut changes = Vec::new();
    changes.extend(keys(old, new));
    let default = |policy: &Policy| {
        let group = policy.default_group();
        group.map_or("null".to_owned(), |group| group.name.to_string())
    };
    if default(old) != default(new) {
        changes.push(format!("default_group {} → {}", default(old), default(new)));
    }
    let told = changes.len() + MAX_TOLD_GROUPS;
    changes.extend(groups(old, new));
    if changes.len() > told {
        let more = changes.len() - told;
        changes.truncate(told);
        changes.push(format!("and {more} more changes of groups"));
    }
    changes
}

/// How many keys of the one policy are not in the other.
fn missing(from: &Policy, other: &Policy) -> usize {
    let keys = from.keys.iter();
    keys.filter(|key| !other.lists_key(&key.digest)).count()
}

/// Counts of keys only: which they are is nobody's business in a log of the system.
fn keys(old: &Policy, new: &Policy) -> Option<String> {
    let (added, removed) = (missing(new, old), missing(old, new));
    let differs = |key: &&Key| {
        // All that lines and decisions take from a key.
        let listed = |policy: &Policy, key: &Key| {
            let group = policy.groups[key.group as usize].name.clone();
            (policy.keys.name(key), group, key.enabled)
        };
        let before = old.keys.find(&key.digest);
        before.is_some_and(|before| listed(old, before) != listed(new, key))
    };
    let changed = new.keys.iter().filter(differs).count();
    let mut told = String::from("keys");
    for (count, sign) in [(added, "+"), (removed, "−")] {
        if count > 0 {
            // A String takes all.
            let _ = write!(told, " {sign}{count}");
        }
    }
    if changed > 0 {
        let _ = write!(told, " ({changed} with another name, group or state)");
    }
    (added + removed + changed > 0).then_some(told)
}

fn groups(old: &Policy, new: &Policy) -> Vec<String> {
    let mut changes = Vec::new();
    for group in new.groups() {
        match old.group(&group.name) {
            None => changes.push(format!("group {} is new", group.name)),
            Some(before) => {
                let (before, after) = (settings(before), settings(group));
                let pairs = before.into_iter().zip(after);
                let differ = pairs.filter(|(before, after)| before != after);
                let value = |value: Option<String>| value.unwrap_or_else(|| "null".to_owned());
                let told: Vec<String> = differ
                    .map(|((name, before), (_, after))| {
                        format!("{name} {} → {}", value(before), value(after))
                    })
                    .collect();
                if !told.is_empty() {
                    changes.push(format!("group {}: {}", group.name, told.join("; ")));
                }
            }
        }
    }
    let gone = old.groups().iter();
    let gone = gone.filter(|group| new.group(&group.name).is_none());
    changes.extend(gone.map(|group| format!("group {} is gone", group.name)));
    changes
}

fn models(rule: &ModelRule) -> String {
    let names = |patterns: &[Pattern]| {
        let names: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
        names.join(", ")
    };
    match rule {
        ModelRule::All => "all".to_owned(),
        ModelRule::Except(patterns) => format!("all except {}", names(patterns)),
        ModelRule::Only(patterns) => format!("only {}", names(patterns)),
    }
}

fn budget(rule: &BudgetRule) -> String {
    let (per, scope, then): (&str, &str, &str) =
        (rule.per.into(), rule.scope.into(), rule.then.into());
    let zone = rule.time_zone.iana_name().unwrap_or("UTC");
    format!("{} USD a {per} ({zone}) by {scope}, then {then}", rule.usd)
}

/// The settings of a group by their names in the file, all that decide what becomes of its requests. None: not set.
pub(crate) fn settings(group: &Group) -> Vec<(&'static str, Option<String>)> {
    let limit = |limit: Option<u64>| limit.map(|limit| limit.to_string());
    let text = |value: &str| Some(value.to_owned());
    // Priority is told by the older name.
    let other_tier = group.force.filter(|tier| *tier != ForcedTier::Priority);
    vec![
        ("platform", text(group.platform.as_str())),
        ("upstream", text(&group.upstream.name)),
        ("enabled", Some(group.enabled.to_string())),
        (
            FORCE_FAST_MODE,
            Some((group.force == Some(ForcedTier::Priority)).to_string()),
        ),
        (FORCE_TIER, other_tier.and_then(|tier| text(tier.as_str()))),
        ("models", Some(models(&group.models))),
        ("on_tier_refused", text(group.on_tier_refused.into())),
        ("fast_mode_beta", text(group.fast_mode_beta.as_str())),
        ("budget", group.budget.as_ref().map(budget)),
        ("batches", Some(group.batches_allowed.to_string())),
        ("max_in_flight", limit(group.max_in_flight)),
        ("max_in_flight_per_key", limit(group.max_in_flight_per_key)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn policy(text: &str) -> Policy {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiergate.yaml");
        let upstream = "policy: policy.yaml\nupstreams: {main: {url: http://u}}\n";
        std::fs::write(&path, upstream).unwrap();
        let (config, _) = Config::load(&path).unwrap();
        let parsed = Policy::parse(&config.policy, text.as_bytes(), &config);
        let Ok((policy, _)) = parsed else {
            panic!("a mistake in {text}");
        };
        policy
    }

    #[test]
    fn a_policy_is_held_where_most_keys_go_however_many_come() {
        let with = |kept: usize, others: usize| {
            let kept = (0..kept).map(|key| format!("  sk-kept-{key}: fast\n"));
            let others = (0..others).map(|key| format!("  sk-other-{key}: fast\n"));
            let keys: String = kept.chain(others).collect();
            policy(&format!(
                "version: 1\ngroups: {{fast: {{platform: openai}}}}\nkeys:\n{keys}"
            ))
        };
        let old = with(10, 0);
        for (new, is_held) in [
            (with(5, 0), false),
            (with(4, 0), true),
            (with(4, 100), true),
            (with(5, 100), false),
        ] {
            assert_eq!(review(&old, &new).held.is_some(), is_held);
        }
        assert!(review(&with(9, 0), &with(1, 0)).held.is_none());
    }

    /// What is told of the keys; of the bill and of who gets it nothing may change in silence.
    #[test]
    fn what_changes_of_a_listed_key_is_counted() {
        const POLICY: &str = "version: 1
groups: {fast: {platform: openai, force_fast_mode: true}, calm: {platform: openai}}
keys:
  sk-a-0123456789: {group: fast, name: alice}
  sk-b-0123456789: {group: fast, name: bob}
  sk-c-0123456789: fast
";
        let old = policy(POLICY);
        for (from, to, told) in [
            ("", "", "nothing changes"),
            ("name: alice", "name: alicia", "1 with another name"),
            ("9: fast", "9: {group: fast, name: carol}", "1 with another"),
            ("9: fast", "9: calm", "1 with another name, group or state"),
            ("bob}", "bob, enabled: false}", "keys (1 with another"),
            (
                "sk-c-0123456789: fast",
                "sk-d-0123456789: {group: fast, name: dora}",
                "keys +1 −1",
            ),
        ] {
            let summary = summary(&old, &policy(&POLICY.replace(from, to)));
            assert!(summary.contains(told), "{to}: {summary}");
            assert!(!summary.contains("sk-"), "{summary}");
        }
        let exchanged = POLICY.replace("alice", "x").replace("bob", "alice");
        let exchanged = summary(&old, &policy(&exchanged.replace("name: x", "name: bob")));
        assert!(exchanged.contains("keys (2 with another"), "{exchanged}");
    }
}
