//! Where the members stand that an edit may be about, noted while a body is scanned, so that what is done to them can be
//! decided when all of it has been read. All places are indexes into the buffer that holds the body.

use std::ops::Range;

use super::fields::{InnerTopic, Reader, Topic, says_fast};
use crate::codec::json::{Interest, Key, Kind, Value, Visitor};

/// The places of one body. Its memory grows with runs of members that an edit may remove, which alternate with others: it
/// stays below three times the body's, and [`Layout::memory`] tells it.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// Behind the opening brace.
    pub front: usize,
    /// Members that an edit may remove, in order.
    pub spans: Vec<Span>,
    /// Members of `response` objects that an edit may remove, in order.
    pub inner_spans: Vec<Span>,
    /// The first member `service_tier` of the first `response` object.
    pub first_inner_tier: Option<Range<usize>>,
    pub stream_options: StreamOptions,
    top: Cursor,
    inner: Cursor,
    /// Whether the value of a member of the top level is under way.
    in_member: bool,
    /// Members so far that may be read as `response`.
    responses: usize,
}

/// Members next to each other, with nothing but white space and commas between them, that go or stay together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub removable: Removable,
    /// Whether a member that no edit removes stands before it in its object.
    pub after_plain: bool,
    /// Whether it is the first of its object.
    pub is_first: bool,
    /// The comma before it, or its own beginning where it is the first.
    pub from: usize,
    /// The opening quote of its first member.
    pub start: usize,
    pub end: usize,
    /// Behind the comma that follows, or its own end where none does.
    pub next: usize,
}

/// What may be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removable {
    Tier,
    /// `"speed": "fast"`
    FastSpeed,
}

/// What there is to be edited so that a chat stream tells its usage.
#[derive(Debug, Default)]
pub(super) struct StreamOptions {
    /// Members that may be read as `stream_options`; one in a spelling that some readers do not know is as good as two.
    pub count: usize,
    pub value: Options,
    /// Members that may be read as `stream`, counted as above.
    pub streams: usize,
    /// A member that may be read as `stream` says `true`.
    is_asked: bool,
    /// Members of the object that may be read as `include_usage`.
    usages: usize,
    /// An object has several of these, or one in a spelling that some readers do not know; or a value is of a type that some
    /// readers take for `true` or `false`, as Python does.
    has_unclear_usage: bool,
    /// A member that may be read as `stream` has a value of such a type.
    has_unclear_stream: bool,
}

/// The value of the one `stream_options`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Options {
    #[default]
    Missing,
    /// `null`, and where it stands.
    Null(Range<usize>),
    /// An object without `include_usage`: where one fits, and whether others follow.
    Object { at: usize, is_empty: bool },
    /// An object that says `false` or `null` here.
    Off(Range<usize>),
    /// An object that asks for usage already.
    On,
    /// Something else, which is for the upstream to refuse.
    Other,
}

/// How far the members of an object have come.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// The comma before the member under way; none before the first.
    comma: Option<usize>,
    /// The opening quote of the member under way.
    start: usize,
    /// Whether the member before is the latest span.
    behind_span: bool,
    has_plain: bool,
}

/// Shows the scanner's members to the reader, and notes where they stand.
pub(super) struct Surveyor<'a> {
    pub layout: &'a mut Layout,
    pub reader: &'a mut Reader,
    /// Index in the buffer of the scanner's offset 0.
    pub origin: usize,
}

impl Layout {
    /// Whether there is a member that no edit removes.
    pub fn has_plain(&self) -> bool {
        self.top.has_plain
    }

    /// Bytes allocated for it.
    pub fn memory(&self) -> usize {
        (self.spans.capacity() + self.inner_spans.capacity()) * size_of::<Span>()
    }
}

impl Cursor {
    /// The member under way ends here.
    fn end(&mut self, removable: Option<Removable>, end: usize, spans: &mut Vec<Span>) {
        let Some(removable) = removable else {
            (self.has_plain, self.behind_span) = (true, false);
            return;
        };
        if let Some(last) = spans.last_mut()
            && self.behind_span
            && last.removable == removable
        {
            (last.end, last.next) = (end, end);
            return;
        }
        self.behind_span = true;
        spans.push(Span {
            removable,
            after_plain: self.has_plain,
            is_first: self.comma.is_none(),
            from: self.comma.unwrap_or(self.start),
            start: self.start,
            end,
            next: end,
        });
    }

    fn comma(&mut self, at: usize, spans: &mut [Span]) {
        self.comma = Some(at);
        if let Some(last) = spans.last_mut()
            && self.behind_span
        {
            last.next = at + 1;
        }
    }
}

