//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): to which trace a request belongs, as the header `traceparent`
//! says it.

/// The only version that is written, and the length of its header in bytes.
const VERSION: &[u8] = b"00";
const HEADER_BYTES: usize = 55;
/// The version that there will never be.
const NO_VERSION: &[u8] = b"ff";
/// The bit of the flags that says that the caller records the trace.
const SAMPLED: u8 = 1;
/// Of a trace's id so many bytes at the end are random (<https://www.w3.org/TR/trace-context-2/#random-trace-id-flag>).
const RANDOM_BYTES: usize = 7;

/// Id of a trace: 16 bytes, not all of them zero.
pub type TraceId = [u8; 16];
/// Id of a span: 8 bytes, not all of them zero.
pub type SpanId = [u8; 8];

/// What a caller's `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span.
    pub span: SpanId,
    /// Whether the caller records it.
    pub sampled: bool,
}

/// The span of a request within a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace: the caller's, or one that begins here.
    pub trace: TraceId,
    /// The span itself.
    pub span: SpanId,
    /// The caller's span; none where the trace begins here.
    pub parent: Option<SpanId>,
    /// Whether it is recorded.
    pub sampled: bool,
}

impl TraceParent {
    /// Reads the header's value; none where it is not valid. Of a later version what this one has is read.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let parts: Vec<&[u8]> = value.splitn(5, |byte| *byte == b'-').collect();
        let [version, trace, span, flags, ..] = parts[..] else {
            return None;
        };
        let [_] = bytes_of::<1>(version)?;
        let is_whole = version != VERSION || value.len() == HEADER_BYTES;
        if version == NO_VERSION || !is_whole {
            return None;
        }
        let (trace, span, [flags]) = (
            bytes_of::<16>(trace)?,
            bytes_of::<8>(span)?,
            bytes_of::<1>(flags)?,
        );
        let is_valid = trace != [0; 16] && span != [0; 8];
        is_valid.then_some(Self {
            trace,
            span,
            sampled: flags & SAMPLED != 0,
        })
    }
}

impl TraceContext {
    /// The span of a request with this id, a UUIDv7, whose last half names the span, and all of it a trace that begins here.
    /// Of these traces `ratio` is recorded, of others those that their caller records.
    pub fn begin(request: [u8; 16], parent: Option<TraceParent>, ratio: f64) -> Self {
        let span = last(&request);
        match parent {
            Some(parent) => Self {
                trace: parent.trace,
                span,
                parent: Some(parent.span),
                sampled: parent.sampled,
            },
            None => Self {
                trace: request,
                span,
                parent: None,
                sampled: is_sampled(&request, ratio),
            },
        }
    }

    /// A span within this one, named by the last half of a UUIDv7.
    pub fn child(&self, id: [u8; 16]) -> Self {
        Self {
            span: last(&id),
            parent: Some(self.span),
            ..*self
        }
    }

    /// The header for whoever is called.
    pub fn traceparent(&self) -> String {
        let (trace, span) = (hex::encode(self.trace), hex::encode(self.span));
        format!("00-{trace}-{span}-{:02x}", u8::from(self.sampled))
    }
}

fn last(id: &[u8; 16]) -> SpanId {
    let mut span = [0; 8];
    span.copy_from_slice(&id[8..]);
    span
}

/// The same for every span of a trace, wherever it is asked.
fn is_sampled(trace: &TraceId, ratio: f64) -> bool {
    let random = &trace[trace.len() - RANDOM_BYTES..];
    let random = random
        .iter()
        .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    (random as f64) < ratio * (1_u64 << (8 * RANDOM_BYTES)) as f64
}

/// Bytes in hexadecimal digits, which are to be in lower case.
fn bytes_of<const BYTES: usize>(text: &[u8]) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let is_lower = !text.iter().any(u8::is_ascii_uppercase);
    hex::decode_to_slice(text, &mut bytes).ok()?;
    is_lower.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const REQUEST: [u8; 16] = *b"\x01\x02\x03\x04\x05\x06\x77\x08\x89\x0a\x0b\x0c\x0d\x0e\x0f\x10";

    #[test]
    fn a_header_is_read_and_written() {
        let parent = TraceParent::parse(HEADER.as_bytes());
        let context = TraceContext::begin(REQUEST, parent, 0.0);
        let expected = "00-4bf92f3577b34da6a3ce929d0e0e4736-890a0b0c0d0e0f10-01";
        assert_eq!(context.traceparent(), expected);
        assert_eq!(context.parent, parent.map(|parent| parent.span));
        let turn = context.child([7; 16]);
        assert_eq!((turn.parent, turn.span), (Some(context.span), [7; 8]));
    }

    #[test]
    fn without_a_caller_the_request_names_the_trace() {
        let context = TraceContext::begin(REQUEST, None, 1.0);
        let expected = "00-0102030405067708890a0b0c0d0e0f10-890a0b0c0d0e0f10-01";
        assert_eq!(context.traceparent(), expected);
        assert!(!TraceContext::begin(REQUEST, None, 0.0).sampled);
        // The last seven bytes are about 4 % of what they could be.
        assert!(!TraceContext::begin(REQUEST, None, 0.039).sampled);
        assert!(TraceContext::begin(REQUEST, None, 0.040).sampled);
    }

    #[test]
    fn a_caller_decides_whether_its_trace_is_recorded() {
        let parent = TraceParent::parse(HEADER.replace("-01", "-02").as_bytes());
        assert!(!TraceContext::begin(REQUEST, parent, 1.0).sampled);
        let parent = TraceParent::parse(HEADER.replace("-01", "-03").as_bytes());
        assert!(TraceContext::begin(REQUEST, parent, 0.0).sampled);
    }

    #[test]
    fn what_is_not_valid_is_none() {
        for header in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473x-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(header.as_bytes()), None, "{header}");
        }
    }

    #[test]
    fn a_later_version_may_have_more() {
        for more in ["", "-more"] {
            let header = format!("01{}{more}", &HEADER[2..]);
            assert!(TraceParent::parse(header.as_bytes()).is_some());
        }
    }
}
