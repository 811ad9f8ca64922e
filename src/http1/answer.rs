//! An upstream's answer over HTTP/1.1 as its bytes say: the head, and where the body ends (RFC 9112 §6 and §7). It reads
//! from no socket; whoever does feeds it what came. It knows nothing of keys or tiers.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::codec::framing;

/// The most header lines of an answer.
const MOST_LINES: usize = 256;
/// The most that stands beside the data of a chunked body in one place, in bytes: behind the length of a chunk, or as trailer.
const MOST_ASIDE: usize = 16 * 1024;
/// Digits of the length of a chunk.
const MOST_DIGITS: usize = 16;

/// Headers that speak of one connection only (RFC 9110 §7.6.1); what frames the body is said anew.
const HOP_BY_HOP: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// It is not HTTP/1.1, or two readers could take it apart in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The head of an answer to a request that is not HEAD.
#[derive(Debug)]
pub struct AnswerHead {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// How long it was.
    pub bytes: usize,
    pub framing: Framing,
    /// The connection may be used again once the body has ended.
    pub keeps_connection: bool,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
}

/// Takes the data of a body out of its framing.
#[derive(Debug)]
pub struct AnswerBody(Place);

/// What comes next in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// So many bytes, and the end.
    Length(u64),
    Close,
    /// The length of a chunk, of which so many digits have come.
    Size {
        digits: usize,
        size: u64,
    },
    /// What may stand behind it, to the end of its line.
    Extension {
        size: u64,
        count: usize,
    },
    SizeEnd(u64),
    Data(u64),
    DataReturn,
    DataEnd,
    /// A line of the trailer, which ends with an empty one.
    Trailer {
        at_start: bool,
        count: usize,
    },
    TrailerEnd {
        is_last: bool,
        count: usize,
    },
    End,
}

/// What [`AnswerBody::next`] finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'b> {
    Data(&'b [u8]),
    /// More has to come.
    Pause,
    End,
}

impl AnswerHead {
    /// Reads a head where all of it is here, and writes its lines to `wire` as a client gets them: status and headers in
    /// their order and spelling, without those of one connection, the header `replaced`, and the empty line.
    ///
    /// # Errors
    /// Where it has not one reading only.
    pub fn read(
        bytes: &[u8],
        replaced: &HeaderName,
        wire: &mut Vec<u8>,
    ) -> Result<Option<Self>, Malformed> {
        let mut lines = [const { std::mem::MaybeUninit::uninit() }; MOST_LINES];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let status = config
            .parse_response_with_uninit_headers(&mut parsed, bytes, &mut lines)
            .map_err(|_| Malformed)?;
        let httparse::Status::Complete(length) = status else {
            return Ok(None);
        };
        let code = parsed.code.ok_or(Malformed)?;
        let status = StatusCode::from_u16(code).map_err(|_| Malformed)?;
        for part in [
            "HTTP/1.1 ",
            status.as_str(),
            " ",
            parsed.reason.unwrap_or_default(),
            "\r\n",
        ] {
            wire.extend_from_slice(part.as_bytes());
        }
        let mut headers = HeaderMap::with_capacity(parsed.headers.len());
        for line in &*parsed.headers {
            let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed)?;
            let value = HeaderValue::from_bytes(line.value).map_err(|_| Malformed)?;
            let upgrades = status == StatusCode::SWITCHING_PROTOCOLS
                && (name == header::CONNECTION || name == header::UPGRADE);
            let stays = upgrades || !HOP_BY_HOP.contains(&name.as_str());
            if stays && name != replaced {
                framing::write_line(wire, line.name.as_bytes(), line.value);
            }
            headers.append(name, value);
        }
        if !framing::is_unambiguous_answer(&headers) {
            return Err(Malformed);
        }
        let framing = Framing::of(status, &headers)?;
        let is_1_1 = parsed.version == Some(1);
        Ok(Some(Self {
            status,
            bytes: length,
            framing,
            keeps_connection: framing != Framing::Close && keeps_connection(&headers, is_1_1),
            headers,
        }))
    }
}

impl Framing {
    /// Of headers in which at most one says so.
    fn of(status: StatusCode, headers: &HeaderMap) -> Result<Self, Malformed> {
        if status.is_informational() || matches!(status.as_u16(), 204 | 304) {
            return Ok(Framing::Length(0));
        }
        if headers.contains_key(header::TRANSFER_ENCODING) {
            return Ok(Framing::Chunked);
        }
        let Some(length) = headers.get(header::CONTENT_LENGTH) else {
            return Ok(Framing::Close);
        };
        let length = length.to_str().ok().and_then(|digits| digits.parse().ok());
        length.map(Framing::Length).ok_or(Malformed)
    }
}

/// RFC 9112 §9.3. An answer of HTTP/1.0 in chunks has a framing that its version does not know (§6.1).
fn keeps_connection(headers: &HeaderMap, is_1_1: bool) -> bool {
    let says = |option: &str| {
        let mut said = framing::list_members(headers, &header::CONNECTION);
        said.any(|word| word.eq_ignore_ascii_case(option.as_bytes()))
    };
    match is_1_1 {
        true => !says("close"),
        false => {
            says("keep-alive") && !says("close") && !headers.contains_key(header::TRANSFER_ENCODING)
        }
    }
}

