//! The content coding of an upstream's answer. None is asked for, and some use one all the same.

use std::borrow::Cow;

use http::HeaderMap;

use crate::accounting::usage::DECODED_LIMIT;
use crate::codec::content_coding::{Coding, Decoder};
use crate::codec::error::{Cause, Refusal};

/// How much of a coded body is decoded at a time, in bytes: a few may become very many.
const CODED_BYTES: usize = 4096;

/// The most that so much may become, in bytes.
const MOST: usize = 32 << 20;

/// One body on its way.
pub(super) struct Decoding {
    /// None where the body is not coded.
    decoder: Option<Decoder>,
    /// How many more decoded bytes are taken.
    left: u64,
}

impl Decoding {
    /// For an answer with these headers; `None` where its coding is not known, or there are several.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let coding = Coding::sole(headers).ok()?;
        Some(Self {
            decoder: coding.map(Decoder::new),
            left: DECODED_LIMIT,
        })
    }

    /// What of a piece is decoded at a time.
    pub fn parts<'p>(&self, piece: &'p [u8]) -> impl Iterator<Item = &'p [u8]> + use<'p> {
        let most = match self.decoder {
            Some(_) => CODED_BYTES,
            None => usize::MAX,
        };
        piece.chunks(most)
    }

    /// Decodes a part.
    ///
    /// # Errors
    /// Where it is not of that coding, or becomes too much.
    pub fn decode<'p>(&mut self, part: &'p [u8]) -> Result<Cow<'p, [u8]>, Refusal> {
        let Some(decoder) = &mut self.decoder else {
            return Ok(part.into());
        };
        let (left, mut decoded) = (&mut self.left, Vec::new());
        decoder.push(part, &mut |more| {
            let rest = left.checked_sub(more.len() as u64);
            *left = rest
                .filter(|_| decoded.len() + more.len() <= MOST)
                .ok_or_else(|| Refusal::from(Cause::DecodedBodyTooLarge))?;
            decoded.extend_from_slice(more);
            Ok(())
        })?;
        Ok(decoded.into())
    }

    /// Whether the body may end here.
    pub fn ends_here(self) -> bool {
        self.decoder.is_none_or(|decoder| decoder.finish().is_ok())
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

    fn coded(value: &str) -> Option<Decoding> {
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
    fn a_body_is_decoded_as_its_header_says() {
        let plain = b"data: {}\n\n".repeat(10_000);
        for (coding, body) in [("identity", plain.clone()), ("x-gzip, ", gzip(&plain))] {
            let mut decoding = coded(coding).unwrap();
            assert_eq!(decoded(&mut decoding, &body).unwrap(), plain, "{coding}");
            assert!(decoding.ends_here());
        }
        for unknown in ["compress", "gzip, br", "\u{e9}"] {
            assert!(coded(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn what_is_cut_or_something_else_or_too_much_is_none() {
        let body = gzip(b"data: {}\n\n");
        let mut decoding = coded("gzip").unwrap();
        decoded(&mut decoding, &body[..body.len() - 1]).unwrap();
        assert!(!decoding.ends_here());
        let plain = decoded(&mut coded("gzip").unwrap(), b"data: {}\n\n");
        assert_eq!(plain, Err(Cause::InvalidContentEncoding));
        let mut encoder = brotli::CompressorWriter::new(Vec::new(), 1 << 16, 5, 22);
        for _ in 0..40 {
            encoder.write_all(&vec![b' '; 1 << 20]).unwrap();
        }
        encoder.flush().unwrap();
        let bomb = encoder.into_inner();
        assert!(bomb.len() < CODED_BYTES, "{}", bomb.len());
        let too_much = coded("br").unwrap().decode(&bomb).map(|plain| plain.len());
        assert_eq!(
            too_much.map_err(|refusal| refusal.cause),
            Err(Cause::DecodedBodyTooLarge)
        );
    }
}
