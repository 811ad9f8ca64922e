//! An upstream that does to each request what the plan says, and keeps books.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::books::{self, Books};
use super::chance::Chance;
use super::plan::{
    Act, FAST_MODE, GARBAGE, Plan, REFUSAL, Recipe, Reply, Then, When, document, events,
};
use super::sockets;
use super::support::proxy::Target;
use super::wire::{End, Head, Wire, chunk};

/// How long a request may take to arrive: longer than the proxy lets any client take.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// The longest silence, longer than the proxy's patience.
pub const SILENCE: Duration = Duration::from_secs(4);
pub const ENDLESS: Duration = Duration::from_secs(3);
pub const EVENT_EVERY: Duration = Duration::from_millis(40);

pub struct Upstream {
    pub address: SocketAddr,
    with_tls: bool,
    shared: Arc<Shared>,
}

pub struct Shared {
    pub recipe: Recipe,
    pub books: Arc<Books>,
    /// Idle connections are to end.
    resting: AtomicBool,
}

impl Target for Upstream {
    fn url(&self) -> String {
        match self.with_tls {
            true => format!("https://localhost:{}", self.address.port()),
            false => format!("http://{}", self.address),
        }
    }
}

impl Upstream {
    pub fn run(recipe: Recipe, books: &Arc<Books>, with_tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let shared = Arc::new(Shared {
            recipe,
            books: books.clone(),
            resting: AtomicBool::new(false),
        });
        let upstream = Self {
            address: listener.local_addr().expect("a bound socket"),
            with_tls,
            shared: shared.clone(),
        };
        std::thread::spawn(move || {
            for (number, tcp) in listener.incoming().map_while(Result::ok).enumerate() {
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let wire = Wire::accepted(tcp, with_tls)?;
                    shared.serve(wire, number as u64)
                });
            }
        });
        upstream
    }

    /// Ends all connections on which no request runs, now and from now on.
    pub fn rest(&self) {
        self.shared.resting.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    pub fn is_resting(&self) -> bool {
        self.resting.load(Ordering::Relaxed)
    }

    fn serve(&self, mut wire: Wire, number: u64) -> Option<()> {
        let mut chance = Chance::of(&[self.recipe.seed, 2, number]);
        if !self.recipe.calm && chance.one_in(40) {
            wire.end(chance.one_in(2));
            return None;
        }
        loop {
            wire.within(Duration::from_secs(600));
            if !wire.await_byte(|| self.is_resting()) {
                return None;
            }
            wire.within(REQUEST_TIME);
            let head = wire.head()?;
            if head.header("upgrade").is_some() {
                return sockets::serve(self, wire, &head);
            }
            wire = self.serve_request(wire, &head)?;
        }
    }

    /// Gives the connection back where it goes on.
    fn serve_request(&self, mut wire: Wire, head: &Head) -> Option<Wire> {
        let plan = Plan::of(self.recipe, head.tag()?);
        let attempt = self.books.open(plan.tag, look_at(head, &plan));
        let reply = plan.reply;
        let mut answered = None;
        if reply.when != When::Afterwards {
            answered = Some(self.answer(&mut wire, &plan, attempt));
        }
        let mut whole = false;
        if reply.when != When::Unread {
            let mut body = Vec::new();
            whole = wire.body(head, &mut body) == End::Whole;
            self.books.note_body(&plan, attempt, &body, whole);
        }
        if whole && answered.is_none() {
            answered = Some(self.answer(&mut wire, &plan, attempt));
        }
        let goes_on = answered == Some(Some(())) && whole && reply.then == Then::KeepAlive;
        if goes_on {
            return Some(wire);
        }
        if reply.then == Then::Vanish {
            std::thread::sleep(reply.pause / 4);
        }
        wire.end(matches!(
            reply.act,
            Act::Nothing { reset: true } | Act::Cut { reset: true }
        ));
        None
    }

    /// Nothing where the connection is to end.
    fn answer(&self, wire: &mut Wire, plan: &Plan, attempt: usize) -> Option<()> {
        let reply = plan.reply;
        if matches!(reply.act, Act::Nothing { .. }) {
            return None;
        }
        std::thread::sleep(reply.pause);
        if reply.act == Act::Silence {
            wire.within(SILENCE);
            // Until the proxy leaves.
            let _ = wire.await_byte(|| false);
            return None;
        }
        self.books
            .note(plan.tag, attempt, |entry| entry.answered = true);
        if reply.interim {
            wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
        }
        match reply.act {
            Act::Garbage(which) => {
                wire.send(GARBAGE[which])?;
                return None;
            }
            Act::Endless => return endless(wire),
            Act::Cut { .. } => return cut(wire, plan),
            Act::RefuseTier if self.books.refuse(plan.tag, attempt) => {
                return wire.send(message(400, &reply, REFUSAL).as_bytes());
            }
            _ => {}
        }
        let mut pieces = answer_pieces(plan);
        if reply.act == Act::Twice {
            // In one piece: what comes later may meet the next request on the connection, and no proxy could tell.
            pieces = vec![[pieces.concat(), pieces.concat()].concat()];
        }
        for piece in pieces {
            wire.send(&piece)?;
            std::thread::sleep(reply.pause / 8);
        }
        self.books
            .note(plan.tag, attempt, |entry| entry.told = true);
        (reply.act != Act::Twice).then_some(())
    }
}

