//! Whether all who read the chunks of a connection's requests would take them apart alike. Pingora's parser takes any byte in
//! a chunk extension and any line for a trailer, and shows neither. Where a reader before it ends a line at a bare LF, the
//! two find different requests in the same bytes. So they are looked at as they come. It is bytes in, an answer out.

use memchr::memmem;

use super::framing::name_and_value;

/// The longest line of a chunk's size and extension, or of a trailer, in bytes. Pingora takes shorter ones only.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// What of the memory for a head is kept for the next one, in bytes.
const KEPT_BYTES: usize = 4 * 1024;
const HEAD_END: &[u8] = b"\r\n\r\n";
const CRLF_BYTES: u64 = 2;

/// How a request's head says that its body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// By its length in bytes; 0 where there is none.
    Length(u64),
    /// By chunks, each with its length.
    Chunked,
}

/// The requests of one connection of HTTP/1.1.
#[derive(Debug, Default)]
pub struct RequestScan {
    state: State,
    /// What came behind the last body.
    next_head: Vec<u8>,
}

#[derive(Debug, Default)]
enum State {
    /// A head is on its way, or awaited.
    #[default]
    Head,
    /// So much is left of a body.
    Length(u64),
    Chunks(ChunkScan),
    /// A body has chunks that have more than one reading.
    Malformed,
    /// What comes is no request any more.
    Over,
}

/// The chunks of one body (RFC 9112 §7.1).
#[derive(Debug, Default)]
pub(super) struct ChunkScan {
    /// What has come of a line that is not whole.
    line: Vec<u8>,
    /// Bytes left of a chunk's data and of the line end behind it.
    left: u64,
    /// The last chunk was here: lines are those of trailers.
    is_last: bool,
}

/// A line that is not what the standard says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// There is nothing where a chunk's size is to be. Pingora 0.9.1 takes it for that of the last chunk.
    NoSize,
    Other,
}

impl RequestScan {
    /// Takes what came next.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Head => {
                    self.next_head.extend_from_slice(bytes);
                    return;
                }
                State::Length(left) => {
                    *left -= skip(&mut bytes, *left);
                    if *left == 0 {
                        self.state = State::Head;
                    }
                }
                State::Chunks(chunks) => match chunks.feed(&mut bytes) {
                    Ok(true) => self.state = State::Head,
                    Ok(false) => {}
                    Err(_) => self.state = State::Malformed,
                },
                State::Malformed | State::Over => return,
            }
        }
    }

    /// The head that came was read, and says this of its body.
    pub fn begin_body(&mut self, framing: BodyFraming) {
        let mut came = std::mem::take(&mut self.next_head);
        // Empty lines before a head are passed over (RFC 9112 §2.2).
        let start = came.iter().position(|byte| !b"\r\n".contains(byte));
        let head = &came[start.unwrap_or(0)..];
        let Some(end) = memmem::find(head, HEAD_END) else {
            return self.end();
        };
        self.state = match framing {
            BodyFraming::Length(0) => State::Head,
            BodyFraming::Length(length) => State::Length(length),
            BodyFraming::Chunked => State::Chunks(ChunkScan::default()),
        };
        self.feed(&head[end + HEAD_END.len()..]);
        if self.next_head.is_empty() && came.capacity() <= KEPT_BYTES {
            came.clear();
            self.next_head = came;
        }
    }

    /// No further request comes: another protocol is spoken from here on.
    pub fn end(&mut self) {
        *self = Self {
            state: State::Over,
            next_head: Vec::new(),
        };
    }

    /// Whether the chunks of a body that came have more than one reading.
    pub fn is_malformed(&self) -> bool {
        matches!(self.state, State::Malformed)
    }
}

