//! `tiergate demo`: the newcomer's first run. The proxy as it is, between a client and an upstream that stand here, all on
//! free loopback ports; and one screen that shows what came of each request.

use std::fs;
use std::io;
use std::net::{self, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use bytes::Bytes;
use http::header;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::stream::Stream;
use pingora_http::ResponseHeader;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::cli::embedded::{self, post, while_serving};
use crate::config::{Config, LogTarget};
use crate::server::Server;
use crate::state::StartError;

/// For the whole demonstration, which takes far less than a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of the screen, in characters.
const WIDTH: usize = 108;

const POLICY: &str = "\
version: 1
groups:
  fast: {platform: openai, force_fast_mode: true}
  calm: {platform: openai}
keys:
  demo-key-alice: {group: fast, name: alice}
  demo-key-bob: {group: calm, name: bob}
";

/// The fields of the access log that the screen shows as columns.
const COLUMNS: [(&str, usize); 9] = [
    ("key", 7),
    ("group", 7),
    ("service_tier", 14),
    ("service_tier_client", 21),
    ("tier_reason", 13),
    ("transport", 11),
    ("status", 8),
    ("outcome", 10),
    ("error", 0),
];

/// A request that a client makes.
struct Scene {
    title: &'static str,
    key: &'static str,
    path: &'static str,
    body: &'static str,
}

const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

const SCENES: [Scene; 6] = [
    Scene {
        title: "alice is in the forced group `fast`, and her client asks for flex",
        key: "demo-key-alice",
        path: RESPONSES,
        body: r#"{"model":"gpt-5.5","service_tier":"flex","input":"hello"}"#,
    },
    Scene {
        title: "bob is in the group `calm`, which is not forced: not a byte changes",
        key: "demo-key-bob",
        path: RESPONSES,
        body: r#"{"model":"gpt-5.5","service_tier":"flex","input":"hello"}"#,
    },
    Scene {
        title: "alice streams, and her client names no tier",
        key: "demo-key-alice",
        path: RESPONSES,
        body: r#"{"model":"gpt-5.5","stream":true,"input":"hello"}"#,
    },
    Scene {
        title: "alice sends half a body: what cannot be forced is not sent on",
        key: "demo-key-alice",
        path: RESPONSES,
        body: r#"{"model":"gpt-5.5","input":"hel"#,
    },
    Scene {
        title: "somebody comes with a key that no group has",
        key: "demo-key-mallory",
        path: RESPONSES,
        body: r#"{"model":"gpt-5.5","input":"hello"}"#,
    },
    Scene {
        title: "alice's Claude Code speaks Messages, which this upstream does not",
        key: "demo-key-alice",
        path: MESSAGES,
        body: r#"{"model":"claude-opus-5-5","max_tokens":99,"stream":true,"messages":[{"role":"user","content":"hello"}]}"#,
    },
];

/// What came of a [`Scene`].
struct Outcome {
    /// The body that reached the upstream, if one did.
    received: Option<String>,
    status: String,
    /// Of the answer's body.
    kind: String,
}

/// Runs it and returns the screen; `highlight` marks what the proxy changed, for a terminal.
///
/// # Errors
/// Where the machine gives no loopback port or no temporary folder, or a request is not answered.
pub fn run(highlight: bool) -> Result<String, StartError> {
    let (listener, upstream) = bind().map_err(StartError::io("demo: no loopback port"))?;
    let (server, log) = assemble(upstream)?;
    let outcomes = while_serving(server, async |proxy| {
        let play = play(proxy, TcpListener::from_std(listener)?);
        let played = tokio::time::timeout(PATIENCE, play).await;
        played.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    })
    .map_err(StartError::io("demo: a request came to nothing"))?;
    let log = io::read_to_string(log).map_err(StartError::io("demo: no access log"))?;
    Ok(Screen { highlight }.show(&outcomes, &log))
}

/// Where the upstream listens.
fn bind() -> io::Result<(net::TcpListener, SocketAddr)> {
    let listener = net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The proxy, ready to serve, and its access log.
fn assemble(upstream: SocketAddr) -> Result<(Server, fs::File), StartError> {
    let folder =
        embedded::temporary_folder().map_err(StartError::io("demo: no temporary folder"))?;
    let mut config = config(folder.path(), upstream)?;
    // A file without a name: the folder goes here, so that an interrupted demonstration leaves nothing behind.
    let log =
        tempfile::tempfile_in(folder.path()).map_err(StartError::io("demo: no access log"))?;
    let path = format!("/dev/fd/{}", log.as_raw_fd());
    config.access_log.target = LogTarget::File(path.into());
    Ok((Server::new(config, false)?, log))
}

/// The files of a small installation, loaded. The listeners take whatever port is free.
fn config(folder: &Path, upstream: SocketAddr) -> Result<Config, StartError> {
    let text = format!(
        "policy: policy.yaml\nupstreams:\n  demo: {{url: \"http://{upstream}\", messages: responses, \
         models: [{{match: 'claude-*', model: gpt-5.5}}]}}\n"
    );
    let path = folder.join("tiergate.yaml");
    fs::write(folder.join("policy.yaml"), POLICY)
        .and_then(|()| fs::write(&path, text))
        .map_err(StartError::io("demo: a temporary file"))?;
    let (mut config, _) = Config::load(&path).map_err(StartError::Diagnostics)?;
    embedded::isolate(&mut config, folder);
    Ok(config)
}

/// Sends each scene's request through the proxy, one after the other.
async fn play(proxy: SocketAddr, listener: TcpListener) -> io::Result<Vec<Outcome>> {
    let (report, mut received) = mpsc::unbounded_channel();
    tokio::spawn(serve_upstream(listener, report));
    let mut outcomes = Vec::new();
    for scene in &SCENES {
        let (status, kind) = ask(proxy, scene).await?;
        outcomes.push(Outcome {
            // The upstream reports before it answers.
            received: received.try_recv().ok(),
            status,
            kind,
        });
    }
    Ok(outcomes)
}

/// The status and content type of the proxy's answer.
async fn ask(proxy: SocketAddr, scene: &Scene) -> io::Result<(String, String)> {
    let bearer = format!("Bearer {}", scene.key);
    let headers = [("authorization", &*bearer)];
    let answer = post(proxy, scene.path, &headers, scene.body).await;
    let answer = answer.map_err(io::Error::other)?;
    Ok((answer.status.to_string(), answer.content_type))
}

/// An upstream as small as can be: one request a connection, answered on the tier that was asked for.
async fn serve_upstream(listener: TcpListener, report: mpsc::UnboundedSender<String>) {
    while let Ok((stream, _)) = listener.accept().await {
        // The client tells what went wrong.
        let _ = answer_one(stream, &report).await;
    }
}

async fn answer_one(
    stream: TcpStream,
    report: &mpsc::UnboundedSender<String>,
) -> pingora_core::Result<()> {
    let mut session = ServerSession::new_http1(Box::new(Stream::from(stream)));
    session.set_keepalive(None);
    if !session.read_request().await? {
        return Ok(());
    }
    let mut body = Vec::new();
    while let Some(piece) = session.read_request_body().await? {
        body.extend_from_slice(&piece);
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    let (kind, answer) = answer_to(&body);
    // Nobody listens once the demonstration is over.
    let _ = report.send(body);
    let mut head = ResponseHeader::build(200, None)?;
    head.insert_header(header::CONTENT_TYPE, kind)?;
    head.insert_header(header::CONTENT_LENGTH, answer.len())?;
    session.write_response_header(Box::new(head)).await?;
    session
        .write_response_body(Bytes::from(answer), true)
        .await?;
    session.finish().await.map(drop)
}

/// A response as the Responses API gives it, whole or as a stream, and its content type.
fn answer_to(body: &str) -> (&'static str, String) {
    let asked: Value = serde_json::from_str(body).unwrap_or_default();
    let response = serde_json::json!({
        "id": "resp_demo",
        "object": "response",
        "status": "completed",
        "model": asked["model"],
        "service_tier": asked["service_tier"].as_str().unwrap_or("default"),
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}],
        "usage": {
            "input_tokens": 9,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 11,
        },
    });
    if asked["stream"] == true {
        ("text/event-stream", events(&response))
    } else {
        ("application/json", response.to_string())
    }
}

fn events(response: &Value) -> String {
    let event = |kind: &str, mut data: Value| {
        data["type"] = kind.into();
        format!("event: {kind}\ndata: {data}\n\n")
    };
    event(
        "response.output_text.delta",
        serde_json::json!({"output_index": 0, "delta": "hello"}),
    ) + &event(
        "response.completed",
        serde_json::json!({"response": response}),
    )
}

/// Lays out what is shown.
struct Screen {
    highlight: bool,
}

const PURPOSE: &str = "\
tiergate stands in front of OpenAI-type upstreams and decides, per group of API keys, on which service tier
every request runs. Here it just ran on loopback, between a small client and a small upstream.
";
const NEXT: &str = "Next: edit conf/tiergate.yaml and conf/policy.yaml, then `tiergate check --config conf/tiergate.yaml`";

impl Screen {
    fn show(&self, outcomes: &[Outcome], log: &str) -> String {
        let scenes = (1..).zip(SCENES.iter().zip(outcomes));
        let scenes =
            scenes.flat_map(|(number, (scene, outcome))| self.scene(number, scene, outcome));
        let mut lines = vec![PURPOSE.to_owned()];
        lines.extend(scenes);
        lines.push(self.strong("The access log has a line for each of them; of their fields:"));
        lines.extend(self.table(log));
        lines.push(self.strong("The first line whole:"));
        lines.extend(wrapped(log.lines().next().unwrap_or_default(), WIDTH));
        lines.push(String::new());
        lines.push(format!("{NEXT}\n"));
        lines.join("\n")
    }

    /// What the client sent above what the upstream received, so that the eye finds the difference.
    fn scene(&self, number: usize, scene: &Scene, outcome: &Outcome) -> Vec<String> {
        let changed = outcome
            .received
            .as_deref()
            .is_some_and(|received| received != scene.body);
        let received = match &outcome.received {
            Some(body) => self.body(body, changed),
            None => "nothing".to_owned(),
        };
        let Outcome { status, kind, .. } = outcome;
        let title = self.strong(&format!("{number}  {:<72}", scene.title));
        let kind = kind.split(';').next().unwrap_or_default();
        let mut lines = vec![format!("{title}answer: {status} {kind}")];
        lines.extend(labelled("client sent", &self.body(scene.body, changed)));
        lines.extend(labelled("upstream received", &received));
        lines.push(String::new());
        lines
    }

    /// A body, with its tier marked where that is what changed.
    fn body(&self, body: &str, changed: bool) -> String {
        let member = body.find("\"service_tier\"").filter(|_| changed);
        let Some(start) = member else {
            return body.to_owned();
        };
        let end = body[start..]
            .find([',', '}'])
            .map_or(body.len(), |end| start + end);
        let green = Style::new().bold().fg_color(Some(AnsiColor::Green.into()));
        let marked = self.marked(green, &body[start..end]);
        format!("{}{marked}{}", &body[..start], &body[end..])
    }

    fn table(&self, log: &str) -> Vec<String> {
        let heading = row(COLUMNS.map(|(name, _)| name.to_owned()));
        let lines = log.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            row(COLUMNS.map(|(name, _)| cell(&line[name])))
        });
        [self.marked(Style::new().dimmed(), &heading)]
            .into_iter()
            .chain(lines)
            .collect()
    }

    fn strong(&self, text: &str) -> String {
        self.marked(Style::new().bold(), text)
    }

    fn marked(&self, style: Style, text: &str) -> String {
        if self.highlight {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

fn row(cells: [String; COLUMNS.len()]) -> String {
    let padded: String = cells
        .iter()
        .zip(COLUMNS)
        .map(|(cell, (_, width))| format!("{cell:<width$}"))
        .collect();
    format!("   {}", padded.trim_end())
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A body behind what it is, over as many lines as it takes.
fn labelled(label: &str, body: &str) -> Vec<String> {
    let mut label = format!("   {label:<17}  ");
    let lines = wrapped(body, WIDTH - label.len());
    let labelled = lines.into_iter().map(|line| {
        let line = format!("{label}{line}");
        label = " ".repeat(label.len());
        line
    });
    labelled.collect()
}

/// A line of JSON over several of the screen, broken behind commas.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for field in line.split_inclusive(',') {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].len() + field.len() > width {
            lines.push(String::new());
        }
        let last = lines.len() - 1;
        lines[last] += field;
    }
    lines
}
