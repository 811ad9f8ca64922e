//! WebSockets of a run: what their clients say and how they leave, and what the upstream makes of it.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame, coding::CloseCode};
use tungstenite::{Error, Message, WebSocket};

use super::bodies;
use super::books;
use super::chance::Chance;
use super::plan::{self, Asker, Plan, Recipe};
use super::reading;
use super::upstream::Shared;
use super::wire::{Head, Stream, Wire, reset_on_close};
use super::world::World;

/// Messages of one connection; they have the tags behind that of the connection.
pub const MOST_MESSAGES: u64 = 6;
const SOCKET_TIME: Duration = Duration::from_secs(6);
const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A message of a client.
pub struct Spoken {
    pub tag: u64,
    pub text: String,
    /// It begins a response.
    pub creates: bool,
}

/// What the upstream does about a message that begins a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Response {
    Completed,
    /// A message that names a tier is refused for it; any other is answered.
    RefuseTier,
    Failed,
    Silence,
    Cut {
        reset: bool,
    },
    Garbage,
    Close,
}

impl Spoken {
    pub fn of(recipe: Recipe, tag: u64) -> Self {
        let mut chance = Chance::of(&[recipe.seed, 4, tag]);
        let create = r#""type":"response.create""#;
        let odds = if recipe.calm { 60 } else { 14 };
        let (kind, good) = match chance.below(odds) {
            0 => (create, false),
            1 => (r#""type":"response.cancel""#, true),
            2 => (r#""type":"response.create","Type":"other""#, true),
            3 => (r#""type":"response\u002ecreate""#, true),
            _ => (create, true),
        };
        let model = plan::model(tag);
        let bytes = match good {
            true => bodies::good(&mut chance, &model, &[kind], 30_000),
            false => bodies::bad(&mut chance, &model),
        };
        Self {
            tag,
            // Text messages are UTF-8 by their nature.
            text: String::from_utf8_lossy(&bytes).into_owned(),
            creates: good && !kind.contains("cancel"),
        }
    }
}

impl Response {
    fn of(recipe: Recipe, tag: u64) -> Self {
        let mut chance = Chance::of(&[recipe.seed, 5, tag]);
        let odds = if recipe.calm { 300 } else { 24 };
        match chance.below(odds) {
            0 | 1 => Response::Failed,
            2 => Response::Silence,
            3 => Response::Cut { reset: true },
            4 => Response::Cut { reset: false },
            5 => Response::Garbage,
            6 => Response::Close,
            7..10 => Response::RefuseTier,
            _ => Response::Completed,
        }
    }
}

/// The upstream's side of a connection whose head has been read.
pub fn serve(shared: &Shared, mut wire: Wire, head: &Head) -> Option<()> {
    let tag = head.tag()?;
    let mut chance = Chance::of(&[shared.recipe.seed, 6, tag]);
    let attempt = shared.books.open(tag, books::Head::default());
    shared.books.note(tag, attempt, |entry| {
        entry.whole = true;
        entry.as_it_came = true;
    });
    if !shared.recipe.calm && chance.one_in(12) {
        if chance.one_in(2) {
            wire.send(b"HTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\nno")?;
        }
        wire.end(chance.one_in(2));
        return None;
    }
    let accept = derive_accept_key(head.header("sec-websocket-key")?.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    wire.send(answer.as_bytes())?;
    let (stream, read) = wire.into_parts();
    let mut socket = WebSocket::from_partially_read(stream, read, Role::Server, None);
    let deadline = Instant::now() + 2 * SOCKET_TIME;
    loop {
        match hear(&mut socket, deadline)? {
            Message::Text(text) => take(shared, &mut socket, tag, &text)?,
            Message::Close(_) => return socket.flush().ok(),
            _ => {}
        }
    }
}

/// Nothing where the connection is to end.
fn take(
    shared: &Shared,
    socket: &mut WebSocket<Box<dyn Stream>>,
    connection: u64,
    text: &str,
) -> Option<()> {
    let Some(tag) = tag_in(text) else {
        shared.books.note_unreadable(connection, text);
        return Some(());
    };
    let spoken = Spoken::of(shared.recipe, tag);
    let attempt = shared.books.note_spoken(&spoken, text);
    if !spoken.creates {
        return Some(());
    }
    respond(shared, socket, tag, attempt)
}

/// Answers a message that begins a response.
fn respond(
    shared: &Shared,
    socket: &mut WebSocket<Box<dyn Stream>>,
    tag: u64,
    attempt: usize,
) -> Option<()> {
    let response = Response::of(shared.recipe, tag);
    if response == Response::Silence {
        // Whatever was said now would be taken for another response.
        std::thread::sleep(SOCKET_TIME / 4);
        return None;
    }
    if response == Response::RefuseTier && shared.books.refuse(tag, attempt) {
        let error =
            json!({"type": "invalid_request_error", "message": "no", "param": "service_tier"});
        let event = json!({"type": "error", "status": 400, "error": error});
        return say_whole(socket, &event.to_string());
    }
    let events = plan::events(plan::Endpoint::Responses, tag);
    let events: Vec<&str> = events
        .iter()
        .map(|event| event["data: ".len()..].trim())
        .collect();
    say_whole(socket, events[0])?;
    match response {
        Response::Completed | Response::RefuseTier => {
            say_whole(socket, events[1])?;
            say_whole(socket, events[2])?;
            shared.books.note(tag, attempt, |entry| entry.told = true);
            Some(())
        }
        Response::Failed => {
            let response = json!({"id": format!("resp_{tag}"), "status": "failed", "usage": null});
            let event = json!({"type": "response.failed", "response": response});
            say_whole(socket, &event.to_string())
        }
        Response::Close => {
            let bye = CloseFrame {
                code: CloseCode::Error,
                reason: "no".into(),
            };
            socket.close(Some(bye)).ok()
        }
        Response::Garbage => {
            let _ = socket.get_mut().write_all(&[0x83, 0xff, 0, 1, 2, 0xff]);
            None
        }
        Response::Cut { reset: true } => {
            reset_on_close(socket.get_ref().tcp());
            None
        }
        Response::Cut { reset: false } | Response::Silence => None,
    }
}

fn say_whole(socket: &mut WebSocket<Box<dyn Stream>>, text: &str) -> Option<()> {
    socket.send(Message::Text(text.into())).ok()
}

fn tag_in(text: &str) -> Option<u64> {
    let members = reading::members(reading::without_mark(text.as_bytes()))?;
    let model = members.iter().find(|(name, _)| name == "model")?;
    model
        .1
        .get()
        .trim_matches('"')
        .strip_prefix("m-")?
        .parse()
        .ok()
}

/// The next message; nothing at the end, or when it is too late.
fn hear(socket: &mut WebSocket<Box<dyn Stream>>, deadline: Instant) -> Option<Message> {
    loop {
        match socket.read() {
            Ok(message) => return Some(message),
            Err(Error::Io(why))
                if why.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(_) => return None,
        }
    }
}

/// A client's connection: some messages, one after the other or at once, and some way to leave.
pub fn visit(world: &World, tag: u64) -> Option<()> {
    let mut chance = Chance::of(&[world.recipe.seed, 8, tag]);
    let Asker::Key { group, key } = Plan::of(world.recipe, tag).asker else {
        return None;
    };
    let with_tls = chance.one_in(4);
    let mut wire = Wire::connect(world.address(with_tls), with_tls)?;
    wire.within(SOCKET_TIME);
    let head = format!(
        "GET /{tag}/v1/responses HTTP/1.1\r\nHost: proxy.test\r\nAuthorization: Bearer sk-{group}-{key}\r\n{HANDSHAKE}"
    );
    if chance.one_in(15) {
        // It leaves half-way through the upgrade.
        wire.send(&head.as_bytes()[..chance.below(head.len())])?;
        wire.end(chance.one_in(2));
        return None;
    }
    wire.send(head.as_bytes())?;
    if chance.one_in(15) {
        wire.end(chance.one_in(2));
        return None;
    }
    let answer = wire.head()?;
    if answer.status() != Some(101) {
        return None;
    }
    let (stream, read) = wire.into_parts();
    let mut socket = WebSocket::from_partially_read(stream, read, Role::Client, None);
    talk(world, &mut socket, tag, &mut chance);
    leave(socket, &mut chance);
    None
}

fn talk(
    world: &World,
    socket: &mut WebSocket<Box<dyn Stream>>,
    tag: u64,
    chance: &mut Chance,
) -> Option<()> {
    let deadline = Instant::now() + SOCKET_TIME;
    let at_once = chance.one_in(4);
    let mut open = 0;
    for number in 1..=chance.between(1, MOST_MESSAGES as usize) as u64 {
        let spoken = Spoken::of(world.recipe, tag + number);
        say(socket, &spoken.text, chance)?;
        open += u64::from(spoken.creates);
        if chance.one_in(12) {
            // Somebody who does not wait for the answer.
            return None;
        }
        while open > 0 && !at_once {
            open -= hear_ends(socket, deadline)?;
        }
    }
    while open > 0 {
        open -= hear_ends(socket, deadline)?;
    }
    Some(())
}

/// How many responses the next message ends.
fn hear_ends(socket: &mut WebSocket<Box<dyn Stream>>, deadline: Instant) -> Option<u64> {
    match hear(socket, deadline)? {
        Message::Text(text) => {
            let ends = ["\"response.completed\"", "\"response.failed\"", "\"error\""];
            let ends = ends
                .iter()
                .any(|event| text.contains(&format!("\"type\":{event}")));
            Some(u64::from(ends))
        }
        Message::Close(_) => None,
        _ => Some(0),
    }
}

fn say(socket: &mut WebSocket<Box<dyn Stream>>, text: &str, chance: &mut Chance) -> Option<()> {
    if !chance.one_in(4) || text.len() < 3 {
        return say_whole(socket, text);
    }
    let cut = chance.between(1, text.len() - 1);
    let (first, second) = text.as_bytes().split_at(cut);
    for (piece, kind, last) in [(first, Data::Text, false), (second, Data::Continue, true)] {
        let frame = Frame::message(piece.to_vec(), OpCode::Data(kind), last);
        socket.send(Message::Frame(frame)).ok()?;
        if !last && chance.one_in(2) {
            socket.send(Message::Ping("in between".into())).ok()?;
        }
    }
    Some(())
}

fn leave(mut socket: WebSocket<Box<dyn Stream>>, chance: &mut Chance) {
    match chance.below(5) {
        0 => {}
        1 => {
            // In the middle of a frame.
            let _ = socket.get_mut().write_all(&[0x81, 0xfe, 0x10]);
        }
        2 => {
            // Without a mask, which no client may do.
            let _ = socket.get_mut().write_all(&[0x81, 0x02, b'{', b'}']);
            let _ = hear(&mut socket, Instant::now() + Duration::from_secs(1));
        }
        _ => {
            let _ = socket.close(None);
            let _ = hear(&mut socket, Instant::now() + Duration::from_secs(1));
        }
    }
}
