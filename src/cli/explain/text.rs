//! An explanation for people: the verdict, and a row for each thing that led to it.

use std::fmt::{self, Write};

use super::{Explanation, Record};
use crate::config::UpstreamKind;
use crate::config::diagnostic::Location;
use crate::policy::endpoint::Endpoint;
use crate::policy::file::CODEX_OVER_HTTP;
use crate::policy::group::{FastModeSignal, ForcedTier, ModelRule};
use crate::policy::{Group, TierReason};

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
        let force = group
            .force_location
            .map(|location| self.policy_at(location));
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
