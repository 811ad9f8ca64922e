//! The same upstream over HTTP/2, where the requests of many clients share a connection: what it does to one of them is not
//! to touch the others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::books::{self, Books};
use super::chance::Chance;
use super::http2::runtime;
use super::plan::{Act, FAST_MODE, Plan, REFUSAL, Recipe, Then, When};
use super::support::proxy::Target;
use super::support::tls;
use super::upstream::{ENDLESS, EVENT_EVERY, SILENCE, answer_body};

pub struct Upstream {
    address: SocketAddr,
    resting: CancellationToken,
}

#[derive(Clone)]
struct Shared {
    recipe: Recipe,
    books: Arc<Books>,
    /// Cancelled when connections are to end once no request runs on them.
    resting: CancellationToken,
}

/// How a whole answer ends (RFC 9113 §8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    WithItsLastBytes,
    InAFrameOfItsOwn,
    /// The same, a while after the last bytes.
    Late,
    ByTrailers,
}

impl Target for Upstream {
    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

impl Upstream {
    pub fn run(recipe: Recipe, books: &Arc<Books>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("a bound socket");
        let resting = CancellationToken::new();
        let shared = Shared {
            recipe,
            books: books.clone(),
            resting: resting.clone(),
        };
        runtime().spawn(shared.accept(listener));
        Self { address, resting }
    }

    /// Ends all connections on which no request runs, now and from now on.
    pub fn rest(&self) {
        self.resting.cancel();
    }
}

impl Shared {
    async fn accept(self, listener: std::net::TcpListener) {
        let listener = TcpListener::from_std(listener).expect("a runtime");
        let acceptor = TlsAcceptor::from(tls::server_config(&[b"h2"]));
        let mut number = 0;
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(
                self.clone()
                    .serve_connection(acceptor.clone(), socket, number),
            );
            number += 1;
        }
    }

    async fn serve_connection(
        self,
        acceptor: TlsAcceptor,
        socket: TcpStream,
        number: u64,
    ) -> Option<()> {
        let mut chance = Chance::of(&[self.recipe.seed, 16, number]);
        let stream = acceptor.accept(socket).await.ok()?;
        let mut server = h2::server::Builder::new();
        server.max_concurrent_streams(chance.pick(&[1, 3, 100, 1000]));
        server.initial_window_size(chance.pick(&[1, 4096, 65_535, 1 << 20]));
        let mut connection = server.handshake(stream).await.ok()?;
        // Told by a request after which no further one is taken.
        let closes = Arc::new(Notify::new());
        let mut told = false;
        loop {
            tokio::select! {
                next = connection.accept() => {
                    let (request, respond) = next?.ok()?;
                    let (shared, closes) = (self.clone(), closes.clone());
                    tokio::spawn(async move {
                        let then = shared.serve(request, respond).await;
                        if then.is_some_and(|then| then != Then::KeepAlive) {
                            closes.notify_one();
                        }
                    });
                    continue;
                }
                () = self.resting.cancelled(), if !told => {}
                () = closes.notified(), if !told => {}
            }
            told = true;
            connection.graceful_shutdown();
        }
    }

