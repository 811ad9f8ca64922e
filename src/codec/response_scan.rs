//! What is to be known of a response of HTTP/1.1 before, or otherwise than, Pingora's parser tells it. It is bytes in, an answer
//! out.

use super::framing::{
    TRANSFER_ENCODING, has_two_framings, head_end, is_interim, response_header, status,
};
use super::request_scan::{ChunkScan, Malformed};

/// What is to be known early of the head of a response of HTTP/1.1, from the bytes of a connection as they come: its status,
/// and whether it says more than once how long the body is. By a length and by chunks it is read by its chunks (RFC 9112
/// §6.3); in any case whoever wrote it may not know where it ends. And of its body, whether a chunk has no size.
#[derive(Debug, Default)]
pub struct ResponseScan {
    /// What has come of a head that is not whole.
    head: Vec<u8>,
    is_over: bool,
    status: Option<u16>,
    has_two_framings: bool,
    /// The chunks of the body, as far as they can be followed.
    chunks: Option<ChunkScan>,
    lacks_size: bool,
}

/// The longest head that is looked at. Pingora reads none that is longer.
const MAX_HEAD_BYTES: usize = 1 << 20;

impl ResponseScan {
    /// Takes what came next, of heads and bodies.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.is_over {
            return self.follow_chunks(bytes);
        }
        if self.head.is_empty() {
            // Most heads come in one piece.
            self.head = self.take_heads(bytes).to_vec();
        } else {
            let mut head = std::mem::take(&mut self.head);
            head.extend_from_slice(bytes);
            self.head = self.take_heads(&head).to_vec();
        }
        self.is_over |= self.head.len() > MAX_HEAD_BYTES;
    }

    /// Looks at the heads that are whole, and gives back the beginning of the next; nothing behind the last.
    fn take_heads<'h>(&mut self, mut bytes: &'h [u8]) -> &'h [u8] {
        while let Some(end) = head_end(bytes) {
            let (head, rest) = bytes.split_at(end);
            self.has_two_framings = has_two_framings(head);
            if !is_interim(head) {
                self.status = status(head);
                self.is_over = true;
                let coding = response_header(head, TRANSFER_ENCODING);
                self.chunks = coding.map(|_| ChunkScan::default());
                self.follow_chunks(rest);
                return &[];
            }
            bytes = rest;
        }
        bytes
    }

    /// Where the two differ, what Pingora makes of the chunks counts.
    fn follow_chunks(&mut self, mut bytes: &[u8]) {
        let Some(chunks) = &mut self.chunks else {
            return;
        };
        let followed = chunks.feed(&mut bytes);
        self.lacks_size |= followed == Err(Malformed::NoSize);
        if followed != Ok(false) {
            self.chunks = None;
        }
    }

    /// Whether a chunk came without a size.
    pub fn lacks_size(&self) -> bool {
        self.lacks_size
    }

    /// The status of a head that is whole and no interim one (1xx).
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Whether that head says more than once how long the body is.
    pub fn has_two_framings(&self) -> bool {
        self.has_two_framings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The status of a response that comes in these pieces, and whether it has two framings.
    fn scan(pieces: &[&[u8]]) -> (Option<u16>, bool) {
        let mut scan = ResponseScan::default();
        pieces.iter().for_each(|piece| scan.feed(piece));
        (scan.status(), scan.has_two_framings())
    }

    #[test]
    fn a_response_with_a_length_and_chunks_is_found_however_it_comes() {
        let both =
            "HTTP/1.1 200 OK\r\ncontent-LENGTH: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        let interim = format!("HTTP/1.1 103 Hints\r\nx: y\r\n\r\n{both}");
        for whole in [both, &interim, &both.replace("\r\n", "\n")] {
            for cut in 0..whole.len() {
                let (first, second) = whole.as_bytes().split_at(cut);
                assert_eq!(
                    scan(&[first, second]),
                    (Some(200), true),
                    "{cut} of {whole:?}"
                );
            }
        }
    }

    #[test]
    fn a_length_that_is_told_twice_is_found() {
        for (lines, is_twice) in [
            ("Content-Length: 2\r\nContent-Length: 2\r\n", true),
            ("Content-Length: 2, 2\r\n", true),
            (
                "Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n",
                true,
            ),
            ("Content-Length: 2\r\nX: 2, 2\r\n", false),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
            assert_eq!(scan(&[head.as_bytes()]), (Some(200), is_twice), "{lines:?}");
        }
    }

    #[test]
    fn a_body_or_another_response_adds_no_framing() {
        let length =
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nTransfer-Encoding: chunked\r\n\r\n";
        let interim = "HTTP/1.1 103 Hints\r\nContent-Length: 9\r\n\r\n\
            HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let upgrade =
            "HTTP/1.1 101 Up\r\nContent-Length: 9\r\n\r\nTransfer-Encoding: chunked\r\n\r\n";
        for whole in [length, interim, upgrade] {
            assert!(!scan(&[whole.as_bytes()]).1, "{whole:?}");
        }
    }

    #[test]
    fn an_interim_head_is_not_the_response() {
        let hints = b"HTTP/1.1 103 Hints\r\nx: y\r\n\r\n";
        assert_eq!(scan(&[hints]).0, None);
        assert_eq!(scan(&[hints, b"HTTP/1.1 429 Later\r\n"]).0, None);
        assert_eq!(scan(&[hints, b"HTTP/1.1 429\r\n\r\n"]).0, Some(429));
    }

    #[test]
    fn a_chunk_without_a_size_is_found_however_it_comes() {
        let head = "HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (body, lacks_size) in [
            ("2\r\n{}\r\n0\r\n\r\n", false),
            ("2\r\n{}\r\n\r\n\r\n", true),
            ("\r\n1\r\n}\r\n0\r\n\r\n", true),
            ("2\r\n{}\r\n \r\n", true),
            ("2;x\r\n\r\n\r\n0\r\nx: y\r\n\r\n\r\n", false),
            // What Pingora makes of it is not judged here.
            ("2\r\n{}\r\nzz\r\n\r\n", false),
        ] {
            let whole = [head, body].concat();
            for cut in 0..whole.len() {
                let (first, second) = whole.as_bytes().split_at(cut);
                let mut scan = ResponseScan::default();
                scan.feed(first);
                scan.feed(second);
                assert_eq!(scan.lacks_size(), lacks_size, "{cut} of {whole:?}");
            }
        }
    }
}