/// The body of the whole answer to a request.
pub fn answer_body(plan: &Plan) -> String {
    match plan.reply.act {
        Act::Answer(status) if status != 200 => r#"{"error":{"message":"no"}}"#.to_owned(),
        _ if plan.stream => events(plan.endpoint, plan.tag).concat(),
        _ => document(plan.endpoint, plan.tag).to_string(),
    }
}

fn answer_pieces(plan: &Plan) -> Vec<Vec<u8>> {
    let status = match plan.reply.act {
        Act::Answer(status) => status,
        _ => 200,
    };
    if plan.stream && status == 200 {
        let head = head_of(status, true, &plan.reply);
        let begun = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
        let events = events(plan.endpoint, plan.tag);
        let chunks = events.iter().map(|event| chunk(event.as_bytes()));
        return [begun]
            .into_iter()
            .chain(chunks)
            .chain([chunk(b"")])
            .collect();
    }
    let message = message(status, &plan.reply, &answer_body(plan)).into_bytes();
    let middle = message.len() / 2;
    vec![message[..middle].to_vec(), message[middle..].to_vec()]
}

fn message(status: u16, reply: &Reply, body: &str) -> String {
    let head = head_of(status, false, reply);
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn head_of(status: u16, stream: bool, reply: &Reply) -> String {
    let kind = match stream {
        true => "text/event-stream",
        false => "application/json",
    };
    let close = match reply.then {
        Then::Close => "Connection: close\r\n",
        Then::KeepAlive | Then::Vanish => "",
    };
    format!("HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{close}")
}

/// An answer without its end.
fn cut(wire: &mut Wire, plan: &Plan) -> Option<()> {
    let message = answer_pieces(plan).concat();
    let end = Chance::of(&[plan.tag, 3]).between(1, message.len() - 1);
    wire.send(&message[..end])?;
    std::thread::sleep(Duration::from_millis(5));
    None
}

fn endless(wire: &mut Wire) -> Option<()> {
    wire.send(
        b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let begun = Instant::now();
    while begun.elapsed() < ENDLESS {
        wire.send(&chunk(b"data: {\"type\":\"response.in_progress\"}\n\n"))?;
        std::thread::sleep(EVENT_EVERY);
    }
    None
}

fn look_at(head: &Head, plan: &Plan) -> books::Head {
    let own = ["x-tag", "authorization", "x-api-key"];
    let sent = plan.headers();
    let mut sent = sent.iter().filter(|(name, _)| own.contains(name));
    let same = |(name, value): &(&str, String)| head.header(name) == Some(value);
    let beta = head.header("anthropic-beta").unwrap_or_default();
    books::Head {
        is_changed: !sent.all(same) || !head.line.contains(&format!("{}?q=1 ", plan.path())),
        asks_fast: beta.contains(FAST_MODE),
    }
}