    /// Gives what is to become of the connection after a request that was read.
    async fn serve(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<Then> {
        let (head, mut stream) = request.into_parts();
        let tag = head.uri.path().split('/').nth(1)?.parse().ok()?;
        let plan = Plan::of(self.recipe, tag);
        let attempt = self.books.open(tag, look_at(&head, &plan));
        if attempt == 0 && self.chance(tag).one_in(30) {
            respond.send_reset(Reason::REFUSED_STREAM);
            return None;
        }
        if plan.reply.when != When::Afterwards {
            self.answer(&plan, attempt, &mut respond).await;
        }
        if plan.reply.when == When::Unread {
            return None;
        }
        let (body, whole) = read(&mut stream).await;
        self.books.note_body(&plan, attempt, &body, whole);
        if whole && plan.reply.when == When::Afterwards {
            self.answer(&plan, attempt, &mut respond).await;
        }
        Some(plan.reply.then)
    }

    fn chance(&self, tag: u64) -> Chance {
        Chance::of(&[self.recipe.seed, 17, tag])
    }

    /// A response that is dropped without a word resets its stream.
    async fn answer(
        &self,
        plan: &Plan,
        attempt: usize,
        respond: &mut SendResponse<Bytes>,
    ) -> Option<()> {
        sleep(plan.reply.pause).await;
        match plan.reply.act {
            Act::Nothing { reset: true } => respond.send_reset(Reason::INTERNAL_ERROR),
            Act::Nothing { reset: false } => respond.send_reset(Reason::REFUSED_STREAM),
            Act::Garbage(_) => respond.send_reset(Reason::PROTOCOL_ERROR),
            Act::Silence => {
                let left = std::future::poll_fn(|context| respond.poll_reset(context));
                let _ = timeout(SILENCE, left).await;
            }
            Act::RefuseTier if self.books.refuse(plan.tag, attempt) => {
                let mut stream = begin(respond, 400, false, None)?;
                stream
                    .send_data(Bytes::from_static(REFUSAL.as_bytes()), true)
                    .ok()?;
            }
            Act::Answer(status) => return self.say(plan, attempt, respond, status).await,
            Act::RefuseTier | Act::Twice => return self.say(plan, attempt, respond, 200).await,
            Act::Cut { .. } | Act::Endless => {
                self.note_answered(plan, attempt);
                let mut stream = begin(respond, 200, plan.stream, None)?;
                if plan.reply.act == Act::Endless {
                    endless(&mut stream).await;
                } else {
                    let body = answer_body(plan).into_bytes();
                    let half = Bytes::copy_from_slice(&body[..body.len() / 2]);
                    stream.send_data(half, false).ok()?;
                    sleep(EVENT_EVERY).await;
                }
                stream.send_reset(Reason::INTERNAL_ERROR);
            }
        }
        None
    }

    async fn say(
        &self,
        plan: &Plan,
        attempt: usize,
        respond: &mut SendResponse<Bytes>,
        status: u16,
    ) -> Option<()> {
        self.note_answered(plan, attempt);
        let mut chance = self.chance(!plan.tag);
        let is_stream = plan.stream && status == 200;
        let body = answer_body(plan).into_bytes();
        let length = (!is_stream && chance.one_in(2)).then_some(body.len());
        let mut stream = begin(respond, status, is_stream, length)?;
        use End::{ByTrailers, InAFrameOfItsOwn, Late, WithItsLastBytes};
        let end = chance.pick(&[WithItsLastBytes, InAFrameOfItsOwn, Late, ByTrailers]);
        let empty_frames = chance.pick(&[0, 0, 1, 60]);
        let mut pieces = body.chunks(body.len() / 3 + 1).peekable();
        while let Some(piece) = pieces.next() {
            let ends = end == WithItsLastBytes && pieces.peek().is_none();
            for _ in 0..empty_frames {
                stream.send_data(Bytes::new(), false).ok()?;
            }
            stream.send_data(Bytes::copy_from_slice(piece), ends).ok()?;
            sleep(plan.reply.pause / 8).await;
        }
        match end {
            WithItsLastBytes => {}
            InAFrameOfItsOwn => stream.send_data(Bytes::new(), true).ok()?,
            Late => {
                sleep(EVENT_EVERY).await;
                stream.send_data(Bytes::new(), true).ok()?;
            }
            ByTrailers => {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-checksum", HeaderValue::from_static("1"));
                stream.send_trailers(trailers).ok()?;
            }
        }
        self.books
            .note(plan.tag, attempt, |entry| entry.told = true);
        Some(())
    }

    fn note_answered(&self, plan: &Plan, attempt: usize) {
        self.books
            .note(plan.tag, attempt, |entry| entry.answered = true);
    }
}

fn begin(
    respond: &mut SendResponse<Bytes>,
    status: u16,
    stream: bool,
    length: Option<usize>,
) -> Option<SendStream<Bytes>> {
    let kind = match stream {
        true => "text/event-stream",
        false => "application/json",
    };
    let mut head = Response::builder()
        .status(status)
        .header("content-type", kind);
    if let Some(length) = length {
        head = head.header("content-length", length);
    }
    respond.send_response(head.body(()).ok()?, false).ok()
}

async fn endless(stream: &mut SendStream<Bytes>) {
    let begun = Instant::now();
    let event = Bytes::from_static(b"data: {\"type\":\"response.in_progress\"}\n\n");
    while begun.elapsed() < ENDLESS && stream.send_data(event.clone(), false).is_ok() {
        sleep(EVENT_EVERY).await;
    }
}

async fn read(stream: &mut RecvStream) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(piece) = stream.data().await {
        let Ok(piece) = piece else {
            return (body, false);
        };
        body.extend_from_slice(&piece);
        let _ = stream.flow_control().release_capacity(piece.len());
    }
    (body, true)
}

fn look_at(head: &Parts, plan: &Plan) -> books::Head {
    let own = ["x-tag", "authorization", "x-api-key"];
    let sent = plan.headers();
    let mut sent = sent.iter().filter(|(name, _)| own.contains(name));
    let header = |name: &str| head.headers.get(name)?.to_str().ok();
    let same = |(name, value): &(&str, String)| header(name) == Some(value);
    let target = head.uri.path_and_query().map(|target| target.as_str());
    books::Head {
        is_changed: !sent.all(same) || target != Some(&format!("{}?q=1", plan.path())),
        asks_fast: header("anthropic-beta").is_some_and(|beta| beta.contains(FAST_MODE)),
    }
}
