//! Sends spans to the collector of `traces`, in batches, apart from all requests: OTLP over HTTP with JSON
//! (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>). What cannot be sent is dropped and counted.

use std::sync::Arc;
use std::time::Duration;

use http::header;
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_http::RequestHeader;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::accounting::traces::{Span, export_request};
use crate::config;
use crate::config::traces::read_headers;
use crate::state::State;
use crate::upstream::error_text::describe_error;
use crate::upstream::peer::peer;
use crate::upstream::resolver::lookup;

/// Spans in one request to the collector, at most.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const GATHER_TIME: Duration = Duration::from_secs(1);
/// How long the collector may take for a batch: the default of OpenTelemetry's exporters.
const SEND_TIME: Duration = Duration::from_secs(10);
/// How long a process that ends goes on sending.
pub const FLUSH_TIME: Duration = Duration::from_secs(2);
/// The path of OTLP's spans, where the configuration's URL has none.
const DEFAULT_PATH: &str = "/v1/traces";
const USER_AGENT: &str = concat!("tiergate/", env!("CARGO_PKG_VERSION"));

/// Sends what is queued until `ended` is cancelled, and then what is left.
pub async fn run(state: Arc<State>, ended: CancellationToken) {
    let (Some(settings), Some(traces)) = (&state.config.traces, &state.traces) else {
        return;
    };
    let Some(mut queue) = traces.take_queue() else {
        return;
    };
    let connector = Connector::new(None);
    let mut batch = Vec::with_capacity(BATCH);
    let mut is_failing = false;
    while gather(&mut queue, &mut batch, &ended).await {
        let sending = send(&connector, settings, &batch);
        let sent = match timeout(SEND_TIME, sending).await {
            Ok(sent) => sent,
            Err(_) => Err(format!("no answer within {SEND_TIME:?}")),
        };
        let outcome = if sent.is_ok() { "exported" } else { "dropped" };
        let spans = state.metrics.trace_spans.with_label_values(&[outcome]);
        spans.inc_by(batch.len() as u64);
        batch.clear();
        match (is_failing, sent) {
            (false, Err(why)) => {
                is_failing = true;
                log::warn!(
                    "spans are dropped: the collector of `traces` does not take them: {why}"
                );
            }
            (true, Ok(())) => {
                is_failing = false;
                log::info!("the collector of `traces` takes spans again");
            }
            _ => {}
        }
    }
}

/// Waits for spans. False where there are none and none are to come.
async fn gather(
    queue: &mut mpsc::Receiver<Span>,
    batch: &mut Vec<Span>,
    ended: &CancellationToken,
) -> bool {
    let first = ended.run_until_cancelled(queue.recv_many(batch, BATCH));
    if first.await.is_some() {
        let until = Instant::now() + GATHER_TIME;
        while batch.len() < BATCH {
            let more = queue.recv_many(batch, BATCH - batch.len());
            let more = ended.run_until_cancelled(timeout_at(until, more));
            if !matches!(more.await, Some(Ok(1..))) {
                break;
            }
        }
    }
    while batch.len() < BATCH
        && let Ok(span) = queue.try_recv()
    {
        batch.push(span);
    }
    !batch.is_empty()
}

/// # Errors
/// Why the collector has not taken them.
async fn send(
    connector: &Connector,
    settings: &config::Traces,
    spans: &[Span],
) -> Result<(), String> {
    let head = head(settings)?;
    let found = lookup(&settings.endpoint.destination).await;
    let found = found.map_err(|why| why.to_string())?;
    let mut last = "its name has no address".to_owned();
    for socket in found {
        let mut peer = peer(&socket, &settings.endpoint, None);
        peer.options.set_http_version(1, 1);
        match connector.get_http_session(&peer).await {
            Ok((session, _)) => return post(session, head, spans).await,
            Err(why) => last = describe_error(&why),
        }
    }
    Err(last)
}

fn head(settings: &config::Traces) -> Result<RequestHeader, String> {
    let path = match settings.endpoint.prefix.as_str() {
        "" => DEFAULT_PATH,
        path => path,
    };
    let build = || {
        let mut head = RequestHeader::build("POST", path.as_bytes(), None)?;
        head.insert_header(header::HOST, settings.endpoint.authority())?;
        head.insert_header(header::USER_AGENT, USER_AGENT)?;
        head.insert_header(header::CONTENT_TYPE, "application/json")?;
        Ok(head)
    };
    let mut head = build().map_err(|why: Box<pingora_core::Error>| describe_error(&why))?;
    if let Some(file) = &settings.headers_file {
        for (name, value) in read_headers(file).map_err(|why| why.to_string())? {
            head.insert_header(name, value)
                .map_err(|why| describe_error(&why))?;
        }
    }
    Ok(head)
}

/// On a connection of its own: batches are seldom, and one that was kept may have ended.
async fn post(
    mut session: HttpSession,
    mut head: RequestHeader,
    spans: &[Span],
) -> Result<(), String> {
    let body = export_request(spans);
    let mut exchange = async || {
        head.insert_header(header::CONTENT_LENGTH, body.len())?;
        head.insert_header(header::CONNECTION, "close")?;
        session.write_request_header(Box::new(head.clone())).await?;
        session
            .write_request_body(body.clone().into(), true)
            .await?;
        session.finish_request_body().await?;
        session.read_response_header().await?;
        Ok(session.response_header().map(|answer| answer.status))
    };
    let answered: Result<_, Box<pingora_core::Error>> = exchange().await;
    match answered.map_err(|why| describe_error(&why))? {
        Some(status) if status.is_success() => Ok(()),
        Some(status) => Err(format!("answer {}", status.as_u16())),
        None => Err("no answer".to_owned()),
    }
}