impl Surveyor<'_> {
    fn index(&self, offset: u64) -> usize {
        self.origin + offset as usize
    }

    fn begin_member(&mut self, start: usize) {
        let layout = &mut *self.layout;
        layout.top.start = start;
        layout.in_member = true;
        match self.reader.topic {
            Topic::Response => {
                layout.responses += 1;
                layout.inner = Cursor::default();
            }
            Topic::StreamOptions { exact } => {
                layout.stream_options.begin(exact);
                layout.inner = Cursor::default();
            }
            Topic::Stream { exact } => {
                layout.stream_options.streams += if exact { 1 } else { 2 };
            }
            _ => {}
        }
    }

    fn begin_inner(&mut self, start: usize) {
        let layout = &mut *self.layout;
        layout.inner.start = start;
        if let Topic::StreamOptions { .. } = self.reader.topic {
            layout.stream_options.see_member(start);
        }
    }

    fn end_member(&mut self, value: Value<'_>, end: usize) {
        let layout = &mut *self.layout;
        layout.in_member = false;
        let removable = match self.reader.topic {
            Topic::Tier { .. } => Some(Removable::Tier),
            Topic::Speed { .. } if says_fast(value) => Some(Removable::FastSpeed),
            Topic::Stream { .. } => {
                layout.stream_options.is_asked |= value.raw == b"true";
                layout.stream_options.has_unclear_stream |= !is_boolean_or_null(value.kind);
                None
            }
            Topic::StreamOptions { .. } => {
                layout.stream_options.end(value.kind, end);
                None
            }
            _ => None,
        };
        layout.top.end(removable, end, &mut layout.spans);
    }

    fn end_inner(&mut self, value: Value<'_>, end: usize) {
        let layout = &mut *self.layout;
        match self.reader.inner {
            InnerTopic::IncludeUsage { exact } => {
                layout.stream_options.end_usage(exact, value, end);
            }
            InnerTopic::Tier => {
                let member = layout.inner.start..end;
                if layout.responses == 1 && layout.first_inner_tier.is_none() {
                    layout.first_inner_tier = Some(member);
                }
                let inner_spans = &mut layout.inner_spans;
                layout.inner.end(Some(Removable::Tier), end, inner_spans);
            }
            _ => layout.inner.end(None, end, &mut layout.inner_spans),
        }
    }
}

impl Visitor for Surveyor<'_> {
    fn key(&mut self, key: Key<'_>) -> Interest {
        let interest = self.reader.key(key);
        let start = self.index(key.start);
        match key.depth {
            1 => self.begin_member(start),
            _ => self.begin_inner(start),
        }
        interest
    }

    fn value(&mut self, value: Value<'_>) {
        self.reader.value(value);
        let end = self.index(value.end);
        match value.depth {
            1 => self.end_member(value, end),
            _ => self.end_inner(value, end),
        }
    }

    fn comma(&mut self, at: u64) {
        let at = self.index(at);
        let layout = &mut *self.layout;
        if layout.in_member {
            layout.inner.comma(at, &mut layout.inner_spans)
        } else {
            layout.top.comma(at, &mut layout.spans)
        }
    }
}

impl StreamOptions {
    /// What can be edited: nothing where two readers may take different members for it.
    pub fn editable(&self) -> Options {
        match self.count {
            0 | 1 if self.streams == 1 => self.value.clone(),
            _ => Options::Other,
        }
    }

    /// Whether some reader may take the body for one that asks for a stream, and another may find other options in it.
    pub fn is_unclear(&self) -> bool {
        let is_unclear = self.streams > 1 || self.count > 1 || self.has_unclear_usage;
        self.has_unclear_stream || (self.is_asked && is_unclear)
    }

    fn begin(&mut self, exact: bool) {
        self.count += if exact { 1 } else { 2 };
        (self.usages, self.value) = (0, Options::Missing);
    }

    /// A member of the object begins.
    fn see_member(&mut self, start: usize) {
        if self.value == Options::Missing {
            let is_empty = false;
            self.value = Options::Object {
                at: start,
                is_empty,
            };
        }
    }

    fn end_usage(&mut self, exact: bool, value: Value<'_>, end: usize) {
        self.usages += 1;
        self.has_unclear_usage |= !exact || self.usages > 1 || !is_boolean_or_null(value.kind);
        self.value = match value.kind {
            _ if !exact || self.usages > 1 => Options::Other,
            Kind::Bool if value.raw == b"true" => Options::On,
            Kind::Bool => Options::Off(end - "false".len()..end),
            Kind::Null => Options::Off(end - "null".len()..end),
            _ => Options::Other,
        };
    }

    fn end(&mut self, kind: Kind, end: usize) {
        self.has_unclear_usage |= !matches!(kind, Kind::Object | Kind::Null);
        self.value = match (kind, std::mem::take(&mut self.value)) {
            (Kind::Object, Options::Missing) => Options::Object {
                at: end - 1,
                is_empty: true,
            },
            (Kind::Object, value) => value,
            (Kind::Null, _) => Options::Null(end - "null".len()..end),
            _ => Options::Other,
        };
    }
}

fn is_boolean_or_null(kind: Kind) -> bool {
    matches!(kind, Kind::Bool | Kind::Null)
}
