//! What each request of a run is, and what becomes of it at the upstream. All of it follows from the run's seed and the
//! request's number, so client, upstream and audit agree without a word between them.

use std::time::Duration;

use serde_json::{Value, json};

use super::bodies;
use super::chance::Chance;

/// What of a beta header asks for fast mode.
pub const FAST_MODE: &str = "fast-mode-2026-02-01";
/// Groups of the policy.
pub const GROUPS: usize = 4;
/// Of each group.
pub const KEYS: usize = 2;
/// Tags are counted from here, so that all have as many digits.
pub const FIRST_TAG: u64 = 1_000_000_000_000;

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub seed: u64,
    /// Most of it goes well, as on an ordinary day.
    pub calm: bool,
}

/// One request.
pub struct Plan {
    /// Stands first in the path, so that it is in the upstream's books and in the log.
    pub tag: u64,
    pub asker: Asker,
    pub endpoint: Endpoint,
    /// The client asks for fast mode by a header.
    pub beta: bool,
    pub stream: bool,
    /// The body before it is encoded.
    pub plain: Vec<u8>,
    /// The body as the client has it to send.
    wire: Vec<u8>,
    pub coding: Coding,
    pub framing: Framing,
    pub expect: bool,
    pub reply: Reply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// One of the keys of a group.
    Key {
        group: usize,
        key: usize,
    },
    Stranger,
    Nobody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Responses,
    Compact,
    Chat,
    Messages,
    Embeddings,
    Models,
    Batches,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    Zstd,
    /// It says gzip and is not.
    Mislabelled,
    /// The end is missing.
    Truncated,
}

/// How the body's length is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length,
    Chunked,
    /// So many bytes fewer are announced than are sent.
    TooShort(usize),
    /// So many more are announced than are sent.
    TooLong(usize),
    /// A chunk in the middle of the body has no size.
    BadChunk,
    /// Both a length and chunks.
    Both,
}

/// What the upstream does about a request.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    pub when: When,
    pub act: Act,
    /// Before the answer, and between the pieces of one.
    pub pause: Duration,
    /// What becomes of the connection after a whole answer.
    pub then: Then,
    /// A head of status 103 comes first.
    pub interim: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// When the body is whole.
    Afterwards,
    /// As soon as the head is here; the body is read then.
    First,
    /// The same, and the body is never read.
    Unread,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Answer(u16),
    /// A body that names a tier is refused for it; any other is answered.
    RefuseTier,
    /// The answer ends early, by an end of the connection or by a reset.
    Cut {
        reset: bool,
    },
    /// The connection ends without an answer.
    Nothing {
        reset: bool,
    },
    Twice,
    /// Bytes that are no answer.
    Garbage(usize),
    /// No answer for as long as the proxy waits.
    Silence,
    /// Events that have no end.
    Endless,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    KeepAlive,
    /// Closed as announced.
    Close,
    /// Closed without announcement, a moment later.
    Vanish,
}

impl Asker {
    fn choose(chance: &mut Chance) -> Self {
        match chance.below(24) {
            0 => Asker::Stranger,
            1 => Asker::Nobody,
            _ => Asker::Key {
                group: chance.below(GROUPS),
                key: chance.below(KEYS),
            },
        }
    }

    /// The key that is sent.
    pub fn secret(self) -> Option<String> {
        match self {
            Asker::Key { group, key } => Some(format!("sk-{group}-{key}")),
            Asker::Stranger => Some("sk-stranger".to_owned()),
            Asker::Nobody => None,
        }
    }
}

impl Endpoint {
    fn choose(chance: &mut Chance) -> Self {
        match chance.below(20) {
            0..10 => Endpoint::Responses,
            10..13 => Endpoint::Chat,
            13..16 => Endpoint::Messages,
            16 => Endpoint::Compact,
            17 => Endpoint::Embeddings,
            18 => Endpoint::Models,
            _ => Endpoint::Batches,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Endpoint::Responses => "/v1/responses",
            Endpoint::Compact => "/v1/responses/compact",
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Messages => "/v1/messages",
            Endpoint::Embeddings => "/v1/embeddings",
            Endpoint::Models => "/v1/models",
            Endpoint::Batches => "/v1/batches",
        }
    }

