//! Content codings (RFC 9110 §8.4), decoded piece by piece. It holds no more than one piece; how much may come out of a body
//! that is sent on decoded is for whoever takes the pieces to limit.
//!
//! What is sent on decoded is decoded strictly ([`Decoder::new`]). What is only read, because its bytes go on as they came or
//! nobody else reads them, is decoded as lenient readers do ([`Decoder::lenient`]); of an answer the first bytes have the last
//! word on whether it is coded at all ([`AnswerDecoder`]).

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use crate::codec::error::{Cause, Refusal};
use crate::codec::framing::list_members;

/// How much is decoded at a time, in bytes.
const PIECE: usize = 32 * 1024;
/// The largest zstd window, as a power of two: the 8 MiB that RFC 9659 sets for the `zstd` content coding.
const ZSTD_WINDOW_LOG: u32 = 23;
/// What a decoder holds besides its window and its piece, in bytes: tables, measured and rounded up.
const TABLES: u64 = 128 * 1024;
/// The largest deflate window, as a power of two; all that the format has.
const DEFLATE_WINDOW_LOG: u8 = 15;
/// How many members of a gzip body a lenient decoder reads (RFC 1952 §2.2). Each costs a new state, which is much for the few
/// bytes that it may have.
const MEMBERS: u32 = 1024;
/// How many bytes it takes at most to tell raw deflate from text. What is none fails within some ten of them nearly always, and
/// what is has given its first byte behind its tables, which have less than 600.
const OPENING_BYTES: usize = 1024;
/// How much of a coded answer is read once it is decoded, in bytes: small data may decode to any amount.
const ANSWER_BYTES: u64 = 256 << 20;

/// A content coding that can be decoded (RFC 9110 §8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// The gzip format (RFC 1952), also named `x-gzip`.
    Gzip,
    /// Zstandard (RFC 8878), with a window of at most 8 MiB.
    Zstd,
    /// Brotli (RFC 7932), named `br`.
    Brotli,
    /// The zlib format, as RFC 9110 §8.4.1.2 has it. Lenient readers take raw deflate for it as well.
    Deflate,
}

/// A body has several codings, or one that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsupportedCoding;

/// What the head of a message says of its body's coding.
pub type NamedCoding = Result<Option<Coding>, UnsupportedCoding>;

/// One coded body on its way through.
pub struct Decoder {
    engine: Engine,
    piece: Box<[u8]>,
    /// The coded data said that it ends here; nothing may follow.
    ended: bool,
    /// The last piece came out full, so that more may be left inside.
    full: bool,
}

/// The body of an answer, decoded where it is coded.
pub struct AnswerDecoder {
    named: NamedCoding,
    /// What came while it could not be told what it is, `OPENING_BYTES` at most.
    held: Vec<u8>,
    body: AnswerBody,
    /// How many more decoded bytes are given.
    left: u64,
}

enum AnswerBody {
    /// Nothing of it has come that tells.
    Unknown,
    Plain,
    Coded(Decoder),
    /// It has a coding that cannot be decoded.
    Unreadable,
}

enum Engine {
    /// And how many more members may follow.
    Gzip(Decompress, u32),
    Deflate(Decompress),
    /// Either form of it, until the first two bytes tell which; the first, once it is here.
    AnyDeflate(Option<u8>),
    Zstd(DCtx<'static>),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
}

/// What one step of an engine did.
struct Step {
    consumed: usize,
    produced: usize,
    ended: bool,
}

impl Coding {
    /// The one coding of a body with these headers; none for a body that is as it is. `identity`, which changes nothing, does
    /// not count.
    ///
    /// # Errors
    /// Where there are several codings, or one that is not known.
    pub fn sole(headers: &HeaderMap) -> NamedCoding {
        let mut sole = None;
        for name in list_members(headers, &CONTENT_ENCODING) {
            if name.is_empty() || name.eq_ignore_ascii_case(b"identity") {
                continue;
            }
            let name = std::str::from_utf8(name).map_err(|_| UnsupportedCoding)?;
            let coding = Coding::named(name).ok_or(UnsupportedCoding)?;
            if sole.replace(coding).is_some() {
                return Err(UnsupportedCoding);
            }
        }
        Ok(sole)
    }

