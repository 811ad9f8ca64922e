//! A YAML file as a tree in which every value knows its place and keeps its spelling. It knows nothing of types, nor of
//! what the files mean. The parser is the one below serde-saphyr: through serde, a mistake would end the reading, and
//! `0123` as an API key would have become a number.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError};

use crate::config::diagnostic::{Mistake, Mistakes, Place};
use crate::config::secret_file::{FileBytes, MOST_BYTES};

/// The deepest of our files has four levels.
const MAX_NESTING: usize = 32;
/// Mappings up to this size are searched member by member: most of a large policy are of two or three.
const SMALL_MAPPING: usize = 8;
/// Once so many nodes are there, room is asked for at once for as many as the file may have: growing step by step copies them
/// in one piece of some milliseconds, in which no request is served where the processor is shared.
const MANY_NODES: usize = 4096;

/// A value of the file and where it begins.
pub struct Node<'a> {
    pub place: Place,
    pub(crate) value: Value<'a>,
}

pub(crate) enum Value<'a> {
    /// `plain`: without quotes, so that it may be read as a number, a truth value or nothing.
    Scalar {
        text: Cow<'a, str>,
        plain: bool,
    },
    List(Box<[Node<'a>]>),
    Mapping(Box<[Entry<'a>]>),
}

/// A member of a mapping. No two members of a mapping have the same key.
pub struct Entry<'a> {
    /// As spelled, whatever type a plain scalar of this spelling has.
    pub key: Cow<'a, str>,
    pub place: Place,
    pub value: Node<'a>,
}

/// The bytes of a file; one that cannot be read, or is beyond all sense large, is a mistake at its first line.
pub fn read(path: &Path) -> Result<FileBytes, Mistake> {
    FileBytes::read(path).map_err(|error| Mistake::unreadable(path, &error))
}

/// The tree of a file that holds one YAML document. None after a mistake that leaves nothing to go on with.
pub fn parse<'a>(bytes: &'a [u8], mistakes: &Mistakes) -> Option<Node<'a>> {
    if bytes.len() > MOST_BYTES {
        mistakes.add(Place::START, "the file is larger than 1 GiB");
        return None;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Builder::new(text, mistakes).build(text),
        Err(error) => {
            mistakes.add(
                place_after(&bytes[..error.valid_up_to()]),
                "this byte is not UTF-8",
            );
            None
        }
    }
}

impl<'a> Node<'a> {
    /// The members, or none and a mistake where this is not a mapping.
    pub fn entries(&self, mistakes: &Mistakes) -> &[Entry<'a>] {
        match &self.value {
            Value::Mapping(entries) => entries,
            _ => {
                self.unexpected::<()>("a mapping", mistakes);
                &[]
            }
        }
    }

    /// The member of that name, where this is a mapping and has it.
    pub fn member(&self, name: &str) -> Option<&Entry<'a>> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == name),
            _ => None,
        }
    }

    pub fn list(&self, mistakes: &Mistakes) -> &[Node<'a>] {
        match &self.value {
            Value::List(items) => items,
            _ => {
                self.unexpected::<()>("a list", mistakes);
                &[]
            }
        }
    }

    /// Frees a large tree, and lets others go first in between.
    pub fn free(self) {
        match self.value {
            Value::Mapping(entries) => entries.into_iter().for_each(|entry| entry.value.free()),
            Value::List(items) => items.into_iter().for_each(Node::free),
            Value::Scalar { .. } => {}
        }
    }

    pub fn is_list(&self) -> bool {
        matches!(self.value, Value::List(_))
    }

    pub fn is_mapping(&self) -> bool {
        matches!(self.value, Value::Mapping(_))
    }
}

/// Builds the tree from the parser's events without recursion.
struct Builder<'a, 'm> {
    mistakes: &'m Mistakes,
    /// Finished nodes whose parent is still open, children of one parent side by side.
    nodes: Vec<Node<'a>>,
    /// Collections under way: where each begins, and how many finished nodes were there before it.
    open: Vec<(Place, usize)>,
    /// Lines of the file, each a key and its value in a large one.
    lines: usize,
    /// A value is not there: the mistakes that follow from it would only confuse.
    incomplete: bool,
}

impl<'a, 'm> Builder<'a, 'm> {
    fn new(text: &str, mistakes: &'m Mistakes) -> Self {
        Builder {
            mistakes,
            nodes: Vec::new(),
            open: Vec::new(),
            lines: memchr::memchr_iter(b'\n', text.as_bytes()).count(),
            incomplete: false,
        }
    }

