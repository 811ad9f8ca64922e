//! `tiergate probe`: what an upstream makes of the tier that it is asked for. A few small requests go through the proxy as it
//! is, and its access log tells what was sent and what was served. The upstream may also be another proxy of this kind that
//! runs: then they show what a client of that one gets.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::embedded::{self, post, websocket_request};
use crate::cli::report::table::{Cell, Table};
use crate::config::{self, Config, MessagesMode, ServedTier, UpstreamKind, Url};
use crate::policy::api_key::digest;
use crate::policy::file::CODEX_OVER_HTTP;
use crate::policy::{Group, Platform, Policy, hash_key};
use crate::server::Server;
use crate::state::StartError;

/// For one answer; the requests ask for a few words only.
const PATIENCE: Duration = Duration::from_secs(120);
/// The least that the Responses API takes.
const MAX_TOKENS: u64 = 16;
const QUESTION: &str = "Say ok.";
const COLUMNS: [&str; 8] = [
    "group", "upstream", "asked", "sent", "served", "status", "verdict", "why",
];

/// What is to be sent.
#[derive(Args)]
pub struct Options {
    /// The API key to ask with; `-` reads it from stdin. The upstream gets it, unless it has a `credential_file`.
    #[arg(long, value_name = "KEY|-")]
    pub key: String,
    /// Only this group's upstream.
    #[arg(long, value_name = "NAME", conflicts_with = "through")]
    pub group: Option<String>,
    /// Ask the tiergate that runs at this URL, as a client with this key would, and not the upstreams. The policy says whether
    /// it has to force the tier for the key.
    #[arg(long, value_name = "URL", value_parser = Url::parse)]
    pub through: Option<Url>,
    /// The model to ask.
    #[arg(long)]
    pub model: String,
}

/// One way to ask.
struct Question {
    title: &'static str,
    path: &'static str,
    body: Value,
    way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Http,
    WebSocket,
}

/// What became of the tier.
enum Verdict {
    Honoured,
    /// It was answered on another one.
    Stripped,
    Rejected,
    CannotTell(&'static str),
}

/// What came of the questions.
pub struct Findings {
    pub table: Table,
    /// A tier was not honoured, or an upstream gave no answer, or none but errors.
    pub failed: bool,
    /// What the answers do not tell.
    pub notes: Vec<String>,
}

/// Asks the upstream of every group that can have a tier, or a running proxy. Each question costs what its tokens cost.
///
/// # Errors
/// Where no proxy can be run, or there is no such group.
pub fn run(config: &Config, policy: &Policy, options: &Options) -> Result<Findings, StartError> {
    let groups = match options.through {
        Some(_) => vec![group_of(policy, &options.key)?],
        None => chosen(policy, options.group.as_deref())?,
    };
    let on_codex = groups
        .iter()
        .filter(|group| group.upstream.kind == UpstreamKind::Codex);
    let notes = on_codex.map(|group| format!("group {}: {CODEX_OVER_HTTP}", group.name));
    let notes = notes.collect();
    let (mut rows, mut failed) = (Vec::new(), false);
    for group in groups {
        let questions = questions(options, group);
        let lines = ask(config, group, options, &questions)?;
        let answered = |line: &Value| {
            line["upstream_status"]
                .as_u64()
                .is_some_and(|status| status < 400)
        };
        failed |= lines.len() < questions.len() || !lines.iter().any(answered);
        for (question, line) in questions.iter().zip(lines) {
            let verdict = Verdict::of(&line, question.way, group.upstream.served_tier);
            failed |= verdict.is_failure(&line);
            rows.push(row(group, question, &line, &verdict));
        }
    }
    let table = Table {
        columns: COLUMNS.map(str::to_owned).to_vec(),
        rows,
        total: None,
    };
    Ok(Findings {
        table,
        failed,
        notes,
    })
}

fn chosen<'p>(policy: &'p Policy, name: Option<&str>) -> Result<Vec<&'p Group>, StartError> {
    let wanted = |group: &&Group| match name {
        Some(name) => &*group.name == name,
        None => group.enabled,
    };
    let groups: Vec<&Group> = policy
        .groups()
        .iter()
        .map(|group| &**group)
        .filter(|group| group.platform == Platform::OpenAi)
        .filter(wanted)
        .collect();
    if groups.is_empty() {
        return Err(no_such_group("no such group on platform openai"));
    }
    Ok(groups)
}