impl ChunkScan {
    /// Takes off `bytes` what belongs to the body. True at its end.
    pub(super) fn feed(&mut self, bytes: &mut &[u8]) -> Result<bool, Malformed> {
        while !bytes.is_empty() {
            if self.left > 0 {
                self.left -= skip(bytes, self.left);
                continue;
            }
            let end = memchr::memchr(b'\n', bytes);
            let (part, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            *bytes = rest;
            self.line.extend_from_slice(part);
            if self.line.len() > MAX_LINE_BYTES {
                return Err(Malformed::Other);
            }
            if end.is_some() && self.end_line()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A line is whole. True where it is the last one.
    fn end_line(&mut self) -> Result<bool, Malformed> {
        // Its memory is for the next one.
        let mut line = std::mem::take(&mut self.line);
        let is_end = self.take_line(line.strip_suffix(b"\n").unwrap_or(&line));
        line.clear();
        self.line = line;
        is_end
    }

    fn take_line(&mut self, line: &[u8]) -> Result<bool, Malformed> {
        if self.is_last {
            return match line {
                b"\r" => Ok(true),
                trailer => name_and_value(trailer)
                    .map(|_| false)
                    .ok_or(Malformed::Other),
            };
        }
        if line.trim_ascii().is_empty() {
            return Err(Malformed::NoSize);
        }
        match chunk_size(line).ok_or(Malformed::Other)? {
            0 => self.is_last = true,
            size => self.left = size.checked_add(CRLF_BYTES).ok_or(Malformed::Other)?,
        }
        Ok(false)
    }
}

/// Drops up to `most` bytes from the front, and says how many.
fn skip(bytes: &mut &[u8], most: u64) -> u64 {
    let count = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
    *bytes = &bytes[count..];
    count as u64
}

/// The size in a chunk's first line, which is without its LF.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\r")?;
    let is_text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    let mut parts = line.splitn(2, |byte| *byte == b';');
    let digits = parts.next()?.trim_ascii_end();
    let is_plain = digits.iter().all(u8::is_ascii_hexdigit) && line.iter().all(is_text);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_plain)?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// A request with this body, in pieces of every size, and whether another one is awaited behind it.
    fn assert_scanned(body: &[u8], is_malformed: bool, is_whole: bool) {
        let message = [HEAD, body].concat();
        for size in 1..=message.len() {
            let mut scan = RequestScan::default();
            let mut is_begun = false;
            let mut came = 0;
            for piece in message.chunks(size) {
                scan.feed(piece);
                came += piece.len();
                if came >= HEAD.len() && !is_begun {
                    is_begun = true;
                    scan.begin_body(BodyFraming::Chunked);
                }
            }
            let text = body.escape_ascii();
            assert_eq!(scan.is_malformed(), is_malformed, "{text} by {size}");
            assert_eq!(matches!(scan.state, State::Head), is_whole, "{text}");
        }
    }

    #[test]
    fn chunks_that_all_read_alike_pass() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"2\r\n{}\r\n0\r\n\r\n",
            b"0002 ;a=b; c=\"d\te\";\xc3\xa4\r\n\n\n\r\n00\r\nx: y\r\nz:\r\n\r\n",
            b"2\r\n{}\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
        ] {
            assert_scanned(body, false, true);
        }
        assert_scanned(b"ffffff\r\n{}\r\n0\r\n\r\n", false, false);
    }

    #[test]
    fn lines_that_another_may_end_elsewhere_are_found() {
        for body in [
            &b"2;\nxx\r\nAB\r\n0\r\n\r\n"[..],
            b"2;a=b\nxx\r\n",
            b"2;a\rb\r\n",
            b"2;a\0\r\n",
            b"2\n{}\r\n",
            b"x\r\n",
            b"\r\n",
            b"0\r\nx: y\n",
            b"0\r\n\n",
            b"0\r\nx: y\r\n z\r\n",
            b"0\r\nGET /x HTTP/1.1\r\n",
            b"fffffffffffffffff\r\n",
            b"ffffffffffffffff\r\n",
        ] {
            assert_scanned(body, true, false);
        }
    }

    #[test]
    fn requests_that_follow_each_other_are_told_apart() {
        let mut scan = RequestScan::default();
        scan.feed(b"POST / HTTP/1.1\r\n\r\n0\n;\n");
        scan.feed(b"\nGET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\n\r\n2\r\n");
        scan.begin_body(BodyFraming::Length(5));
        scan.begin_body(BodyFraming::Length(0));
        scan.begin_body(BodyFraming::Chunked);
        assert!(!scan.is_malformed());
        scan.feed(b"{}\r\n0;\n");
        assert!(scan.is_malformed());
    }

    #[test]
    fn what_is_no_request_is_not_looked_at() {
        let mut scan = RequestScan::default();
        scan.feed(b"GET / HTTP/1.1\r\n\r\n");
        scan.begin_body(BodyFraming::Length(0));
        scan.end();
        scan.feed(&[b'x'; 1000]);
        assert!(!scan.is_malformed() && scan.next_head.is_empty());
    }
}