impl AnswerBody {
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(length) => Place::Length(length),
            Framing::Chunked => Place::SIZE,
            Framing::Close => Place::Close,
        })
    }

    /// Whether an end of the connection is the end of the body.
    pub fn may_end_here(&self) -> bool {
        matches!(self.0, Place::Close | Place::End)
    }

    /// Takes the next piece of data from the front of `bytes`, or what comes before it.
    ///
    /// # Errors
    /// Where a chunked body is not one.
    pub fn next<'b>(&mut self, bytes: &mut &'b [u8]) -> Result<Piece<'b>, Malformed> {
        loop {
            match self.0 {
                Place::Length(0) | Place::End => {
                    self.0 = Place::End;
                    return Ok(Piece::End);
                }
                _ if bytes.is_empty() => return Ok(Piece::Pause),
                Place::Close => return Ok(Piece::Data(std::mem::take(bytes))),
                Place::Length(left) => {
                    let data = take(bytes, left);
                    self.0 = Place::Length(left - data.len() as u64);
                    return Ok(Piece::Data(data));
                }
                Place::Data(left) => {
                    let data = take(bytes, left);
                    self.0 = match left - data.len() as u64 {
                        0 => Place::DataReturn,
                        left => Place::Data(left),
                    };
                    return Ok(Piece::Data(data));
                }
                place => self.0 = place.after(take(bytes, 1)[0])?,
            }
        }
    }
}

impl Place {
    const SIZE: Place = Place::Size { digits: 0, size: 0 };

    /// Behind this byte, which is not data.
    fn after(self, byte: u8) -> Result<Place, Malformed> {
        let is_plain = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        let next = match (self, byte) {
            (Place::Size { digits, size }, _)
                if byte.is_ascii_hexdigit() && digits < MOST_DIGITS =>
            {
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                Place::Size {
                    digits: digits + 1,
                    size: size << 4 | u64::from(digit),
                }
            }
            (Place::Size { digits: 1.., size }, b'\r') => Place::SizeEnd(size),
            (Place::Size { digits: 1.., size }, b';' | b' ' | b'\t') => {
                Place::Extension { size, count: 0 }
            }
            (Place::Extension { size, .. }, b'\r') => Place::SizeEnd(size),
            (Place::Extension { size, count }, _) if is_plain && count < MOST_ASIDE => {
                Place::Extension {
                    size,
                    count: count + 1,
                }
            }
            (Place::SizeEnd(0), b'\n') => Place::Trailer {
                at_start: true,
                count: 0,
            },
            (Place::SizeEnd(size), b'\n') => Place::Data(size),
            (Place::DataReturn, b'\r') => Place::DataEnd,
            (Place::DataEnd, b'\n') => Place::SIZE,
            (Place::Trailer { at_start, count }, b'\r') => Place::TrailerEnd {
                is_last: at_start,
                count,
            },
            (Place::Trailer { count, .. }, _) if is_plain && count < MOST_ASIDE => Place::Trailer {
                at_start: false,
                count: count + 1,
            },
            (Place::TrailerEnd { is_last: true, .. }, b'\n') => Place::End,
            (Place::TrailerEnd { count, .. }, b'\n') => Place::Trailer {
                at_start: true,
                count,
            },
            _ => return Err(Malformed),
        };
        Ok(next)
    }
}