/// The group that a running proxy has the key in.
fn group_of<'p>(policy: &'p Policy, key: &str) -> Result<&'p Group, StartError> {
    let wanted = digest(key.as_bytes());
    let listed = policy.keys().find(|listed| *listed.id == wanted);
    let group = match listed {
        Some(listed) => Some(listed.group),
        None => policy.default_group().map(|group| &**group),
    };
    group
        .filter(|group| group.platform == Platform::OpenAi)
        .ok_or_else(|| no_such_group("the policy has no group on platform openai for this key"))
}

fn no_such_group(why: &'static str) -> StartError {
    failed("no question")(io::Error::new(io::ErrorKind::NotFound, why))
}

/// They name the tier, so that a group without force asks for it as well. A running proxy that is to force it has to do so by
/// itself.
fn questions(options: &Options, group: &Group) -> [Question; 4] {
    let model = &options.model;
    let responses = |title, way, name: &str, value: Value| {
        let mut body = json!({"model": model, "input": QUESTION, "max_output_tokens": MAX_TOKENS});
        body[name] = value;
        Question {
            title,
            path: "/v1/responses",
            body,
            way,
        }
    };
    let message = json!({"role": "user", "content": QUESTION});
    let mut questions = [
        responses("responses, JSON", Way::Http, "stream", json!(false)),
        responses("responses, SSE", Way::Http, "stream", json!(true)),
        responses(
            "responses, WebSocket",
            Way::WebSocket,
            "type",
            json!("response.create"),
        ),
        Question {
            title: "messages",
            path: "/v1/messages",
            body: json!({"model": model, "max_tokens": MAX_TOKENS, "messages": [message]}),
            way: Way::Http,
        },
    ];
    let is_running_proxys_task = options.through.is_some() && group.is_forced();
    if !is_running_proxys_task {
        for question in &mut questions {
            question.body["service_tier"] = json!("priority");
        }
    }
    questions
}

/// The line of the log for each question.
fn ask(
    config: &Config,
    group: &Group,
    options: &Options,
    questions: &[Question],
) -> Result<Vec<Value>, StartError> {
    let folder = embedded::temporary_folder().map_err(failed("no temporary folder"))?;
    let mut config = config.clone();
    if let Some(url) = &options.through {
        config.upstreams = vec![Arc::new(running_proxy(group, url))];
    }
    embedded::isolate(&mut config, folder.path());
    fs::write(&config.policy, policy_of(group, options)).map_err(failed("a temporary file"))?;
    let server = Server::new(config, false)?;
    embedded::while_serving(server, async |proxy| {
        ask_all(proxy, &options.key, questions).await;
        Ok(())
    })
    .map_err(failed("no proxy"))?;
    let log = fs::read_to_string(folder.path().join("access.log")).map_err(failed("no log"))?;
    Ok(one_line_each(&log))
}

/// Of each request one line, in the order in which they were sent: their ids rise with time. A WebSocket has a line for the
/// response as well as for the connection, and the former is the one that tells.
fn one_line_each(log: &str) -> Vec<Value> {
    let mut lines: BTreeMap<String, Value> = BTreeMap::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        let id = line["request_id"].as_str().unwrap_or_default().to_owned();
        let turn = |line: &Value| line["turn"].as_u64();
        if lines.get(&id).map(turn) < Some(turn(&line)) {
            lines.insert(id, line);
        }
    }
    lines.into_values().collect()
}

/// One after the other, so that the lines come in this order.
async fn ask_all(proxy: SocketAddr, key: &str, questions: &[Question]) {
    let bearer = format!("Bearer {key}");
    let headers = [
        ("authorization", &*bearer),
        ("anthropic-version", "2023-06-01"),
    ];
    for question in questions {
        let asking = question.ask(proxy, &headers);
        let _ = tokio::time::timeout(PATIENCE, asking).await;
    }
}

impl Question {
    /// What fails has a line that says so.
    async fn ask(&self, proxy: SocketAddr, headers: embedded::Headers<'_>) {
        let body = self.body.to_string();
        let _ = match self.way {
            Way::Http => post(proxy, self.path, headers, &body).await.map(drop),
            Way::WebSocket => {
                websocket_request(proxy, self.path, headers, &body, ends_response).await
            }
        };
    }
}

