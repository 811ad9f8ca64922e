//! A body that passes as it comes: what its readers may find in it is looked at on the way.

use std::sync::Arc;

use http::HeaderMap;

use super::content_type::{FieldNames, Form};
use super::count;
use crate::codec::body_memory::{BodyMemory, Lease};
use crate::codec::content_coding::{Coding, Decoder, NamedCoding};
use crate::codec::error::{Cause, Refusal};
use crate::codec::service_tier::{Observer, RequestFields};
use crate::config::Limits;

/// A body that passes as it comes may have so many pieces of any size, and further ones of so many bytes on the average. Each is
/// a frame towards HTTP/2, and servers end a whole connection for too many frames with too little in them.
const FREE_PIECES: u64 = 1 << 17;
const LEAST_PIECE_BYTES: u64 = 16;

/// A body that passes as it comes. Its bytes are not kept, only what they say at the top level. They are read in each way in
/// which a server may: as they are, for many never look at a request's content coding, and as what they decode to.
pub struct StreamedBody {
    limits: Arc<Limits>,
    memory: Arc<BodyMemory>,
    form: Form,
    named: NamedCoding,
    received: u64,
    pieces: u64,
    plain: Observer,
    decoded: Observer,
    look: Inspection,
}

/// How what a body decodes to is looked at.
enum Inspection {
    /// It has no coding.
    None,
    /// A copy is decoded; this much more may come out of it.
    Decoded(Box<Decoder>, u64, Lease),
    /// It is not what its head said, or there was no room to look at all of it.
    Stopped,
}

impl StreamedBody {
    /// # Errors
    /// Where the announced length is over the limit.
    pub fn open(
        headers: &HeaderMap,
        length: Option<u64>,
        limits: &Arc<Limits>,
        memory: &Arc<BodyMemory>,
    ) -> Result<Self, Refusal> {
        if length.is_some_and(|length| length > limits.body) {
            return Err(Cause::BodyTooLarge.into());
        }
        // A coding that is not understood is for the upstream to refuse.
        let named = Coding::sole(headers);
        Ok(Self {
            form: Form::of(headers),
            named,
            received: 0,
            pieces: 0,
            plain: Observer::new(),
            decoded: Observer::new(),
            look: Inspection::at(named, limits, memory),
            limits: limits.clone(),
            memory: memory.clone(),
        })
    }

    /// Forgets what came so far: it will come again, for another attempt.
    pub fn restart(&mut self) {
        self.received = 0;
        self.pieces = 0;
        if let Form::Fields(names) = &mut self.form {
            *names = FieldNames::default();
        }
        self.plain = Observer::new();
        self.decoded = Observer::new();
        self.look = Inspection::at(self.named, &self.limits, &self.memory);
    }

    /// # Errors
    /// Those of [`Self::count_piece`]. What it says can never be wrong here.
    pub fn pass(&mut self, mut piece: &[u8]) -> Result<(), Refusal> {
        self.count_piece(piece)?;
        while self.look_at(&mut piece) {}
        Ok(())
    }

    /// A piece is here, to be looked at and passed on.
    ///
    /// # Errors
    /// Where the body goes over the limit with it, or comes in too small pieces.
    pub fn count_piece(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        count(&mut self.received, piece, &self.limits)?;
        self.pieces += u64::from(!piece.is_empty());
        if self.pieces > FREE_PIECES && self.received < self.pieces * LEAST_PIECE_BYTES {
            let words = "the body comes in too many small pieces";
            return Err(Refusal::new(Cause::InvalidHttp, words));
        }
        Ok(())
    }

    /// Takes a part off a piece to look at it, as [`super::BufferedBody::push_part`] does.
    pub fn look_at(&mut self, piece: &mut &[u8]) -> bool {
        let Self {
            form,
            plain,
            decoded,
            look,
            ..
        } = self;
        let before = *piece;
        let goes_on = match look {
            Inspection::None | Inspection::Stopped => false,
            Inspection::Decoded(decoder, left, lease) => {
                match look_inside(decoder, left, lease, decoded, piece) {
                    Ok(goes_on) => goes_on,
                    // Where there is no memory for it, the body passes all the same.
                    Err(_) => {
                        *look = Inspection::Stopped;
                        false
                    }
                }
            }
        };
        if !goes_on {
            *piece = &[];
        }
        let part = &before[..before.len() - piece.len()];
        plain.feed(part);
        if let Form::Fields(names) = form {
            names.feed(part);
        }
        goes_on
    }

    /// What the body said. `takes_tier`: its endpoint does, so that what cannot be read of it may be a tier.
    pub fn finish(self, takes_tier: bool) -> RequestFields {
        let tier_is_unknown = takes_tier && self.received > 0 && !self.is_read();
        // A part could say the opposite of the whole.
        let is_decoded = match self.look {
            Inspection::None => false,
            Inspection::Decoded(..) => true,
            Inspection::Stopped => self.decoded.is_whole(),
        };
        let mut facts = self.plain.finish();
        if is_decoded {
            facts.join(self.decoded.finish());
        }
        facts.tier_is_unknown |= tier_is_unknown;
        facts
    }

    /// Whether no server reads of it what was not read here.
    fn is_read(&self) -> bool {
        let is_as_typed = match &self.form {
            Form::Json => true,
            Form::Fields(names) => !names.has_tier,
            Form::Other => false,
        };
        is_as_typed
            && match self.look {
                Inspection::None => true,
                Inspection::Decoded(..) => self.plain.is_object() || self.decoded.is_object(),
                Inspection::Stopped => self.plain.is_object() || self.decoded.is_whole(),
            }
    }
}

impl Inspection {
    fn at(named: NamedCoding, limits: &Limits, memory: &Arc<BodyMemory>) -> Self {
        let coding = match named {
            Ok(None) => return Inspection::None,
            Ok(Some(coding)) => coding,
            Err(_) => return Inspection::Stopped,
        };
        let decoder = Box::new(Decoder::lenient(coding));
        match memory.lease(decoder.memory()) {
            Ok(lease) => Inspection::Decoded(decoder, limits.decoded_body, lease),
            Err(_) => Inspection::Stopped,
        }
    }
}

/// Looks at what the next part of a chunk decodes to, if anything is left of it.
fn look_inside(
    decoder: &mut Decoder,
    left: &mut u64,
    lease: &mut Lease,
    observer: &mut Observer,
    chunk: &mut &[u8],
) -> Result<bool, Refusal> {
    let Some(decoded) = decoder.next_piece(chunk)? else {
        return Ok(false);
    };
    *left = left
        .checked_sub(decoded.len() as u64)
        .ok_or(Cause::DecodedBodyTooLarge)?;
    observer.feed(decoded);
    lease.grow_to(decoder.memory())?;
    Ok(true)
}
