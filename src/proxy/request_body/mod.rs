//! Request bodies under their limits: held until known good, decoded, checked, rewritten; or passed on as they come and
//! looked at on the way. It reads from no socket; whoever does pushes what came.

mod content_type;
mod streamed;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use crate::codec::body_memory::{BodyMemory, Lease};
use crate::codec::content_coding::{Coding, Decoder};
use crate::codec::error::{Cause, Refusal};
use crate::codec::guarded_bytes::guarded;
use crate::codec::service_tier::{BodyFault, Edit, Edits, RequestFields, Rewriter};
use crate::config::Limits;
pub use streamed::StreamedBody;

/// A body on its way in.
pub struct BufferedBody {
    lease: Lease,
    limits: Arc<Limits>,
    may_stay: bool,
    decoder: Option<Decoder>,
    /// The bytes of a coded body as they came, where it may go on so.
    coded: Option<Vec<u8>>,
    rewriter: Rewriter,
    received: u64,
}

/// A body that is good to be sent, with what its client said in it.
pub struct ReadyBody {
    pub bytes: Bytes,
    pub facts: RequestFields,
    /// They are those that came.
    pub is_original: bool,
    /// The body asks for usage now and did not before.
    pub usage_requested: bool,
}

impl BufferedBody {
    /// Sees that there is room for a body, and refuses by its head what can be refused by it.
    ///
    /// `length` is the `Content-Length`, none for a chunked body. `may_stay`: it depends on the body whether it is changed; of
    /// one without a length, nothing in it is changed.
    pub fn open(
        headers: &HeaderMap,
        length: Option<u64>,
        may_stay: bool,
        limits: &Arc<Limits>,
        memory: &Arc<BodyMemory>,
    ) -> Result<Self, Refusal> {
        content_type::check(headers)?;
        let coding = content_coding(headers)?;
        if length.is_some_and(|length| length > limits.body) {
            return Err(Cause::BodyTooLarge.into());
        }
        // A length alone, which costs a client nothing, takes no memory.
        let lease = memory.lease_later(length.unwrap_or(0))?;
        Ok(Self {
            lease,
            limits: limits.clone(),
            may_stay,
            coded: coding.filter(|_| may_stay).map(|_| Vec::new()),
            decoder: coding.map(Decoder::new),
            // A body within `limits.body` fits a `usize`: the limit is far below the address space.
            rewriter: Rewriter::new(limits.json_depth, length.unwrap_or(0) as usize),
            received: 0,
        })
    }

    /// Whether it may go on as it came.
    pub fn may_stay(&self) -> bool {
        self.may_stay
    }

    /// What the body says, as far as it was read.
    pub fn facts(&self) -> &RequestFields {
        self.rewriter.facts()
    }

    pub fn push(&mut self, mut chunk: &[u8]) -> Result<(), Refusal> {
        while self.push_part(&mut chunk)? {}
        Ok(())
    }

    /// Takes a part off a chunk: a plain one whole, of a coded one what decodes to some kilobytes. False where nothing is left
    /// of it.
    pub fn push_part(&mut self, chunk: &mut &[u8]) -> Result<bool, Refusal> {
        let Self {
            lease,
            limits,
            decoder,
            coded,
            rewriter,
            received,
            ..
        } = self;
        let Some(decoder) = decoder else {
            let plain = std::mem::take(chunk);
            count(received, plain, limits)?;
            return keep(rewriter, lease, plain, limits.json_depth).map(|()| false);
        };
        let before = *chunk;
        let Some(decoded) = decoder.next_piece(chunk)? else {
            return Ok(false);
        };
        let part = &before[..before.len() - chunk.len()];
        count(received, part, limits)?;
        let coded_bytes = coded.as_mut().map_or(0, |coded| {
            coded.extend_from_slice(part);
            coded.capacity() as u64
        });
        if (rewriter.len() + decoded.len()) as u64 > limits.decoded_body {
            return Err(Cause::DecodedBodyTooLarge.into());
        }
        keep(rewriter, lease, decoded, limits.json_depth)?;
        lease.grow_to(rewriter.memory() as u64 + decoder.memory() + coded_bytes)?;
        Ok(true)
    }