/// Takes at most so many bytes from the front.
fn take<'b>(bytes: &mut &'b [u8], most: u64) -> &'b [u8] {
    let count = most.min(bytes.len() as u64) as usize;
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLACED: HeaderName = HeaderName::from_static("x-own");

    fn head(bytes: &str) -> Result<Option<(AnswerHead, String)>, Malformed> {
        let mut wire = Vec::new();
        let head = AnswerHead::read(bytes.as_bytes(), &REPLACED, &mut wire)?;
        Ok(head.map(|head| (head, String::from_utf8(wire).unwrap())))
    }

    /// The data of a body, fed in pieces of this many bytes, and what is left behind its end.
    fn data(framing: Framing, bytes: &[u8], piece: usize) -> Result<(Vec<u8>, usize), Malformed> {
        let (mut body, mut data, mut used) = (AnswerBody::new(framing), Vec::new(), 0);
        for piece in bytes.chunks(piece) {
            let mut left = piece;
            loop {
                match body.next(&mut left)? {
                    Piece::Data(more) => data.extend_from_slice(more),
                    Piece::Pause => break,
                    Piece::End => return Ok((data, bytes.len() - used - piece.len() + left.len())),
                }
            }
            used += piece.len();
        }
        assert!(body.may_end_here(), "it is cut");
        Ok((data, 0))
    }

    #[test]
    fn a_head_keeps_its_lines_but_for_those_of_the_connection() {
        let came = "HTTP/1.0 299 Fine so\r\nDATE:then\r\nX-b:  2 \r\nConnection: keep-alive, x\r\nX-Own: 1\r\n\
            Keep-Alive: timeout=5\r\nTransfer-Encoding: chunked\r\nx-B: 3\r\n\r\nrest";
        let (head, wire) = head(came).unwrap().unwrap();
        assert_eq!(
            wire,
            "HTTP/1.1 299 Fine so\r\nDATE: then\r\nX-b: 2\r\nx-B: 3\r\n"
        );
        assert_eq!((head.status.as_u16(), head.bytes), (299, came.len() - 4));
        assert_eq!(head.framing, Framing::Chunked);
        assert!(!head.keeps_connection);
        assert_eq!(head.headers.get_all("x-b").iter().count(), 2);
    }

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
        for length in 0..whole.len() {
            assert!(head(&whole[..length]).unwrap().is_none());
        }
        let (head, _) = head(whole).unwrap().unwrap();
        assert_eq!(head.framing, Framing::Length(2));
        assert!(head.keeps_connection);
    }

    #[test]
    fn the_framing_follows_from_status_and_headers() {
        for (came, framing, keeps) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Framing::Close, false),
            ("HTTP/1.1 204 N\r\n\r\n", Framing::Length(0), true),
            (
                "HTTP/1.1 103 E\r\nContent-Length: 5\r\n\r\n",
                Framing::Length(0),
                true,
            ),
            (
                "HTTP/1.1 304 N\r\nContent-Length: 5\r\n\r\n",
                Framing::Length(0),
                true,
            ),
            (
                "HTTP/1.1 200 O\r\nContent-Length: 5\r\nConnection: a, Close\r\n\r\n",
                Framing::Length(5),
                false,
            ),
            (
                "HTTP/1.0 200 O\r\nContent-Length: 5\r\n\r\n",
                Framing::Length(5),
                false,
            ),
            (
                "HTTP/1.0 200 O\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
                Framing::Length(5),
                true,
            ),
            (
                "HTTP/1.0 200 O\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n",
                Framing::Chunked,
                false,
            ),
        ] {
            let (head, _) = head(came).unwrap().unwrap();
            assert_eq!(
                (head.framing, head.keeps_connection),
                (framing, keeps),
                "{came:?}"
            );
        }
    }

    #[test]
    fn a_head_with_two_readings_is_refused() {
        for lines in [
            "Content-Length: 2\r\nContent-Length: 2\r\n",
            "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length : 2\r\n",
            "Content-Length:\r\n 2\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "A: \0\r\n",
            "A: b\rC: d\r\n",
        ] {
            assert!(
                head(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).is_err(),
                "{lines:?}"
            );
        }
        for whole in [
            "HTTP/2.0 200 OK\r\n\r\n",
            "hello\r\n\r\n",
            "HTTP/1.1 20 X\r\n\r\n",
        ] {
            assert!(head(whole).is_err(), "{whole:?}");
        }
    }

    #[test]
    fn data_is_taken_out_however_it_is_split() {
        let chunks = b"3\r\nabc\r\n0A;x=\"y\"\r\n0123456789\r\n000\r\nA: b\r\nC: d\r\n\r\nnext";
        for piece in 1..chunks.len() {
            let (data, left) = data(Framing::Chunked, chunks, piece).unwrap();
            assert_eq!((&data[..], left), (&b"abc0123456789"[..], 4), "by {piece}");
        }
        for piece in 1..5 {
            assert_eq!(
                data(Framing::Length(3), b"abcd", piece).unwrap(),
                (b"abc".to_vec(), 1)
            );
            assert_eq!(
                data(Framing::Close, b"abcd", piece).unwrap(),
                (b"abcd".to_vec(), 0)
            );
        }
        assert_eq!(data(Framing::Length(0), b"x", 1).unwrap(), (Vec::new(), 1));
    }

    #[test]
    fn chunks_that_are_none_are_refused() {
        for chunks in [
            "0x2\r\nab\r\n",
            "\r\n",
            "2\nab\r\n",
            "2\r\nab0\r\n",
            "2\r\nabc\r\n",
            "-2\r\nab\r\n",
            ";x\r\n",
            "2;\n\r\nab\r\n",
            "11111111111111111\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\nA\0: b\r\n\r\n",
        ] {
            assert_eq!(
                data(Framing::Chunked, chunks.as_bytes(), 1),
                Err(Malformed),
                "{chunks:?}"
            );
        }
        let endless = format!("0\r\n{}", "a: b\r\n".repeat(MOST_ASIDE));
        assert!(data(Framing::Chunked, endless.as_bytes(), 7).is_err());
    }

    #[test]
    fn what_has_not_ended_may_not_end_with_the_connection() {
        for chunks in [
            "",
            "2\r\na",
            "2\r\nab",
            "2\r\nab\r\n",
            "0\r\n",
            "0\r\na: b\r\n",
        ] {
            let mut body = AnswerBody::new(Framing::Chunked);
            let mut left = chunks.as_bytes();
            while let Piece::Data(_) = body.next(&mut left).unwrap() {}
            assert!(!body.may_end_here(), "{chunks:?}");
        }
        assert!(!AnswerBody::new(Framing::Length(1)).may_end_here());
    }
}