    fn build(mut self, text: &'a str) -> Option<Node<'a>> {
        let options = granit_parser::options! {
            emit_comments: false,
            flow_nesting_limit: MAX_NESTING,
            block_nesting_limit: MAX_NESTING,
        };
        for next in Parser::new_from_str_with_options(text, options) {
            let outcome = match next {
                Ok((event, span)) => self.event(event, place_of(&span.start)),
                Err(error) => Err((place_of(error.marker()), syntax_message(&error))),
            };
            if let Err((place, message)) = outcome {
                self.mistakes.add(place, message);
                return None;
            }
        }
        if self.nodes.is_empty() {
            self.mistakes.add(Place::START, "the file is empty");
        }
        self.nodes.pop().filter(|_| !self.incomplete)
    }

    /// `Err`: what comes after this place is not read.
    fn event(&mut self, event: Event<'a>, place: Place) -> Result<(), (Place, String)> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_indirection(place, anchor != 0, tag.is_some());
                self.push(
                    place,
                    Value::Scalar {
                        text,
                        plain: style == ScalarStyle::Plain,
                    },
                );
            }
            Event::SequenceStart(_, anchor, tag) | Event::MappingStart(_, anchor, tag) => {
                self.refuse_indirection(place, anchor != 0, tag.is_some());
                self.open.push((place, self.nodes.len()));
            }
            Event::SequenceEnd => self.close(|_, children| Value::List(children.collect())),
            Event::MappingEnd => {
                self.close(|mistakes, children| Value::Mapping(entries(children, mistakes)))
            }
            Event::Alias(_) => {
                self.refuse_indirection(place, true, false);
                self.incomplete = true;
                self.push(
                    place,
                    Value::Scalar {
                        text: Cow::Borrowed(""),
                        plain: true,
                    },
                );
            }
            Event::DocumentStart(..) if !self.nodes.is_empty() => {
                return Err((
                    place,
                    "a second document begins here; the file holds one".to_owned(),
                ));
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, place: Place, value: Value<'a>) {
        if self.nodes.len() == MANY_NODES {
            // Where there is not so much, growing may still do.
            let _ = self.nodes.try_reserve_exact(2 * self.lines);
        }
        self.nodes.push(Node { place, value });
    }

    fn close(&mut self, value: impl FnOnce(&Mistakes, std::vec::Drain<'_, Node<'a>>) -> Value<'a>) {
        // The parser closes only what it opened; were it otherwise, the tree would merely end here.
        let Some((place, first)) = self.open.pop() else {
            return;
        };
        let value = value(self.mistakes, self.nodes.drain(first..));
        self.push(place, value);
    }

    /// What a line says is to be read on that line: a policy in which one line changes another by reference is one in
    /// which somebody will overlook whom it forces. It also leaves no way to make a small file large.
    fn refuse_indirection(&self, place: Place, alias: bool, tag: bool) {
        if alias {
            self.mistakes.add(
                place,
                "anchors and aliases are not accepted; write the value out",
            );
        }
        if tag {
            self.mistakes.add(place, "tags are not accepted");
        }
    }
}

/// Pairs of nodes as members; of several with one key the first stays and the others are mistakes.
fn entries<'a>(mut nodes: std::vec::Drain<'_, Node<'a>>, mistakes: &Mistakes) -> Box<[Entry<'a>]> {
    let mut entries = Vec::with_capacity(nodes.len() / 2);
    while let (Some(key), Some(value)) = (nodes.next(), nodes.next()) {
        match key.value {
            Value::Scalar { text, plain } if !(plain && spells_nothing(&text)) => {
                entries.push(Entry {
                    key: text,
                    place: key.place,
                    value,
                })
            }
            _ => mistakes.add(key.place, "a key must be a string"),
        }
    }
    let repeated = repeated(&entries);
    if !repeated.is_empty() {
        for (place, first) in &repeated {
            mistakes.add(
                *place,
                format!("duplicate key; it was first given at {first}"),
            );
        }
        entries.retain(|entry| !repeated.contains_key(&entry.place));
    }
    entries.into_boxed_slice()
}