    pub fn method(self) -> &'static str {
        if self == Endpoint::Models {
            "GET"
        } else {
            "POST"
        }
    }

    pub fn takes_tier(self) -> bool {
        use Endpoint::{Chat, Compact, Messages, Responses};
        matches!(self, Responses | Compact | Chat | Messages)
    }
}

impl Reply {
    fn choose(chance: &mut Chance, calm: bool) -> Self {
        let odds = if calm { 400 } else { 48 };
        let act = match chance.below(odds) {
            0..3 => Act::Nothing { reset: true },
            3..6 => Act::Nothing { reset: false },
            6..8 => Act::Cut { reset: true },
            8..11 => Act::Cut { reset: false },
            11 => Act::Twice,
            12 | 13 => Act::Garbage(chance.below(GARBAGE.len())),
            14 => Act::Silence,
            15 => Act::Endless,
            16..22 => Act::Answer(chance.pick(&[400, 404, 429, 500, 503])),
            22..27 => Act::RefuseTier,
            _ => Act::Answer(200),
        };
        let when = match chance.below(odds) {
            // The body is to be looked at.
            _ if act == Act::RefuseTier => When::Afterwards,
            0..3 => When::First,
            3..5 => When::Unread,
            _ => When::Afterwards,
        };
        let then = match chance.below(odds / 3) {
            0 => Then::Close,
            1 | 2 => Then::Vanish,
            _ => Then::KeepAlive,
        };
        Self {
            when,
            act,
            pause: if chance.one_in(3) {
                chance.millis(0, 25)
            } else {
                Duration::ZERO
            },
            then,
            interim: chance.one_in(12),
        }
    }

    /// Whether the answer is one with a status below 400 that says what was used.
    pub fn tells_usage(&self) -> bool {
        matches!(self.act, Act::Answer(200) | Act::RefuseTier | Act::Twice)
    }
}

/// How an upstream says that a tier cannot be had.
pub const REFUSAL: &str =
    r#"{"error":{"message":"no","type":"invalid_request_error","param":"service_tier"}}"#;

/// What no client can take for an answer.
pub const GARBAGE: [&[u8]; 6] = [
    b"\0\x01\x02\xff\xfe",
    b"HTTP/1.1 abc\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nbroken header\r\n",
];

impl Plan {
    pub fn of(recipe: Recipe, tag: u64) -> Self {
        let mut chance = Chance::of(&[recipe.seed, 1, tag]);
        let calm = recipe.calm;
        let endpoint = Endpoint::choose(&mut chance);
        let stream = endpoint.takes_tier() && endpoint != Endpoint::Compact && chance.one_in(2);
        let good = !chance.one_in(if calm { 40 } else { 6 });
        let plain = body(&mut chance, endpoint, tag, stream, good);
        let (coding, wire) = encode(&mut chance, endpoint, &plain);
        Self {
            tag,
            asker: Asker::choose(&mut chance),
            endpoint,
            beta: chance.one_in(6),
            stream,
            framing: framing(&mut chance, calm, wire.len()),
            expect: chance.one_in(15),
            plain,
            wire,
            coding,
            reply: Reply::choose(&mut chance, calm),
        }
    }

    /// Its path begins so.
    pub fn path(&self) -> String {
        format!("/{}{}", self.tag, self.endpoint.path())
    }

    /// The body as HTTP/1 frames it: what an upstream gets of one that passes as it came. The second is whether it is
    /// whole.
    pub fn framed(&self) -> (&[u8], bool) {
        match self.framing {
            Framing::TooShort(by) => (&self.wire[..self.wire.len() - by], true),
            Framing::TooLong(_) | Framing::BadChunk => (&self.wire, false),
            Framing::Length | Framing::Chunked | Framing::Both => (&self.wire, true),
        }
    }