    /// The coding of that name in `Content-Encoding`, any case.
    pub fn named(name: &str) -> Option<Self> {
        const NAMES: [(&str, Coding); 5] = [
            ("gzip", Coding::Gzip),
            ("x-gzip", Coding::Gzip),
            ("zstd", Coding::Zstd),
            ("br", Coding::Brotli),
            ("deflate", Coding::Deflate),
        ];
        NAMES
            .iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known))
            .map(|(_, coding)| *coding)
    }

    /// The coding that an answer has which begins so; none where it takes more bytes to tell. Some upstreams name a coding and
    /// send the body as it is (<https://github.com/preset-io/agor/pull/1104>), others a word that is none, such as `none`,
    /// against compression on the way (<https://github.com/vercel/ai/pull/17007>): clients take both for what they are.
    ///
    /// The coding is an error where it has several, or one that is not known.
    pub fn of_answer(named: NamedCoding, opening: &[u8]) -> Option<NamedCoding> {
        let first = *opening.first()?;
        match named {
            _ if !begins_plain(first) => Some(named),
            // Raw deflate may begin with the letters of text.
            Ok(Some(Coding::Deflate)) => {
                let is_coded = begins_deflated(opening)?;
                Some(Ok(is_coded.then_some(Coding::Deflate)))
            }
            Ok(Some(coding)) if coding.may_begin_with(first) => Some(named),
            _ => Some(Ok(None)),
        }
    }

    /// Whether coded data may begin with this byte. A brotli stream may with any, for it has no magic number.
    fn may_begin_with(self, first: u8) -> bool {
        match self {
            // RFC 1952 §2.3.1.
            Coding::Gzip => first == 0x1f,
            // The magic number of a frame, or of one that is skipped (RFC 8878 §3.1), but for the one that begins as an array.
            Coding::Zstd => first == 0x28 || (first & 0xf0 == 0x50 && first != b'['),
            // Raw deflate has no magic number either.
            Coding::Deflate | Coding::Brotli => true,
        }
    }
}

impl Decoder {
    /// A decoder at the beginning of a body.
    pub fn new(coding: Coding) -> Self {
        let engine = match coding {
            Coding::Gzip => Engine::Gzip(gzip_engine(), 0),
            Coding::Deflate => Engine::Deflate(Decompress::new(true)),
            Coding::Zstd => Engine::Zstd(zstd_engine()),
            Coding::Brotli => Engine::Brotli(Box::new(BrotliState::new(
                StandardAlloc::default(),
                StandardAlloc::default(),
                StandardAlloc::default(),
            ))),
        };
        Self {
            engine,
            piece: vec![0; PIECE].into_boxed_slice(),
            ended: false,
            full: false,
        }
    }

    /// A decoder of what is only read, and so as the most lenient readers do: a gzip body may have several members (RFC 1952
    /// §2.2), and deflate may come without the zlib format (RFC 9110 §8.4.1.2).
    pub fn lenient(coding: Coding) -> Self {
        let mut decoder = Self::new(coding);
        match &mut decoder.engine {
            Engine::Gzip(_, members) => *members = MEMBERS,
            engine @ Engine::Deflate(_) => *engine = Engine::AnyDeflate(None),
            Engine::AnyDeflate(_) | Engine::Zstd(_) | Engine::Brotli(_) => {}
        }
        decoder
    }

    /// What it holds at the moment, in bytes. It grows to the window that the data ask for as soon as they do.
    pub fn memory(&self) -> u64 {
        PIECE as u64 + self.engine.memory()
    }

