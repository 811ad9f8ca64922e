//! The reader of server-sent events, held against one that has the whole stream and goes by lines: the same data however
//! the stream arrives, and no memory for it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tiergate_fuzz::sse::{EVENT_TYPE_BYTES, EventStream, Part};
use tiergate_fuzz::{Meter, pieces};

fuzz_target!(|input: &[u8]| {
    let Some((seed, stream)) = input.split_first_chunk::<2>() else {
        return;
    };
    let expected = expected(stream);
    let single: Vec<&[u8]> = stream.chunks(1).collect();
    for pieces in [
        &[stream][..],
        &pieces(stream, u16::from_le_bytes(*seed)),
        &single,
    ] {
        assert_eq!(read(pieces), expected);
        check_memory(pieces);
    }
});

/// The type and the data of every event.
fn read(pieces: &[&[u8]]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut events, mut data) = (Vec::new(), Vec::new());
    let mut take = |part: Part<'_>| match part {
        Part::Data(bytes) => {
            assert!(!bytes.is_empty());
            data.extend_from_slice(bytes);
        }
        Part::End(kind) => events.push((kind.to_vec(), std::mem::take(&mut data))),
    };
    let mut stream = EventStream::new();
    pieces
        .iter()
        .for_each(|piece| stream.feed(piece, &mut take));
    stream.finish(&mut take);
    events
}

fn check_memory(pieces: &[&[u8]]) {
    let meter = Meter::start();
    let mut stream = EventStream::new();
    pieces
        .iter()
        .for_each(|piece| stream.feed(piece, &mut |_| {}));
    assert_eq!(meter.peak_bytes(), 0);
}

/// WHATWG HTML §9.2.6, but that the end of the stream ends its last event, and its last line if that has a colon: `data`
/// may have been cut off of another name.
fn expected(stream: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let (mut events, mut data, mut kind) = (Vec::new(), None::<Vec<u8>>, Vec::new());
    for line in lines(stream) {
        let colon = line.iter().position(|&byte| byte == b':');
        let (field, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (&line[..], &b""[..]),
        };
        if line.is_empty() {
            let kind = std::mem::take(&mut kind);
            events.extend(data.take().map(|data| (told(kind), data)));
        } else if field == b"event" {
            kind = value.strip_prefix(b" ").unwrap_or(value).to_vec();
        } else if field == b"data" {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            data = Some(match data {
                Some(before) => [&before[..], value].join(&b'\n'),
                None => value.to_vec(),
            });
        }
    }
    events.extend(data.map(|data| (told(kind), data)));
    events
}

/// A type that is too long counts as none.
fn told(kind: Vec<u8>) -> Vec<u8> {
    if kind.len() > EVENT_TYPE_BYTES {
        Vec::new()
    } else {
        kind
    }
}

fn lines(stream: &[u8]) -> Vec<Vec<u8>> {
    let (mut lines, mut line, mut rest) = (Vec::new(), Vec::new(), stream);
    while !rest.is_empty() {
        rest = match rest {
            [b'\r', b'\n', behind @ ..] | [b'\r' | b'\n', behind @ ..] => {
                lines.push(std::mem::take(&mut line));
                behind
            }
            [byte, behind @ ..] => {
                line.push(*byte);
                behind
            }
            [] => rest,
        };
    }
    if line.contains(&b':') {
        lines.push(line);
    }
    lines
}
