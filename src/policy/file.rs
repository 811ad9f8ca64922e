//! The policy as written: reads `policy.yaml` into the parts of a [`Policy`](crate::policy::Policy), with every mistake
//! and its place. It decides nothing.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::diagnostic::{Mistakes, Place, nearest, shown};
use crate::config::file::{MAX_IN_FLIGHT, check_name};
use crate::config::yaml::{Entry, Node};
use crate::config::{Config, MessagesMode, Upstream};
use crate::policy::api_key::{KeyTable, NewKey, digest, parse_digest};
use crate::policy::{Group, Platform};

/// A policy file as far as it could be read.
pub(crate) struct Rules {
    /// None in the place of a group with a mistake.
    pub groups: Vec<Option<Arc<Group>>>,
    pub default_group: Option<Arc<Group>>,
    pub keys: KeyTable,
}

/// Reads the sections of the file; every mistake is noted and passed over.
pub(crate) struct Reader<'m> {
    pub config: &'m Config,
    pub mistakes: &'m Mistakes,
    pub warnings: &'m Mistakes,
}

/// The groups' names and their index: also of those with a mistake, so that it is told once and not at each key.
type GroupNames<'n> = HashMap<&'n str, u32>;

impl Reader<'_> {
    pub(crate) fn rules(&self, root: &Node<'_>) -> Rules {
        let mut fields = root.fields(root.place, self.mistakes);
        if let Some(node) = fields.required("version") {
            self.check_version(node);
        }
        let entries = fields
            .required("groups")
            .map_or(&[][..], |node| node.entries(self.mistakes));
        let names: GroupNames<'_> = (0..)
            .zip(entries)
            .map(|(index, entry)| (&*entry.key, index))
            .collect();
        let groups: Vec<_> = entries
            .iter()
            .map(|entry| self.group(entry).map(Arc::new))
            .collect();
        let default_group = fields
            .optional("default_group")
            .and_then(|node| self.group_name(node, &names));
        let rules = Rules {
            default_group: default_group.and_then(|index| groups[index as usize].clone()),
            groups,
            keys: fields
                .optional("keys")
                .map_or_else(KeyTable::default, |node| self.keys(node, &names)),
        };
        fields.finish();
        rules
    }

    fn check_version(&self, node: &Node<'_>) {
        if node
            .integer(0..=u64::MAX, self.mistakes)
            .is_some_and(|version| version != 1)
        {
            self.mistakes
                .add(node.place, "unknown version; this release reads version 1");
        }
    }

    fn group(&self, entry: &Entry<'_>) -> Option<Group> {
        check_name(&entry.key, entry.place, self.mistakes);
        let mut fields = entry.value.fields(entry.place, self.mistakes);
        let platform = fields
            .required("platform")
            .and_then(|node| node.choice(&Platform::WORDS, self.mistakes));
        let (force_fast_mode, force_place) = self.force_fast_mode(
            fields.take_entry("force_fast_mode"),
            fields.take_entry("force_openai_fast"),
        );
        let fast_mode_beta = fields.boolean("fast_mode_beta", true);
        let batches_allowed = fields.choice("batches", &[("allow", true)], false);
        let max_in_flight = fields
            .optional("max_in_flight")
            .and_then(|node| node.integer(1..=MAX_IN_FLIGHT, self.mistakes));
        let max_in_flight_per_key = fields
            .optional("max_in_flight_per_key")
            .and_then(|node| node.integer(1..=MAX_IN_FLIGHT, self.mistakes));
        let enabled = fields.boolean("enabled", true);
        let upstream = self.upstream(fields.take("upstream"), entry.place);
        fields.finish();
        let group = Group {
            name: (&*entry.key).into(),
            platform: platform?,
            force_fast_mode,
            fast_mode_beta,
            batches_allowed,
            max_in_flight,
            max_in_flight_per_key,
            enabled,
            upstream: upstream?,
            place: entry.place,
            force_place,
        };
        self.warn_of(&group);
        Some(group)
    }

    fn force_fast_mode(
        &self,
        entry: Option<&Entry<'_>>,
        alias: Option<&Entry<'_>>,
    ) -> (bool, Option<Place>) {
        if let (Some(_), Some(alias)) = (entry, alias) {
            self.mistakes.add(
                alias.place,
                "`force_openai_fast` is another spelling of `force_fast_mode`, which is given too",
            );
        }
        match entry.or(alias) {
            Some(entry) => (
                entry.value.boolean(self.mistakes).unwrap_or(false),
                Some(entry.place),
            ),
            None => (false, None),
        }
    }

    fn upstream(&self, node: Option<&Node<'_>>, group: Place) -> Option<Arc<Upstream>> {
        let all = &self.config.upstreams;
        let Some(node) = node else {
            if all.len() != 1 {
                let message = "`upstream` is missing; it is required where there are several";
                self.mistakes.add(group, message);
            }
            return all.first().cloned();
        };
        let name = node.string(self.mistakes)?;
        let found = self.config.upstream(name).cloned();
        if found.is_none() {
            let known = all.iter().map(|upstream| &*upstream.name);
            self.mistakes
                .add(node.place, unknown("upstream", name, known));
        }
        found
    }

    fn warn_of(&self, group: &Group) {
        if group.force_fast_mode && !group.is_forced() {
            let message = format!(
                "`force_fast_mode` has no effect on platform `{}`",
                group.platform.as_str()
            );
            self.warnings.add(group.place, message);
        }
        if group.is_forced() && group.upstream.messages == MessagesMode::Off {
            let message = "requests of this group to `/v1/messages` are refused: its upstream has `messages: off`";
            self.warnings.add(group.place, message);
        }
    }

    fn keys(&self, node: &Node<'_>, groups: &GroupNames<'_>) -> KeyTable {
        let entries = node.entries(self.mistakes);
        KeyTable::new(
            entries.iter().filter_map(|entry| self.key(entry, groups)),
            self.mistakes,
        )
    }

    fn key<'n>(&'n self, entry: &'n Entry<'_>, groups: &GroupNames<'_>) -> Option<NewKey<'n>> {
        let digest = self.listed_digest(entry);
        let (mut name, mut enabled) = (None, true);
        let group = if entry.value.is_mapping() {
            let mut fields = entry.value.fields(entry.place, self.mistakes);
            let group = fields
                .required("group")
                .and_then(|node| self.group_name(node, groups));
            name = fields
                .take("name")
                .and_then(|node| self.key_name(node, entry));
            enabled = fields.boolean("enabled", true);
            fields.finish();
            group
        } else {
            self.group_name(&entry.value, groups)
        };
        Some(NewKey {
            digest: digest?,
            place: entry.place,
            group: group?,
            name: name.unwrap_or_default(),
            enabled,
        })
    }

    fn listed_digest(&self, entry: &Entry<'_>) -> Option<[u8; 32]> {
        let key = &*entry.key;
        if let Some(digits) = key.strip_prefix("sha256:") {
            let digest = parse_digest(digits);
            if digest.is_none() {
                self.mistakes
                    .add(entry.place, "expected `sha256:` and 64 hexadecimal digits");
            }
            return digest;
        }
        if key.is_empty() || key.trim() != key {
            self.mistakes.add(
                entry.place,
                "an API key is not empty and does not begin or end with white space",
            );
            return None;
        }
        Some(digest(key.as_bytes()))
    }

    fn key_name<'n>(&self, node: &'n Node<'_>, entry: &Entry<'_>) -> Option<&'n str> {
        let name = node.string(self.mistakes)?;
        check_name(name, node.place, self.mistakes);
        let listed = entry.key.strip_prefix("sha256:").and_then(parse_digest);
        if name == entry.key || listed == Some(digest(name.as_bytes())) {
            self.mistakes.add(
                node.place,
                "the name of a key is written to the log and cannot be the key itself",
            );
        }
        Some(name)
    }

    fn group_name(&self, node: &Node<'_>, groups: &GroupNames<'_>) -> Option<u32> {
        let name = node.string(self.mistakes)?;
        let found = groups.get(name).copied();
        if found.is_none() {
            let message = || unknown("group", name, groups.keys().copied());
            self.mistakes.add_with(node.place, message);
        }
        found
    }
}

fn unknown<'k>(what: &str, name: &str, known: impl Iterator<Item = &'k str>) -> String {
    match nearest(name, known) {
        Some(near) => format!("unknown {what} `{name}`; did you mean `{near}`?"),
        None => format!("unknown {what}{}", shown(name)),
    }
}
