//! Clients of HTTP/2: several requests at once over one connection, with and without lengths, cut at any byte.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderValue, Request};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::chance::Chance;
use super::plan::{Endpoint, Framing, Plan};
use super::support::tls;
use super::visitors::{PATIENCE, note};
use super::world::World;

pub fn visit(world: &World, tag: u64) -> Option<()> {
    let mut chance = Chance::of(&[world.recipe.seed, 10, tag]);
    let plans: Vec<Plan> = (0..chance.between(1, 4) as u64)
        .map(|number| Plan::of(world.recipe, tag + number))
        .collect();
    let leaves = chance.one_in(8).then(|| chance.millis(0, 60));
    runtime().block_on(async {
        let (sender, connection) = connect(world).await?;
        let request = |at: usize| {
            let (plan, sender) = (plans.get(at), sender.clone());
            async move { exchange(world, plan?, sender).await }
        };
        let all = async { tokio::join!(request(0), request(1), request(2), request(3)) };
        match leaves {
            // The connection goes, whatever its requests are about.
            Some(after) => drop(timeout(after, all).await),
            None => drop(all.await),
        }
        connection.abort();
        Some(())
    })
}

/// The connection, and the task that drives it.
async fn connect(world: &World) -> Option<(SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>)> {
    let socket = TcpStream::connect(world.tls_address).await.ok()?;
    let connector = TlsConnector::from(tls::client_config(b"h2"));
    let name = ServerName::from(world.tls_address.ip());
    let handshake = timeout(PATIENCE, connector.connect(name, socket)).await;
    let (sender, connection) = h2::client::handshake(handshake.ok()?.ok()?).await.ok()?;
    Some((sender, tokio::spawn(connection)))
}

async fn exchange(world: &World, plan: &Plan, sender: SendRequest<Bytes>) -> Option<()> {
    let Ok(answered) = timeout(PATIENCE, ask(world, plan, sender)).await else {
        world.find(format!(
            "{}: no answer and no end for {PATIENCE:?}",
            plan.tag
        ));
        return None;
    };
    answered
}

async fn ask(world: &World, plan: &Plan, sender: SendRequest<Bytes>) -> Option<()> {
    let mut chance = Chance::of(&[world.recipe.seed, 11, plan.tag]);
    let mut sender = sender.ready().await.ok()?;
    let address = world.tls_address;
    let mut request = Request::builder()
        .method(plan.endpoint.method())
        .uri(format!("https://{address}{}?q=1", plan.path()));
    for (name, value) in plan.headers() {
        request = request.header(name, value);
    }
    let bodyless = plan.endpoint == Endpoint::Models;
    if let Some(announced) = plan.announced().filter(|_| !bodyless) {
        request = request.header("content-length", announced);
    }
    let (answer, stream) = sender.send_request(request.body(()).ok()?, bodyless).ok()?;
    if !bodyless {
        send_body(plan, stream, &mut chance).await;
    }
    let answer = answer.await.ok()?;
    let (head, mut stream) = answer.into_parts();
    let (mut body, mut whole) = (Vec::new(), true);
    while let Some(piece) = stream.data().await {
        let Ok(piece) = piece else {
            whole = false;
            break;
        };
        body.extend_from_slice(&piece);
        let _ = stream.flow_control().release_capacity(piece.len());
        if chance.one_in(60) {
            return None;
        }
    }
    let id = head.headers.get("x-tiergate-request-id");
    let id = id.and_then(|id| id.to_str().ok()).map(str::to_owned);
    note(world, plan, head.status.as_u16(), id, &body, whole);
    Some(())
}

/// A body that no chunk can break is broken off instead.
async fn send_body(plan: &Plan, mut stream: SendStream<Bytes>, chance: &mut Chance) {
    let wire = plan.wire();
    let end = match plan.framing {
        Framing::BadChunk => chance.below(wire.len()),
        _ => wire.len(),
    };
    let mut left = &wire[..end];
    while !left.is_empty() {
        let (piece, rest) = left.split_at(chance.between(1, 50_000).min(left.len()));
        if stream
            .send_data(Bytes::copy_from_slice(piece), false)
            .is_err()
        {
            return;
        }
        left = rest;
        if chance.one_in(6) {
            sleep(Duration::from_millis(3)).await;
        }
    }
    match plan.framing {
        Framing::BadChunk => stream.send_reset(Reason::CANCEL),
        // An announced length that does not come is waited for.
        Framing::TooLong(_) if chance.one_in(2) => std::mem::forget(stream),
        _ if chance.one_in(4) => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_static("1"));
            let _ = stream.send_trailers(trailers);
        }
        _ => drop(stream.send_data(Bytes::new(), true)),
    }
}

/// All HTTP/2 of a run is here. The other parties are plain threads.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads can be had")
    })
}
