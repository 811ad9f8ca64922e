//! The content coding of an upstream's answer. None is asked for, and some use one all the same.

use std::borrow::Cow;

use http::HeaderMap;

use crate::codec::content_coding::AnswerDecoder;
use crate::codec::error::{Cause, Refusal};

/// How much of a coded body is decoded at a time, in bytes: a few may become very many.
const CODED_BYTES: usize = 4096;

/// The most that so much may become, in bytes.
const MOST: usize = 32 << 20;

/// One body on its way.
pub(super) struct Decoding(AnswerDecoder);

impl Decoding {
    /// For an answer with these headers.
    pub fn of(headers: &HeaderMap) -> Self {
        Self(AnswerDecoder::new(headers))
    }

    /// What of a piece is decoded at a time.
    pub fn parts<'p>(&mut self, piece: &'p [u8]) -> impl Iterator<Item = &'p [u8]> + use<'p> {
        self.0.begin(piece);
        let most = match self.0.is_plain() {
            true => usize::MAX,
            false => CODED_BYTES,
        };
        piece.chunks(most)
    }

    /// Decodes a part.
    ///
    /// # Errors
    /// Where it is not of its coding, or becomes too much.
    pub fn decode<'p>(&mut self, part: &'p [u8]) -> Result<Cow<'p, [u8]>, Refusal> {
        if self.0.is_plain() {
            return Ok(part.into());
        }
        let mut decoded = Vec::new();
        self.0.push(part, &mut |more| {
            if decoded.len() + more.len() > MOST {
                return Err(Cause::DecodedBodyTooLarge.into());
            }
            decoded.extend_from_slice(more);
            Ok(())
        })?;
        Ok(decoded.into())
    }

    /// Whether the body may end here.
    pub fn ends_here(&self) -> bool {
        self.0.ends_here()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CONTENT_ENCODING;

    use std::io::Write;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn coded(value: &str) -> Decoding {
        let headers = [(CONTENT_ENCODING, value.parse().unwrap())];
        Decoding::of(&headers.into_iter().collect())
    }

    fn decoded(decoding: &mut Decoding, coded: &[u8]) -> Result<Vec<u8>, Cause> {
        let mut plain = Vec::new();
        for part in decoding.parts(coded) {
            let part = decoding.decode(part).map_err(|refusal| refusal.cause)?;
            plain.extend_from_slice(&part);
        }
        Ok(plain)
    }

    #[test]
    fn a_body_is_decoded_as_its_header_says_unless_its_first_byte_refutes_it() {
        let plain = b"data: {}\n\n".repeat(10_000);
        for (coding, body) in [
            ("identity", plain.clone()),
            ("none", plain.clone()),
            ("gzip", plain.clone()),
            ("gzip, br", plain.clone()),
            ("deflate", plain.clone()),
            ("x-gzip, ", gzip(&plain)),
        ] {
            let mut decoding = coded(coding);
            assert_eq!(decoded(&mut decoding, &body).unwrap(), plain, "{coding}");
            assert!(decoding.ends_here());
        }
    }

    #[test]
    fn what_takes_several_pieces_to_tell_is_decoded_whole() {
        let plain = "\u{feff}: c\n\n".as_bytes();
        let level = flate2::Compression::default();
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
        encoder.write_all(plain).unwrap();
        let raw = encoder.finish().unwrap();
        assert_eq!(raw[0], b'{', "as text may begin");
        for (body, read) in [(raw.as_slice(), plain), (plain, plain)] {
            for step in [1, 2, body.len()] {
                let mut decoding = coded("deflate");
                let pieces = body.chunks(step);
                let pieces = pieces.map(|piece| decoded(&mut decoding, piece).unwrap());
                let pieces: Vec<Vec<u8>> = pieces.collect();
                assert_eq!(pieces.concat(), read, "by {step}");
                assert!(decoding.ends_here());
            }
        }
    }

    #[test]
    fn what_is_cut_or_unknown_or_too_much_is_none() {
        let body = gzip(b"data: {}\n\n");
        let mut decoding = coded("gzip");
        decoded(&mut decoding, &body[..body.len() - 1]).unwrap();
        assert!(!decoding.ends_here());
        for unknown in ["compress", "gzip, br", "\u{e9}"] {
            let read = decoded(&mut coded(unknown), &body);
            assert_eq!(read, Err(Cause::UnsupportedContentEncoding), "{unknown}");
        }
        let mut encoder = brotli::CompressorWriter::new(Vec::new(), 1 << 16, 5, 22);
        for _ in 0..40 {
            encoder.write_all(&vec![b' '; 1 << 20]).unwrap();
        }
        encoder.flush().unwrap();
        let bomb = encoder.into_inner();
        assert!(bomb.len() < CODED_BYTES, "{}", bomb.len());
        assert_eq!(
            decoded(&mut coded("br"), &bomb),
            Err(Cause::DecodedBodyTooLarge)
        );
    }
}