/// Whether a scalar without quotes says `null`. Where nothing stands, the parser puts `~`.
pub(crate) fn spells_nothing(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// The places of the members whose key was there before, and where it was.
fn repeated(entries: &[Entry<'_>]) -> BTreeMap<Place, Place> {
    if entries.len() <= SMALL_MAPPING {
        let first = |entry: &Entry<'_>| {
            entries
                .iter()
                .find(|other| other.key == entry.key)
                .map(|other| other.place)
        };
        let firsts = entries
            .iter()
            .filter_map(|entry| Some((entry.place, first(entry)?)));
        return firsts.filter(|(place, first)| place != first).collect();
    }
    let mut seen: HashMap<&str, Place> = HashMap::with_capacity(entries.len());
    let firsts = entries
        .iter()
        .map(|entry| (entry.place, *seen.entry(&entry.key).or_insert(entry.place)));
    firsts.filter(|(place, first)| place != first).collect()
}

/// The parser's message; the one that would quote a character of the file says less.
fn syntax_message(error: &ScanError) -> String {
    match error.kind() {
        ErrorKind::UnexpectedCharacter { .. } => {
            "unexpected character; a value that begins with it needs quotes".to_owned()
        }
        ErrorKind::RecursionLimitExceeded => "nested too deep".to_owned(),
        kind => kind.to_string(),
    }
}

/// The parser counts columns from 0.
fn place_of(marker: &Marker) -> Place {
    Place {
        line: narrow(marker.line().max(1)),
        column: narrow(marker.col() + 1),
    }
}

/// Lines end by LF, CR or both, as the parser counts them.
fn place_after(text: &[u8]) -> Place {
    let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let line_start = text.iter().rposition(is_break).map_or(0, |at| at + 1);
    let breaks = text.iter().filter(|byte| is_break(byte)).count();
    let pairs = text.windows(2).filter(|pair| pair == b"\r\n").count();
    let column = String::from_utf8_lossy(&text[line_start..]).chars().count() + 1;
    Place {
        line: narrow(breaks - pairs + 1),
        column: narrow(column),
    }
}

/// Lines and columns of a file below [`MOST_BYTES`] fit; saturation is for the types only.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> (Vec<(String, Place)>, Vec<String>) {
        let mistakes = Mistakes::new(Path::new("f"));
        let root = parse(text.as_bytes(), &mistakes);
        let entries = root
            .as_ref()
            .map_or(&[][..], |root| root.entries(&mistakes));
        let keys = entries
            .iter()
            .map(|entry| (entry.key.to_string(), entry.place))
            .collect();
        (
            keys,
            mistakes.into_vec().iter().map(Mistake::to_string).collect(),
        )
    }

    #[test]
    fn keys_keep_their_spelling_and_their_place() {
        let place = |line, column| Place { line, column };
        let (found, mistakes) =
            keys("0123: a\n\n'1e5': b\n# é\n\"\\u00e9\": {x: 1}\n\"null\": c\n");
        let expected = [
            ("0123", place(1, 1)),
            ("1e5", place(3, 1)),
            ("é", place(5, 1)),
            ("null", place(6, 1)),
        ];
        assert_eq!(found, expected.map(|(key, place)| (key.to_owned(), place)));
        assert_eq!(mistakes, [""; 0]);
    }

    #[test]
    fn a_key_that_is_nothing_is_a_mistake() {
        for text in [": a\n", "~: a\n", "null: a\n", "? \n: a\n", "{: a}"] {
            let (found, mistakes) = keys(text);
            assert_eq!(found, []);
            assert!(mistakes[0].ends_with("a key must be a string"), "{text}");
        }
    }

    #[test]
    fn the_place_of_a_broken_byte_counts_every_kind_of_line_end() {
        for before in [
            "a: 1\nb: ",
            "a: 1\rb: ",
            "a: 1\r\nb: ",
            "\u{e9}\u{e9}\u{e9}",
        ] {
            let mistakes = Mistakes::new(Path::new("f"));
            let text = [before.as_bytes(), b"\xff"].concat();
            assert!(parse(&text, &mistakes).is_none());
            let place = if before.contains('a') {
                "f:2:4"
            } else {
                "f:1:4"
            };
            let told = mistakes.into_vec()[0].to_string();
            assert_eq!(
                told,
                format!("{place}: this byte is not UTF-8"),
                "{before:?}"
            );
        }
    }

    #[test]
    fn every_repetition_is_told_with_the_first_place_in_small_and_in_large_mappings() {
        for padding in ["", "b: 1\nc: 1\nd: 1\ne: 1\nf: 1\ng: 1\nh: 1\ni: 1\nj: 1\n"] {
            let (found, mistakes) = keys(&format!("a: 1\n\"a\": 2\n{padding}a: 3\n"));
            assert_eq!(found.iter().filter(|(key, _)| key == "a").count(), 1);
            assert_eq!(mistakes.len(), 2);
            assert_eq!(
                mistakes[0],
                "f:2:1: duplicate key; it was first given at 1:1"
            );
        }
    }

    #[test]
    fn a_large_file_may_be_json_on_one_line() {
        let members: Vec<String> = (0..5000)
            .map(|index| format!("\"k{index}\":{{\"a\":[1]}}"))
            .collect();
        let (found, mistakes) = keys(&format!("{{{}}}", members.join(",")));
        assert_eq!((found.len(), mistakes), (5000, vec![]));
    }

    #[test]
    fn deep_nesting_ends_the_reading() {
        for text in ["[".repeat(100_000), "- ".repeat(100_000)] {
            assert_eq!(keys(&text).1.len(), 1);
        }
    }
}
