//! `tiergate probe`: what an upstream makes of the tier that it is asked for. A few small requests go through the proxy as it
//! is, and its access log tells what was sent and what was served.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{Config, ServedTier};
use crate::policy::{Group, Platform, Policy, hash_key};
use crate::rehearsal::{self, Folder};
use crate::server::Server;
use crate::state::StartError;
use crate::table::{Cell, Table};

/// For one answer; the requests ask for a few words only.
const PATIENCE: Duration = Duration::from_secs(120);
/// The least that the Responses API takes.
const MOST_TOKENS: u64 = 16;
const QUESTION: &str = "Say ok.";
const COLUMNS: [&str; 8] = [
    "group", "upstream", "asked", "sent", "served", "status", "verdict", "why",
];

/// What is to be sent.
pub struct Options<'o> {
    /// Only this group's upstream.
    pub group: Option<&'o str>,
    /// The upstream gets it, unless it has a `credential_file`.
    pub key: &'o str,
    pub model: &'o str,
}

/// One way to ask.
struct Question {
    title: &'static str,
    path: &'static str,
    body: Value,
}

/// What became of the tier.
enum Verdict {
    Honoured,
    /// It was answered on another one.
    Stripped,
    Rejected,
    CannotTell(&'static str),
}

/// Asks the upstream of every group that can have a tier. Each question costs what its tokens cost.
///
/// # Errors
/// Where no proxy can be run, or there is no such group.
pub fn run(config: &Config, policy: &Policy, options: &Options<'_>) -> Result<Table, StartError> {
    let questions = questions(options.model);
    let mut rows = Vec::new();
    for group in chosen(policy, options.group)? {
        let lines = ask(config, group, options.key, &questions)?;
        for (question, line) in questions.iter().zip(lines) {
            rows.push(row(group, question, &line));
        }
    }
    Ok(Table {
        columns: COLUMNS.to_vec(),
        rows,
        totals: Vec::new(),
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
        let why = io::Error::new(io::ErrorKind::NotFound, "no such group on platform openai");
        return Err(failed("no question")(why));
    }
    Ok(groups)
}

/// All name the tier, so that a group without force asks for it as well.
fn questions(model: &str) -> [Question; 3] {
    let responses = |stream: bool| {
        json!({"model": model, "input": QUESTION, "max_output_tokens": MOST_TOKENS,
            "stream": stream, "service_tier": "priority"})
    };
    let message = json!({"role": "user", "content": QUESTION});
    [
        Question {
            title: "responses, JSON",
            path: "/v1/responses",
            body: responses(false),
        },
        Question {
            title: "responses, SSE",
            path: "/v1/responses",
            body: responses(true),
        },
        Question {
            title: "messages",
            path: "/v1/messages",
            body: json!({"model": model, "max_tokens": MOST_TOKENS, "messages": [message],
                "service_tier": "priority"}),
        },
    ]
}

/// The line of the log for each question.
fn ask(
    config: &Config,
    group: &Group,
    key: &str,
    questions: &[Question],
) -> Result<Vec<Value>, StartError> {
    let folder = Folder::new().map_err(failed("no temporary folder"))?;
    let mut config = config.clone();
    rehearsal::confine(&mut config, folder.path());
    fs::write(&config.policy, policy_of(group, key)).map_err(failed("a temporary file"))?;
    let server = Server::new(config, false)?;
    let proxy = server.address().map_err(failed("no listener"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("no runtime"))?;
    rehearsal::while_serving(server, || {
        runtime.block_on(ask_all(proxy, key, questions));
        Ok(())
    })
    .map_err(failed("no proxy"))?;
    let log = fs::read_to_string(folder.path().join("access.log")).map_err(failed("no log"))?;
    let lines = log.lines();
    Ok(lines
        .map(|line| serde_json::from_str(line).unwrap_or_default())
        .collect())
}

/// One after the other, so that the lines come in this order. What fails has a line that says so.
async fn ask_all(proxy: SocketAddr, key: &str, questions: &[Question]) {
    let headers = format!("authorization: Bearer {key}\r\nanthropic-version: 2023-06-01\r\n");
    for question in questions {
        let body = question.body.to_string();
        let asking = rehearsal::post(proxy, question.path, &headers, &body);
        let _ = tokio::time::timeout(PATIENCE, asking).await;
    }
}

/// The group alone, with the key that is probed with.
fn policy_of(group: &Group, key: &str) -> String {
    // JSON's strings are YAML's.
    let (name, upstream) = (json!(&*group.name), json!(group.upstream.name));
    format!(
        "version: 1\ngroups:\n  {name}: {{platform: {}, force_fast_mode: {}, upstream: {upstream}}}\n\
         keys:\n  \"{}\": {{group: {name}, name: probe}}\n",
        group.platform.as_str(),
        group.force_fast_mode,
        hash_key(key.as_bytes())
    )
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |why| StartError::Io(format!("probe: {what}"), why)
}

fn row(group: &Group, question: &Question, line: &Value) -> Vec<Cell> {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or(Cell::Null, |text| Cell::Text(text.into()))
    };
    let status = line["status"].as_u64();
    let verdict = Verdict::of(line, group.upstream.served_tier);
    vec![
        Cell::Text(group.name.to_string()),
        Cell::Text(group.upstream.name.clone()),
        Cell::Text(question.title.into()),
        text(&line["service_tier"]),
        text(&line["service_tier_served"]),
        status.map_or(Cell::Null, |status| Cell::Bare(status.to_string())),
        Cell::Text(verdict.word().into()),
        verdict.why(line),
    ]
}

impl Verdict {
    /// `word`: what the upstream's own is worth.
    fn of(line: &Value, word: ServedTier) -> Self {
        match line["upstream_status"].as_u64() {
            None => return Self::CannotTell("the upstream gave no answer"),
            Some(400..) => return Self::Rejected,
            Some(_) if line["outcome"] != "ok" => return Self::CannotTell("the response failed"),
            Some(_) => {}
        }
        match line["service_tier_served"].as_str() {
            _ if word == ServedTier::Ignored => {
                Self::CannotTell("what this upstream says of the tier is not trusted")
            }
            None => Self::CannotTell("the response names no tier"),
            Some("priority" | "fast") => Self::Honoured,
            Some(_) => Self::Stripped,
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