    /// The body as the client has it, whatever it says of its length.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// The framed body, decoded; none where it cannot be.
    pub fn decoded(&self) -> Option<&[u8]> {
        match (self.coding, self.framing) {
            (Coding::Identity, _) => Some(self.framed().0),
            (Coding::Mislabelled | Coding::Truncated, _) | (_, Framing::TooShort(_)) => None,
            (Coding::Gzip | Coding::Zstd, _) => Some(&self.plain),
        }
    }

    /// The request's headers apart from those of the body's length.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![("x-tag", self.tag.to_string())];
        if let Some(secret) = self.asker.secret() {
            headers.push(if self.tag.is_multiple_of(5) {
                ("x-api-key", secret)
            } else {
                ("authorization", format!("Bearer {secret}"))
            });
        }
        if self.beta {
            let tokens = format!("other-2025-01-01, {FAST_MODE}");
            headers.push(("anthropic-beta", tokens));
        }
        match self.coding {
            Coding::Identity => {}
            Coding::Zstd => headers.push(("content-encoding", "zstd".to_owned())),
            _ => headers.push(("content-encoding", "gzip".to_owned())),
        }
        headers
    }

    /// The whole request as HTTP/1.1 writes it: its head, and its body in the pieces in which it may be written.
    pub fn message(&self) -> Vec<u8> {
        let mut head = format!(
            "{} {}?q=1 HTTP/1.1\r\nHost: proxy.test\r\nContent-Type: application/json\r\n",
            self.endpoint.method(),
            self.path()
        );
        for (name, value) in self.headers() {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.endpoint == Endpoint::Models {
            return (head + "\r\n").into_bytes();
        }
        if let Some(announced) = self.announced() {
            head.push_str(&format!("Content-Length: {announced}\r\n"));
        }
        let chunked = self.is_chunked();
        if chunked {
            head.push_str("Transfer-Encoding: chunked\r\n");
        }
        if self.expect {
            head.push_str("Expect: 100-continue\r\n");
        }
        let body = if chunked {
            self.chunks()
        } else {
            self.wire.clone()
        };
        [head.as_bytes(), b"\r\n", &body].concat()
    }

    /// The length of the body that its head tells.
    pub fn announced(&self) -> Option<usize> {
        let length = self.wire.len();
        match self.framing {
            Framing::TooShort(by) => Some(length - by),
            Framing::TooLong(by) => Some(length + by),
            Framing::Length | Framing::Both => Some(length),
            Framing::Chunked | Framing::BadChunk => None,
        }
    }

    /// Whether the length of the body counts, so that the whole of it is there before anything is sent. Over HTTP/2 there are no
    /// chunks beside it.
    pub fn has_length(&self, is_http2: bool) -> bool {
        self.announced().is_some() && (is_http2 || !self.is_chunked())
    }

    pub fn is_chunked(&self) -> bool {
        use Framing::{BadChunk, Both, Chunked};
        matches!(self.framing, Chunked | BadChunk | Both)
    }

    /// Whether another request may follow on the connection.
    pub fn may_be_followed(&self) -> bool {
        matches!(self.framing, Framing::Length | Framing::Chunked)
    }

    fn chunks(&self) -> Vec<u8> {
        let mut chance = Chance::of(&[self.tag, 7]);
        let (mut left, mut chunks) = (&self.wire[..], Vec::new());
        let broken = self.framing == Framing::BadChunk;
        while !left.is_empty() {
            let most = if chance.one_in(2) { 100_000 } else { 200 };
            let (piece, rest) = left.split_at(chance.between(1, most).min(left.len()));
            let last = rest.is_empty();
            if broken && (last || chance.one_in(3)) {
                chunks.extend_from_slice(b"xyz\r\n");
                return chunks;
            }
            chunks.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            chunks.extend_from_slice(piece);
            chunks.extend_from_slice(b"\r\n");
            left = rest;
        }
        chunks.extend_from_slice(b"0\r\n\r\n");
        chunks
    }
}