    /// The end of the body: what is to be sent in its place. Without edits that is what came.
    pub fn finish(self, edits: Edits) -> Result<ReadyBody, Refusal> {
        let depth = self.limits.json_depth;
        let is_coded = self.decoder.is_some();
        if let Some(decoder) = self.decoder {
            decoder.finish()?;
        }
        let rewritten = self
            .rewriter
            .finish(edits)
            .map_err(|fault| refuse_json(&fault, depth))?;
        if edits.request_usage && rewritten.usage_is_unclear {
            return Err(Refusal::new(
                Cause::InvalidJson,
                "readers may differ on the body's `stream`, `stream_options` or `include_usage`",
            ));
        }
        let usage_requested = rewritten.usage_requested;
        let is_same = edits.tier == Edit::Keep && !edits.remove_fast_speed && !usage_requested;
        let (buffer, start, facts) = rewritten.into_parts();
        let (buffer, start, is_original) = match self.coded.filter(|_| is_same) {
            Some(coded) => (coded, 0, true),
            None => (buffer, start, is_same && !is_coded),
        };
        let mut lease = self.lease;
        lease.shrink_to(buffer.capacity() as u64);
        Ok(ReadyBody {
            bytes: guarded(buffer, lease).slice(start..),
            facts,
            is_original,
            usage_requested,
        })
    }
}

/// Counts what was received of a body.
fn count(received: &mut u64, part: &[u8], limits: &Limits) -> Result<(), Refusal> {
    *received += part.len() as u64;
    if *received > limits.body {
        return Err(Cause::BodyTooLarge.into());
    }
    Ok(())
}

/// A piece that passes, for an upstream that may take it later. Until then it counts as held.
///
/// # Errors
/// Where all bodies together would take more than that.
pub fn waiting_piece(piece: Bytes, memory: &Arc<BodyMemory>) -> Result<Bytes, Refusal> {
    let lease = memory.lease(piece.len() as u64)?;
    Ok(guarded(piece, lease))
}

fn keep(
    rewriter: &mut Rewriter,
    lease: &mut Lease,
    plain: &[u8],
    depth: usize,
) -> Result<(), Refusal> {
    lease.grow_to((rewriter.len() + plain.len()) as u64)?;
    rewriter
        .push(plain)
        .map_err(|fault| refuse_json(&fault, depth))?;
    lease.grow_to(rewriter.memory() as u64)
}

/// The refusal of a body that cannot be rewritten; `depth` is the limit that it was read under.
pub fn refuse_json(fault: &BodyFault, depth: usize) -> Refusal {
    match fault {
        BodyFault::InvalidJson { at } => Refusal::new(
            Cause::InvalidJson,
            format!("the body is not valid JSON (at byte {at})"),
        ),
        BodyFault::InvalidUtf8 { at } => Refusal::new(
            Cause::InvalidUtf8,
            format!("the body is not UTF-8 (at byte {at})"),
        ),
        BodyFault::TooDeep => Refusal::new(
            Cause::JsonTooDeep,
            format!("the body is nested deeper than {depth} levels"),
        ),
        BodyFault::NotAnObject => Cause::NotAJsonObject.into(),
    }
}

/// The one content coding of a body; none for a body that is sent as it is. Codings on top of each other are refused.
fn content_coding(headers: &HeaderMap) -> Result<Option<Coding>, Refusal> {
    let mut lines = headers.get_all(CONTENT_ENCODING).iter();
    let Some(line) = lines.next() else {
        return Ok(None);
    };
    if lines.next().is_some() {
        return Err(Cause::UnsupportedContentEncoding.into());
    }
    let name = line
        .to_str()
        .map_err(|_| Cause::UnsupportedContentEncoding)?
        .trim();
    if name.is_empty() || name.eq_ignore_ascii_case("identity") {
        return Ok(None);
    }
    Coding::named(name)
        .map(Some)
        .ok_or_else(|| Cause::UnsupportedContentEncoding.into())
}