    /// Decodes a chunk and gives what comes out to `take`, whose refusal ends it.
    ///
    /// # Errors
    /// `invalid_content_encoding` where the data are broken or go on behind their end.
    pub fn push(
        &mut self,
        mut chunk: &[u8],
        take: &mut dyn FnMut(&[u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        while let Some(piece) = self.next_piece(&mut chunk)? {
            take(piece)?;
        }
        Ok(())
    }

    /// The next piece that comes out of a chunk, maybe empty; what was used for it is taken off the chunk. None where nothing
    /// is left of it.
    ///
    /// # Errors
    /// Those of [`Decoder::push`].
    pub fn next_piece(&mut self, chunk: &mut &[u8]) -> Result<Option<&[u8]>, Refusal> {
        if chunk.is_empty() && (self.ended || !self.full) {
            return Ok(None);
        }
        if self.ended && !self.engine.begin_again() {
            return Err(broken("data follow its end"));
        }
        let step = self.engine.step(chunk, &mut self.piece)?;
        if step.consumed == 0 && step.produced == 0 && !chunk.is_empty() {
            return Err(broken("it cannot be decoded"));
        }
        *chunk = &chunk[step.consumed..];
        self.ended = step.ended;
        self.full = step.produced == self.piece.len();
        Ok(Some(&self.piece[..step.produced]))
    }

    /// # Errors
    /// `invalid_content_encoding` where the data stopped before their end. An empty body is no coded body either.
    pub fn finish(&self) -> Result<(), Refusal> {
        if self.ended {
            Ok(())
        } else {
            Err(broken("it is cut off"))
        }
    }
}

impl AnswerDecoder {
    /// A decoder at the beginning of the body of an answer with these headers.
    pub fn new(headers: &HeaderMap) -> Self {
        Self {
            named: Coding::sole(headers),
            held: Vec::new(),
            body: AnswerBody::Unknown,
            left: ANSWER_BYTES,
        }
    }

    /// Gives a chunk to `take`, decoded if it is coded, and what was held before it.
    ///
    /// # Errors
    /// Where the body cannot be decoded, more comes out of it than is read of any, or `take` refuses.
    pub fn push(
        &mut self,
        chunk: &[u8],
        take: &mut dyn FnMut(&[u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        self.begin(chunk);
        if matches!(self.body, AnswerBody::Unknown) {
            self.held.extend_from_slice(chunk);
            return Ok(());
        }
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.give(&held, take)?;
        }
        self.give(chunk, take)
    }

    /// The body has ended: gives what is still held, which is too little to be coded.
    ///
    /// # Errors
    /// Where `take` refuses.
    pub fn finish(
        &mut self,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        match std::mem::take(&mut self.held) {
            held if held.is_empty() => Ok(()),
            held => take(&held),
        }
    }

    fn give(
        &mut self,
        piece: &[u8],
        take: &mut dyn FnMut(&[u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let left = &mut self.left;
        match &mut self.body {
            AnswerBody::Plain => take(piece),
            AnswerBody::Coded(decoder) => decoder.push(piece, &mut |piece| {
                *left = left
                    .checked_sub(piece.len() as u64)
                    .ok_or(Cause::DecodedBodyTooLarge)?;
                take(piece)
            }),
            AnswerBody::Unknown => Ok(()),
            AnswerBody::Unreadable => Err(Cause::UnsupportedContentEncoding.into()),
        }
    }

    /// A chunk is about to be pushed: whether it is coded is mostly known from the first byte on.
    pub fn begin(&mut self, chunk: &[u8]) {
        if !matches!(self.body, AnswerBody::Unknown) {
            return;
        }
        let coding = match self.held.as_slice() {
            [] => Coding::of_answer(self.named, chunk),
            held => {
                let chunk = &chunk[..chunk.len().min(OPENING_BYTES)];
                Coding::of_answer(self.named, &[held, chunk].concat())
            }
        };
        self.body = match coding {
            None => AnswerBody::Unknown,
            Some(Ok(None)) => AnswerBody::Plain,
            Some(Ok(Some(coding))) => AnswerBody::Coded(Decoder::lenient(coding)),
            Some(Err(UnsupportedCoding)) => AnswerBody::Unreadable,
        };
    }

    /// Whether what is pushed comes out as it is.
    pub fn is_plain(&self) -> bool {
        matches!(self.body, AnswerBody::Plain) && self.held.is_empty()
    }

    /// Whether the body may end here.
    pub fn ends_here(&self) -> bool {
        match &self.body {
            AnswerBody::Unknown | AnswerBody::Plain => true,
            AnswerBody::Coded(decoder) => decoder.finish().is_ok(),
            AnswerBody::Unreadable => false,
        }
    }
}

/// Whether an event stream or a JSON document may begin with this byte; a byte order mark and white space count.
fn begins_plain(first: u8) -> bool {
    first.is_ascii_whitespace() || b"{[:deir\xef".contains(&first)
}

/// Whether these bytes, which may begin a text, begin one in raw deflate instead: one that is read here, which begins as an event
/// stream or a JSON document does. None where it takes more of them to tell, of which each has its own turn, so that the answer
/// is the same however they come.
fn begins_deflated(opening: &[u8]) -> Option<bool> {
    let mut engine = Decompress::new(false);
    for byte in opening.iter().take(OPENING_BYTES) {
        let mut decoded = [0];
        match flate_step(&mut engine, &[*byte], &mut decoded) {
            Ok(step) if step.produced > 0 => return Some(begins_plain(decoded[0])),
            Ok(step) if !step.ended => {}
            _ => return Some(false),
        }
    }
    (opening.len() >= OPENING_BYTES).then_some(true)
}

impl Engine {
    /// Makes ready for data that follow their end, where they may: a zstd body is one frame or several (RFC 8878 §3).
    fn begin_again(&mut self) -> bool {
        match self {
            Engine::Gzip(_, 0) | Engine::Deflate(_) | Engine::AnyDeflate(_) => return false,
            Engine::Gzip(engine, members) => {
                *engine = gzip_engine();
                *members -= 1;
            }
            Engine::Zstd(_) => {}
            Engine::Brotli(_) => return false,
        }
        true
    }

    fn memory(&self) -> u64 {
        match self {
            Engine::Gzip(..) | Engine::Deflate(_) | Engine::AnyDeflate(_) => {
                TABLES + (1 << DEFLATE_WINDOW_LOG)
            }
            Engine::Zstd(engine) => engine.sizeof() as u64,
            // Not negative: 0, then a power of two.
            Engine::Brotli(engine) => TABLES + u64::try_from(engine.ringbuffer_size).unwrap_or(0),
        }
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Refusal> {
        match self {
            Engine::Gzip(engine, _) | Engine::Deflate(engine) => flate_step(engine, input, output),
            Engine::AnyDeflate(first) => {
                let (step, engine) = begin_deflate(first, input, output)?;
                if let Some(engine) = engine {
                    *self = Engine::Deflate(engine);
                }
                Ok(step)
            }
            Engine::Zstd(engine) => zstd_step(engine, input, output),
            Engine::Brotli(engine) => brotli_step(engine, input, output),
        }
    }
}

/// Takes the first two bytes of deflated data, which tell whether they have the zlib format (RFC 1950 §2.2), and begins to
/// decode them.
fn begin_deflate(
    first: &mut Option<u8>,
    input: &[u8],
    output: &mut [u8],
) -> Result<(Step, Option<Decompress>), Refusal> {
    let (header, consumed) = match (*first, input) {
        (Some(first), [second, ..]) => ([first, *second], 1),
        (None, [first, second, ..]) => ([*first, *second], 2),
        (_, rest) => {
            *first = first.or(rest.first().copied());
            let step = Step {
                consumed: rest.len(),
                produced: 0,
                ended: false,
            };
            return Ok((step, None));
        }
    };
    let is_zlib = header[0] & 0x0f == 8 && u16::from_be_bytes(header).is_multiple_of(31);
    let mut engine = Decompress::new(is_zlib);
    let step = flate_step(&mut engine, &header, output)?;
    Ok((Step { consumed, ..step }, Some(engine)))
}

fn gzip_engine() -> Decompress {
    Decompress::new_gzip(DEFLATE_WINDOW_LOG)
}

fn flate_step(engine: &mut Decompress, input: &[u8], output: &mut [u8]) -> Result<Step, Refusal> {
    let (before_in, before_out) = (engine.total_in(), engine.total_out());
    let status = engine
        .decompress(input, output, FlushDecompress::None)
        .map_err(|_| broken("it cannot be decoded"))?;
    Ok(Step {
        // Both are at most the lengths of the slices.
        consumed: (engine.total_in() - before_in) as usize,
        produced: (engine.total_out() - before_out) as usize,
        ended: status == Status::StreamEnd,
    })
}

fn zstd_engine() -> DCtx<'static> {
    // No step depends on input: creation fails only for want of memory, the parameter is within its range.
    let mut engine = DCtx::create();
    engine.init().expect("a new zstd context can be used");
    engine
        .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
        .expect("the window limit is in range");
    engine
}

fn zstd_step(engine: &mut DCtx<'static>, input: &[u8], output: &mut [u8]) -> Result<Step, Refusal> {
    let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
    let left = engine
        .decompress_stream(&mut to, &mut from)
        .map_err(|_| broken("it cannot be decoded"))?;
    // A hint of 0 means that a frame is whole and flushed.
    Ok(Step {
        consumed: from.pos(),
        produced: to.pos(),
        ended: left == 0,
    })
}

fn brotli_step(
    engine: &mut BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    input: &[u8],
    output: &mut [u8],
) -> Result<Step, Refusal> {
    let (mut left_in, mut consumed, mut left_out, mut produced, mut total) =
        (input.len(), 0, output.len(), 0, 0);
    let result = BrotliDecompressStream(
        &mut left_in,
        &mut consumed,
        input,
        &mut left_out,
        &mut produced,
        output,
        &mut total,
        engine,
    );
    match result {
        BrotliResult::ResultFailure => Err(broken("it cannot be decoded")),
        BrotliResult::ResultSuccess => Ok(Step {
            consumed,
            produced,
            ended: true,
        }),
        BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => Ok(Step {
            consumed,
            produced,
            ended: false,
        }),
    }
}

fn broken(how: &str) -> Refusal {
    Refusal::new(
        Cause::InvalidContentEncoding,
        format!("the body is not what its content-encoding says: {how}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;
    use std::io::Write;

    const PLAIN: &[u8] = br#"{"model":"m","input":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}"#;

    fn encoded(coding: Coding, plain: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Coding::Deflate => {
                let mut encoder =
                    flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Coding::Zstd => zstd::encode_all(plain, 3).unwrap(),
            Coding::Brotli => {
                let mut out = Vec::new();
                let mut encoder = brotli::CompressorWriter::new(&mut out, 4096, 5, 22);
                encoder.write_all(plain).unwrap();
                drop(encoder);
                out
            }
        }
    }

    type Take<'t> = dyn FnMut(&[u8]) -> Result<(), Refusal> + 't;

    /// What a decoder gives that is pushed these bytes in chunks.
    fn gathered(
        bytes: &[u8],
        step: usize,
        mut push: impl FnMut(&[u8], &mut Take<'_>) -> Result<(), Refusal>,
    ) -> Result<Vec<u8>, Cause> {
        let mut out = Vec::new();
        for chunk in bytes.chunks(step) {
            let mut take = |piece: &[u8]| {
                out.extend_from_slice(piece);
                Ok(())
            };
            push(chunk, &mut take).map_err(|refusal| refusal.cause)?;
        }
        Ok(out)
    }

    fn decoded(coding: Coding, data: &[u8], step: usize) -> Result<Vec<u8>, Cause> {
        let mut decoder = Decoder::new(coding);
        let out = gathered(data, step, |chunk, take| decoder.push(chunk, take))?;
        decoder.finish().map_err(|refusal| refusal.cause)?;
        Ok(out)
    }

    const ALL: [Coding; 4] = [Coding::Gzip, Coding::Zstd, Coding::Brotli, Coding::Deflate];

    #[test]
    fn every_coding_decodes_however_it_is_cut() {
        let long = PLAIN.repeat(5000);
        for coding in ALL {
            let data = encoded(coding, PLAIN);
            for step in [1, 2, 7, data.len()] {
                assert_eq!(
                    decoded(coding, &data, step).as_deref(),
                    Ok(PLAIN),
                    "{coding:?} by {step}"
                );
            }
            assert_eq!(
                decoded(coding, &encoded(coding, &long), 1000).unwrap(),
                long,
                "{coding:?}"
            );
            // A piece that comes out exactly full must not be taken for the end, nor for a lack of one.
            let exact = vec![b'a'; 2 * PIECE];
            assert_eq!(
                decoded(coding, &encoded(coding, &exact), 1 << 20).unwrap(),
                exact,
                "{coding:?}"
            );
        }
    }

    #[test]
    fn what_is_cut_off_or_goes_on_or_is_something_else_is_refused() {
        for coding in ALL {
            let data = encoded(coding, PLAIN);
            for broken in [
                &data[..data.len() - 1],
                &data[..3],
                &[][..],
                &[&data[..], b"x"].concat()[..],
                PLAIN,
            ] {
                for step in [1, 1 << 20] {
                    assert_eq!(
                        decoded(coding, broken, step),
                        Err(Cause::InvalidContentEncoding),
                        "{coding:?}"
                    );
                }
            }
        }
    }

    fn answer(coding: &str, body: &[u8], step: usize) -> Result<Vec<u8>, Cause> {
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, coding.parse().unwrap())]);
        let mut decoder = AnswerDecoder::new(&headers);
        let mut out = gathered(body, step, |chunk, take| decoder.push(chunk, take))?;
        let mut take = |piece: &[u8]| {
            out.extend_from_slice(piece);
            Ok(())
        };
        decoder.finish(&mut take).expect("all is taken");
        let cut = Err(Cause::InvalidContentEncoding);
        decoder.ends_here().then_some(out).map_or(cut, Ok)
    }

    fn raw_deflate(plain: &[u8]) -> Vec<u8> {
        let mut encoder =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn an_answer_is_coded_where_its_head_says_so_and_its_first_byte_does_not_refute_it() {
        for coding in ALL {
            let opening = &encoded(coding, PLAIN)[..1];
            let told = Coding::of_answer(Ok(Some(coding)), opening);
            assert_eq!(told, Some(Ok(Some(coding))));
        }
        let plain = [
            "{}",
            "[]",
            "data: {}\n\n",
            "event: a\n",
            "id: 1\n",
            "retry: 1\n",
            ": a\n",
            " {}",
            "\n",
            "\u{feff}{}",
        ];
        let codings = [
            "gzip",
            "deflate",
            "zstd",
            "identity",
            "none",
            "UTF-8",
            "aws-chunked",
            "identity, none",
            "compress",
            "gzip, br",
            "\u{e9}",
        ];
        for (body, step) in plain.iter().flat_map(|body| [(body, 1), (body, 1000)]) {
            for coding in codings {
                let read = answer(coding, body.as_bytes(), step);
                assert_eq!(read.as_deref(), Ok(body.as_bytes()), "{coding} {body:?}");
            }
        }
        let coded = [
            ("gzip", encoded(Coding::Gzip, PLAIN)),
            ("identity, x-gzip", encoded(Coding::Gzip, PLAIN).repeat(2)),
            ("zstd", encoded(Coding::Zstd, PLAIN)),
            ("br", encoded(Coding::Brotli, PLAIN)),
            ("deflate", encoded(Coding::Deflate, PLAIN)),
            ("deflate", raw_deflate(PLAIN)),
        ];
        for (coding, body) in &coded {
            let members = if coding.contains(',') { 2 } else { 1 };
            for step in [1, 7, body.len()] {
                let read = answer(coding, body, step);
                assert_eq!(read, Ok(PLAIN.repeat(members)), "{coding} by {step}");
            }
            assert!(answer(coding, &body[..body.len() - 1], 7).is_err());
        }
        let unsupported = Err(Cause::UnsupportedContentEncoding);
        for coding in ["none", "compress", "gzip, br"] {
            assert_eq!(answer(coding, b"\x1f\x9d", 1), unsupported, "{coding}");
        }
    }

    fn deflated(plain: &[u8], level: u32, is_flushed: bool) -> Vec<u8> {
        let level = flate2::Compression::new(level);
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
        for line in plain.split_inclusive(|byte| *byte == b'\n') {
            encoder.write_all(line).unwrap();
            if is_flushed {
                encoder.flush().unwrap();
            }
        }
        encoder.finish().unwrap()
    }

    /// A text of so many words, each time others.
    fn text_of(count: usize) -> String {
        const WORDS: [&str; 16] = [
            "the", "proxy", "of", "a", "stream", "that", "tells", "tokens", "and", "is", "read",
            "from", "its", "upstream", "in", "pieces",
        ];
        let mut seed = count as u64;
        let mut word = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            WORDS[(seed >> 60) as usize]
        };
        let words: Vec<&str> = (0..count).map(|_| word()).collect();
        words.join(" ")
    }

    #[test]
    fn raw_deflate_that_begins_as_text_does_is_decoded() {
        let mut openings = BTreeSet::<u8>::new();
        let mut check = |plain: &[u8], coded: &[u8]| {
            openings.extend(coded.first());
            for step in [1, 3, coded.len()] {
                let read = answer("deflate", coded, step);
                assert_eq!(read.as_deref(), Ok(plain), "{:x?} by {step}", &coded[..8]);
            }
        };
        for count in (0..400).step_by(4) {
            let text = text_of(count);
            let document = format!(r#"{{"text":"{text}","usage":{{"input_tokens":{count}}}}}"#);
            let events = format!("event: a\ndata: {document}\n\ndata: [DONE]\n\n");
            for plain in [&document, &events, &format!("\u{feff}{document}")] {
                for (level, is_flushed) in [(0, false), (1, false), (6, false), (9, true)] {
                    let coded = deflated(plain.as_bytes(), level, is_flushed);
                    check(plain.as_bytes(), &coded);
                }
            }
        }
        // Blocks with tables, of which the letter tells the size, and one without that begins with a byte order mark.
        for opening in [b'd', b'e', b'{'] {
            assert!(openings.contains(&opening), "{openings:x?}");
        }
    }

    #[test]
    fn text_that_is_named_deflate_is_known_within_few_bytes() {
        let lines = [
            "data: {\"id\":1}",
            "data:[DONE]",
            "event: message_start",
            "id: 1",
            "retry: 10",
        ];
        let documents = ["{\"a\":1}", "{\n  \"a\": 1}", "[{}]", "{}", ": keep", ":"];
        let deflate = Ok(Some(Coding::Deflate));
        for text in lines.iter().chain(&documents) {
            for before in ["", "\n", "\r\n\r\n", " \t", "\u{feff}", "\x0c\n"] {
                let text = format!("{before}{text}\n\n{:40}", "");
                let told = |length: usize| Coding::of_answer(deflate, &text.as_bytes()[..length]);
                let length = (1..text.len()).find(|length| told(*length).is_some());
                let length = length.unwrap_or_else(|| panic!("{text:?}"));
                assert!(length <= 24, "{text:?}: {length}");
                assert_eq!(told(length), Some(Ok(None)), "{text:?}");
                assert_eq!(told(text.len()), Some(Ok(None)), "{text:?}");
            }
        }
    }

    #[test]
    fn what_ends_before_it_is_known_is_plain() {
        for body in ["d", "da", "e", "\r\n", "{"] {
            assert_eq!(
                answer("deflate", body.as_bytes(), 1).as_deref(),
                Ok(body.as_bytes())
            );
        }
        // Empty blocks without an end: nothing of it is held for long.
        let empty_blocks = [0, 0, 0, 0xff, 0xff].repeat(1000);
        let held = [&b" \0\0\xff\xff"[..], &empty_blocks].concat();
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, "deflate".parse().unwrap())]);
        let mut decoder = AnswerDecoder::new(&headers);
        for chunk in held.chunks(100) {
            decoder.push(chunk, &mut |_| Ok(())).unwrap();
            assert!(decoder.held.len() < OPENING_BYTES);
        }
        assert!(decoder.held.is_empty());
    }

    #[test]
    fn no_more_of_an_answer_is_read_than_its_limit() {
        let zeros = encoded(Coding::Gzip, &vec![b'\n'; 1 << 20]);
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, "gzip".parse().unwrap())]);
        for (left, is_read) in [(1 << 20, true), ((1 << 20) - 1, false)] {
            let mut decoder = AnswerDecoder::new(&headers);
            decoder.left = left;
            assert_eq!(decoder.push(&zeros, &mut |_| Ok(())).is_ok(), is_read);
        }
    }