/// The model that the body of this request names: another way to tell which it is.
pub fn model(tag: u64) -> String {
    format!("m-{tag}")
}

/// The tokens that the answer to this request tells: input and output.
pub fn tokens(tag: u64) -> (u64, u64) {
    (100 + tag % 9973, 1 + tag % 997)
}

/// The tier that the answer says it was served on.
pub fn served(tag: u64) -> &'static str {
    ["default", "priority", "flex"][(tag % 3) as usize]
}

/// A response as the API of this endpoint writes it.
pub fn document(endpoint: Endpoint, tag: u64) -> Value {
    let ((input, output), served) = (tokens(tag), served(tag));
    match endpoint {
        Endpoint::Chat => json!({
            "id": format!("chatcmpl_{tag}"), "service_tier": served, "choices": [],
            "usage": {"prompt_tokens": input, "completion_tokens": output},
        }),
        Endpoint::Messages => json!({
            "id": format!("msg_{tag}"), "type": "message",
            "usage": {"input_tokens": input, "output_tokens": output, "service_tier": served},
        }),
        _ => json!({
            "id": format!("resp_{tag}"), "object": "response", "status": "completed",
            "service_tier": served, "output": [{"text": "\"service_tier\":\"flex\""}],
            "usage": {"input_tokens": input, "output_tokens": output},
        }),
    }
}

/// The same as events of a stream, the last of which ends it.
pub fn events(endpoint: Endpoint, tag: u64) -> Vec<String> {
    let whole = document(endpoint, tag);
    let (events, last) = match endpoint {
        Endpoint::Chat => (vec![whole], "data: [DONE]\n\n".to_owned()),
        Endpoint::Messages => (
            vec![
                json!({"type": "message_start", "message": whole}),
                json!({"type": "message_delta", "usage": {"output_tokens": tokens(tag).1}}),
            ],
            "data: {\"type\":\"message_stop\"}\n\n".to_owned(),
        ),
        _ => (
            vec![
                json!({"type": "response.created", "response": {"id": whole["id"], "service_tier": "auto"}}),
                json!({"type": "response.output_text.delta", "delta": "data: \n"}),
            ],
            format!(
                "data: {}\n\n",
                json!({"type": "response.completed", "response": whole})
            ),
        ),
    };
    let events = events.iter().map(|event| format!("data: {event}\n\n"));
    events.chain([last]).collect()
}

fn body(chance: &mut Chance, endpoint: Endpoint, tag: u64, stream: bool, good: bool) -> Vec<u8> {
    if endpoint == Endpoint::Models {
        return Vec::new();
    }
    if !good {
        return bodies::bad(chance, &model(tag));
    }
    let first: &[&str] = if stream { &["\"stream\":true"] } else { &[] };
    bodies::good(chance, &model(tag), first, 200_000)
}

fn encode(chance: &mut Chance, endpoint: Endpoint, plain: &[u8]) -> (Coding, Vec<u8>) {
    if endpoint == Endpoint::Models {
        return (Coding::Identity, Vec::new());
    }
    match chance.below(16) {
        0 => (Coding::Gzip, bodies::gzip(plain)),
        1 => (Coding::Zstd, bodies::zstd(plain)),
        2 if chance.one_in(2) => (Coding::Mislabelled, plain.to_vec()),
        3 if chance.one_in(2) => {
            let mut coded = bodies::gzip(plain);
            coded.truncate(coded.len() - chance.between(1, 9));
            (Coding::Truncated, coded)
        }
        _ => (Coding::Identity, plain.to_vec()),
    }
}

fn framing(chance: &mut Chance, calm: bool, length: usize) -> Framing {
    let odds = if calm { 200 } else { 24 };
    match chance.below(odds) {
        0 if length > 0 => Framing::TooShort(chance.between(1, length)),
        1 if length > 0 => Framing::TooLong(chance.between(1, 50)),
        2 if length > 0 => Framing::BadChunk,
        3 if length > 0 => Framing::Both,
        4..10 => Framing::Chunked,
        _ => Framing::Length,
    }
}