/// Whether this event is the last one of a response.
fn ends_response(event: &[u8]) -> bool {
    let event: Value = serde_json::from_slice(event).unwrap_or_default();
    let last = [
        "response.completed",
        "response.incomplete",
        "response.failed",
        "response.done",
        "response.cancelled",
        "response.canceled",
        "error",
    ];
    event["type"]
        .as_str()
        .is_some_and(|kind| last.contains(&kind))
}

/// In the place of the group's upstream. It knows the key that is probed with, and sets the tier itself.
fn running_proxy(group: &Group, url: &Url) -> config::Upstream {
    config::Upstream {
        urls: vec![url.clone()],
        // What the upstream is shown is nothing to the proxy before it.
        tls: config::UpstreamTls::default(),
        health_check: None,
        credential_file: None,
        messages: MessagesMode::Tier,
        ..(*group.upstream).clone()
    }
}

/// The group alone, with the key that is probed with.
fn policy_of(group: &Group, options: &Options) -> String {
    // JSON's strings are YAML's.
    let (name, upstream) = (json!(&*group.name), json!(group.upstream.name));
    format!(
        "version: 1\ngroups:\n  {name}: {{platform: {}, force_fast_mode: {}, upstream: {upstream}}}\n\
         keys:\n  \"{}\": {{group: {name}, name: probe}}\n",
        group.platform.as_str(),
        group.is_forced() && options.through.is_none(),
        hash_key(options.key.as_bytes())
    )
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> StartError {
    StartError::io(format!("probe: {what}"))
}

fn row(group: &Group, question: &Question, line: &Value, verdict: &Verdict) -> Vec<Cell> {
    let text = |value: &Value| value.as_str().map_or(Cell::Null, Cell::text);
    let status = line["status"].as_u64();
    vec![
        Cell::Text(group.name.to_string()),
        Cell::Text(group.upstream.name.clone()),
        Cell::Text(question.title.into()),
        text(&line["service_tier"]),
        text(&line["service_tier_served"]),
        status.map_or(Cell::Null, Cell::Count),
        Cell::Text(verdict.word().into()),
        verdict.why(line),
    ]
}

impl Verdict {
    /// `served_tier`: whether the tier that the upstream names is trusted.
    fn of(line: &Value, way: Way, served_tier: ServedTier) -> Self {
        match line["upstream_status"].as_u64() {
            None => return Self::CannotTell("the upstream gave no answer"),
            Some(401 | 404 | 405 | 408 | 429 | 500..) => {
                return Self::CannotTell("the upstream's status is not about the tier");
            }
            Some(_) if way == Way::WebSocket && line["turn"] == 0 => {
                return Self::CannotTell("no response came over a WebSocket");
            }
            Some(400..) => return Self::Rejected,
            Some(_) if line["terminal_event"] == "error" => return Self::Rejected,
            Some(_) if line["outcome"] != "ok" => return Self::CannotTell("the response failed"),
            Some(_) => {}
        }
        match line["service_tier_served"].as_str() {
            _ if served_tier == ServedTier::Ignored => {
                Self::CannotTell("what this upstream says of the tier is not trusted")
            }
            None => Self::CannotTell("the response names no tier"),
            Some("priority" | "fast") => Self::Honoured,
            Some(_) => Self::Stripped,
        }
    }

    /// Whether the tier was not honoured, or nothing answered. That an upstream does not take the key, or says nothing of the
    /// tier, leaves it open.
    fn is_failure(&self, line: &Value) -> bool {
        match self {
            Self::Honoured => false,
            Self::Stripped | Self::Rejected => true,
            Self::CannotTell(_) => line["upstream_status"].is_null(),
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Stripped => "stripped",
            Self::Rejected => "rejected",
            Self::CannotTell(_) => "cannot tell",
        }
    }

    fn why(&self, line: &Value) -> Cell {
        match (self, line["error"].as_str()) {
            (Self::CannotTell(_), Some(code)) => Cell::Text(code.into()),
            (Self::CannotTell(why), None) => Cell::Text((*why).into()),
            _ => Cell::Null,
        }
    }
}