    #[test]
    fn what_is_only_read_is_decoded_as_lenient_readers_do() {
        let members = encoded(Coding::Gzip, PLAIN).repeat(2);
        let raw = raw_deflate(PLAIN);
        let lenient = |coding, data: &[u8], step| {
            let (mut decoder, mut out) = (Decoder::lenient(coding), Vec::new());
            for chunk in data.chunks(step) {
                let mut take = |piece: &[u8]| {
                    out.extend_from_slice(piece);
                    Ok(())
                };
                decoder.push(chunk, &mut take)?;
            }
            decoder.finish().map(|()| out)
        };
        for (coding, data, plain) in [
            (Coding::Gzip, &members, PLAIN.repeat(2)),
            (Coding::Deflate, &raw, PLAIN.to_vec()),
        ] {
            let strict = decoded(coding, data, 7);
            assert_eq!(strict, Err(Cause::InvalidContentEncoding));
            for step in [1, 7, data.len()] {
                let read = lenient(coding, data, step).unwrap();
                assert_eq!(read, plain, "{coding:?} by {step}");
            }
        }
        for coding in ALL {
            let data = encoded(coding, PLAIN);
            assert_eq!(lenient(coding, &data, 1).unwrap(), PLAIN, "{coding:?}");
        }
        let many = encoded(Coding::Gzip, b"").repeat(MEMBERS as usize + 1);
        assert!(lenient(Coding::Gzip, &many, 1000).is_ok());
        let many = encoded(Coding::Gzip, b"").repeat(MEMBERS as usize + 2);
        assert!(lenient(Coding::Gzip, &many, 1000).is_err());
    }

    #[test]
    fn a_zstd_window_beyond_eight_mebibytes_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&vec![b'a'; 20 << 20]).unwrap();
        let data = encoder.finish().unwrap();
        assert_eq!(
            decoded(Coding::Zstd, &data, 1 << 20),
            Err(Cause::InvalidContentEncoding)
        );
    }
}
