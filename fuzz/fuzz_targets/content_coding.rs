//! Content codings, held against other decoders of them: what these make of a body comes out, however it arrives, and
//! nothing that is broken, cut off or goes on. No limit is passed.

#![no_main]

use std::io::{Read, Write};
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tiergate_fuzz::codec::body_memory::BodyMemory;
use tiergate_fuzz::codec::content_coding::{Coding, Decoder};
use tiergate_fuzz::codec::error::{Cause, Refusal};
use tiergate_fuzz::codec::service_tier::{Edit, Edits, Rewriter, Tier};
use tiergate_fuzz::config::Limits;
use tiergate_fuzz::pieces;
use tiergate_fuzz::proxy::request_body::BufferedBody;

/// In bytes; a few hundred coded ones reach it.
const DECODED_LIMIT: usize = 100_000;

/// The most that comes out at a time, in bytes: what a limit can be passed by before it is seen.
const LONGEST_PIECE: usize = 32 * 1024;

/// What a body gets in front; it is not counted as held.
const MEMBER_BYTES: u64 = r#""service_tier":"priority","#.len() as u64;

const CODINGS: [(Coding, &str); 4] = [
    (Coding::Gzip, "gzip"),
    (Coding::Zstd, "zstd"),
    (Coding::Brotli, "br"),
    (Coding::Deflate, "deflate"),
];

fuzz_target!(|input: &[u8]| {
    let Some(([seed_low, seed_high, mode], data)) = input.split_first_chunk::<3>() else {
        return;
    };
    let seed = u16::from_le_bytes([*seed_low, *seed_high]);
    let (coding, name) = CODINGS[usize::from(mode & 3)];
    if mode & 4 == 0 {
        check_coded(coding, name, data, seed);
    } else {
        check_plain(coding, name, data, seed, u32::from(mode >> 4));
    }
});

fn check_coded(coding: Coding, name: &'static str, data: &[u8], seed: u16) {
    let decoded = decode_however_it_arrives(coding, data, seed);
    let reference = reference(coding, data);
    match &decoded {
        Ok(plain) => assert_eq!(Some(plain), reference.as_ref()),
        Err(Cause::DecodedBodyTooLarge) => {}
        Err(_) => assert!(reference.is_none(), "{coding:?} is refused"),
    }
    check_held(name, data, seed, decoded);
}

fn check_plain(coding: Coding, name: &'static str, plain: &[u8], seed: u16, level: u32) {
    let data = encode(coding, plain, level);
    let decoded = decode_however_it_arrives(coding, &data, seed);
    assert_eq!(decoded.as_deref(), Ok(plain));
    check_held(name, &data, seed, decoded);
    let short = &data[..usize::from(seed) % data.len()];
    assert_broken(coding, short, seed);
    assert_broken(coding, &[&data[..], &[level as u8]].concat(), seed);
}

fn assert_broken(coding: Coding, data: &[u8], seed: u16) {
    let outcome = decode_however_it_arrives(coding, data, seed);
    assert_eq!(outcome, Err(Cause::InvalidContentEncoding), "{coding:?}");
}

fn decode_however_it_arrives(coding: Coding, data: &[u8], seed: u16) -> Result<Vec<u8>, Cause> {
    let whole = decode(coding, &[data]);
    let single: Vec<&[u8]> = data.chunks(1).collect();
    for pieces in [pieces(data, seed), single] {
        // What is wrong in two ways may be told by either.
        assert_eq!(decode(coding, &pieces).ok(), whole.as_ref().ok().cloned());
    }
    whole
}

fn decode(coding: Coding, pieces: &[&[u8]]) -> Result<Vec<u8>, Cause> {
    let (mut decoder, mut plain) = (Decoder::new(coding), Vec::new());
    let mut take = |piece: &[u8]| {
        assert!(piece.len() <= LONGEST_PIECE);
        if plain.len() + piece.len() > DECODED_LIMIT {
            return Err(Refusal::from(Cause::DecodedBodyTooLarge));
        }
        plain.extend_from_slice(piece);
        Ok(())
    };
    for piece in pieces {
        decoder
            .push(piece, &mut take)
            .map_err(|refusal| refusal.cause)?;
    }
    decoder.finish().map_err(|refusal| refusal.cause)?;
    Ok(plain)
}

