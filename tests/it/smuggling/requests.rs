//! The published cases over HTTP/1.1, each under a key that is forced, under one that is not, and towards an endpoint
//! whose bodies are streamed. They stand in `requests.txt`.

use super::wire::{self, Request};
use crate::support::proxy::{self, Proxy};

/// Waits that end a case: for the rest of a message, and for another request.
const LIMITS: &str =
    "limits: {header_timeout: 700ms, body_idle_timeout: 700ms, keepalive_timeout: 1s}";

struct Case {
    /// Requests that are answered, and whether something is refused behind them.
    fate: (usize, bool),
    name: &'static str,
    message: &'static str,
}

/// A case as somebody asks it.
struct Question<'c> {
    case: &'c Case,
    key: &'static str,
    endpoint: &'static str,
    /// The first segment of its paths.
    number: usize,
}

/// What came of a question.
struct Found {
    /// 0 for an answer that was cut.
    statuses: Vec<u16>,
    received: Vec<Request>,
}

fn cases(section: &str) -> Vec<Case> {
    let (_, text) = include_str!("requests.txt")
        .split_once(&format!("[{section}]\n"))
        .expect("a section");
    let lines = text.lines().take_while(|line| !line.is_empty());
    lines.map(Case::read).collect()
}

impl Case {
    fn read(line: &'static str) -> Self {
        let parts: Vec<&str> = line.splitn(3, " | ").collect();
        let [fate, name, message] = parts[..] else {
            panic!("`{line}`");
        };
        let fate = match fate {
            "refused" => (0, true),
            "one" => (1, false),
            "two" => (2, false),
            "one, then refused" => (1, true),
            other => panic!("`{other}`"),
        };
        Self {
            fate,
            name,
            message,
        }
    }
}

impl Question<'_> {
    fn message(&self) -> Vec<u8> {
        let Self { key, number, .. } = self;
        let path = format!("/{number}/{}", self.endpoint);
        let line = format!("Authorization: Bearer {key}\r\n");
        let start = |method: &str| format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{line}");
        let chunked = start("POST") + "Transfer-Encoding: chunked\r\n\r\n";
        let hidden = format!(
            "POST /{number}/hidden/responses HTTP/1.1\r\nHost: h\r\n\
             Authorization: Bearer sk-fast\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        let words = [
            ("{POST}", start("POST")),
            ("{GET}", start("GET")),
            ("{CHUNKED}", chunked),
            ("{HIDDEN}", hidden),
            ("{PATH}", path.clone()),
            ("{KEY}", line.clone()),
            ("{NAME}", (*key).to_owned()),
            ("{BODY}", "Content-Length: 2\r\n\r\n{}".to_owned()),
            ("{CHUNKS}", "\r\n2\r\n{}\r\n0\r\n\r\n".to_owned()),
        ];
        let message = unescaped(self.case.message);
        words.iter().fold(message, |message, (word, meaning)| {
            replaced(&message, word.as_bytes(), meaning.as_bytes())
        })
    }

    /// Whether a path belongs to it.
    fn has(&self, path: &str) -> bool {
        path.starts_with(&format!("/{}/", self.number))
    }

    fn check(&self, found: &Found) -> Result<(), String> {
        let whole = found.received.iter().filter(|one| one.whole).count();
        let good = found.statuses.iter().filter(|status| **status == 200);
        let (expected, refused) = self.case.fate;
        if (whole, good.count()) != (expected, expected) {
            return Err(format!("not {expected} requests"));
        }
        let others = &found.statuses[expected..];
        let are_refusals = others
            .iter()
            .all(|status| matches!(status, 0 | 400 | 405 | 408 | 413));
        if !are_refusals || (!refused && !others.is_empty()) {
            return Err("another answer than expected".to_owned());
        }
        Ok(())
    }
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, escape)) = rest.split_once('\\') {
        bytes.extend(before.bytes());
        let (byte, length) = match escape.as_bytes()[0] {
            b'r' => (b'\r', 1),
            b'n' => (b'\n', 1),
            b't' => (b'\t', 1),
            b'0' => (0, 1),
            b'x' => (u8::from_str_radix(&escape[1..3], 16).unwrap(), 3),
            other => panic!("the escape `{}`", char::from(other)),
        };
        bytes.push(byte);
        rest = &escape[length..];
    }
    bytes.extend(rest.bytes());
    bytes
}

fn replaced(text: &[u8], word: &[u8], meaning: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(word.len()).position(|part| part == word) {
        out.extend(&rest[..at]);
        out.extend(meaning);
        rest = &rest[at + word.len()..];
    }
    out.extend(rest);
    out
}

/// All that a connection is answered with until the proxy ends it.
fn statuses(proxy: &Proxy, bytes: &[u8]) -> Vec<u16> {
    let mut connection = proxy.anonymous().connect();
    connection.send(bytes);
    let mut statuses = Vec::new();
    while let Some(answer) = connection.try_answer() {
        statuses.push(if answer.whole { answer.status } else { 0 });
    }
    statuses
}

/// All questions at once: most wait for the proxy to lose its patience.
fn ask(proxy: &Proxy, questions: &[Question]) -> Vec<Vec<u16>> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = questions
            .iter()
            .map(|question| scope.spawn(|| statuses(proxy, &question.message())))
            .collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

fn assert_one_reading(section: &str) {
    let upstream = wire::upstream();
    let proxy = proxy::new()
        .upstream(&upstream.address)
        .setting(LIMITS)
        .run();
    let cases = cases(section);
    let askers = [
        ("sk-fast", "responses"),
        ("sk-plain", "responses"),
        ("sk-fast", "other"),
    ];
    let questions: Vec<Question> = cases
        .iter()
        .flat_map(|case| askers.map(|asker| (case, asker)))
        .enumerate()
        .map(|(number, (case, (key, endpoint)))| Question {
            case,
            key,
            endpoint,
            number,
        })
        .collect();
    let statuses = ask(&proxy, &questions);
    let lines = proxy.stop();
    let received = upstream.requests();
    wire::assert_books_agree(&received, &lines);
    for (question, statuses) in questions.iter().zip(statuses) {
        let mine = |request: &&Request| question.has(&request.target);
        let found = Found {
            statuses,
            received: received.iter().filter(mine).cloned().collect(),
        };
        if let Err(why) = question.check(&found) {
            let Question { key, endpoint, .. } = question;
            let (name, Found { statuses, .. }) = (question.case.name, &found);
            let received = &found.received;
            panic!("{name}, {key} on {endpoint}: {why}: {statuses:?}, {received:?}");
        }
    }
}

#[test]
fn a_length_beside_a_coding() {
    assert_one_reading("a length beside a coding");
}

#[test]
fn transfer_codings_in_every_disguise() {
    assert_one_reading("codings");
}

#[test]
fn lengths_in_every_disguise() {
    assert_one_reading("lengths");
}

#[test]
fn lines_that_end_otherwise_and_bytes_that_do_not_belong_there() {
    assert_one_reading("lines");
}

#[test]
fn request_lines_and_targets_of_another_form() {
    assert_one_reading("targets");
}

#[test]
fn chunks_in_every_disguise() {
    assert_one_reading("chunks");
}

#[test]
fn headers_that_speak_of_other_headers() {
    assert_one_reading("headers");
}