/// What the other decoder makes of data that are whole and end where the coding says.
fn reference(coding: Coding, data: &[u8]) -> Option<Vec<u8>> {
    let (mut plain, mut rest) = (Vec::new(), data);
    let limit = DECODED_LIMIT as u64 + 1;
    match coding {
        Coding::Gzip => {
            let mut decoder = flate2::bufread::GzDecoder::new(&mut rest);
            decoder.by_ref().take(limit).read_to_end(&mut plain).ok()?;
        }
        Coding::Deflate => {
            let mut decoder = flate2::bufread::ZlibDecoder::new(&mut rest);
            decoder.by_ref().take(limit).read_to_end(&mut plain).ok()?;
        }
        Coding::Brotli => {
            // With a buffer of one byte it takes none behind the end.
            let mut decoder = brotli::Decompressor::new(&mut rest, 1);
            decoder.by_ref().take(limit).read_to_end(&mut plain).ok()?;
        }
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut rest).ok()?;
            decoder.window_log_max(23).ok()?;
            decoder.by_ref().take(limit).read_to_end(&mut plain).ok()?;
        }
    }
    (rest.is_empty() && !data.is_empty()).then_some(plain)
}

const FORCED: Edits = Edits {
    tier: Edit::Set(Tier::Priority),
    remove_fast_speed: false,
    request_usage: false,
};

/// A held body comes to what its plain form comes to, within its limit, and gives back what it took.
fn check_held(name: &'static str, data: &[u8], seed: u16, decoded: Result<Vec<u8>, Cause>) {
    let limits = Arc::new(Limits {
        decoded_body: DECODED_LIMIT as u64,
        ..Limits::default()
    });
    let memory = BodyMemory::new(limits.buffered);
    let mut headers = HeaderMap::new();
    headers.insert("content-encoding", HeaderValue::from_static(name));
    let held = BufferedBody::open(&headers, None, false, &limits, &memory);
    let outcome = held.and_then(|mut held| {
        for piece in pieces(data, seed) {
            held.push(piece)?;
        }
        held.finish(FORCED)
    });
    match (outcome, decoded) {
        (Ok(ready), Ok(plain)) => {
            assert_eq!(
                Some(&ready.bytes[..]),
                rewritten(&plain, &limits).as_deref()
            );
            assert!(memory.used() + MEMBER_BYTES >= ready.bytes.len() as u64);
        }
        (Ok(_), Err(cause)) => panic!("it is {cause:?} and was taken"),
        (Err(_), Ok(plain)) => assert!(rewritten(&plain, &limits).is_none()),
        (Err(_), Err(_)) => {}
    }
    assert_eq!(memory.used(), 0);
}

fn rewritten(plain: &[u8], limits: &Limits) -> Option<Vec<u8>> {
    let mut rewriter = Rewriter::new(limits.json_depth, plain.len());
    rewriter.push(plain).ok()?;
    let rewritten = rewriter.finish(FORCED).ok()?;
    Some(rewritten.as_bytes().to_vec())
}

fn encode(coding: Coding, plain: &[u8], level: u32) -> Vec<u8> {
    let flate_level = flate2::Compression::new(level.min(9));
    // Memory takes whatever is written.
    let whole = "memory can be written to";
    match coding {
        Coding::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate_level);
            encoder.write_all(plain).expect(whole);
            encoder.finish().expect(whole)
        }
        Coding::Deflate => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate_level);
            encoder.write_all(plain).expect(whole);
            encoder.finish().expect(whole)
        }
        Coding::Zstd => zstd::encode_all(plain, level.min(3) as i32).expect(whole),
        Coding::Brotli => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, level.min(2), 16);
            encoder.write_all(plain).expect(whole);
            encoder.into_inner()
        }
    }
}
