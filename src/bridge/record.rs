//! Reading a request's members by type: what is there in another type than the protocol names is a refusal that names
//! its place. Null counts as absent, as in both vendors' SDKs. It knows no protocol's members.

use super::error::Refusal;
use super::json::{Node, Object, Text};
use std::borrow::Cow;
use std::fmt;

/// The deepest place that is named in full; below it, the place of what is around is named.
const PATH_STEPS: usize = 8;

/// How a place is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathStyle {
    /// `messages.0.content`, as Anthropic's API names it.
    Dots,
    /// `messages[0].content`, as OpenAI's does.
    Brackets,
}

/// A place in the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    style: PathStyle,
    steps: [Step; PATH_STEPS],
    length: usize,
}

/// One step of a place.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// To a member of an object.
    Member(&'static str),
    /// To an item of a list, counted from 0.
    Item(usize),
}

impl Path {
    /// The place of the body itself.
    pub(crate) fn root(style: PathStyle) -> Self {
        Path {
            style,
            steps: [Step::Item(0); PATH_STEPS],
            length: 0,
        }
    }

    /// The place of a member.
    pub(crate) fn member(self, name: &'static str) -> Self {
        self.step(Step::Member(name))
    }

    /// The place of a list's item.
    pub(crate) fn item(self, index: usize) -> Self {
        self.step(Step::Item(index))
    }

    /// A refusal of what stands here.
    pub(crate) fn refuse(self, what: impl AsRef<str>) -> Refusal {
        Refusal::invalid(self.to_string(), what)
    }

    /// One step further; beyond the deepest that is named, the same place.
    fn step(mut self, step: Step) -> Self {
        if let Some(free) = self.steps.get_mut(self.length) {
            *free = step;
            self.length += 1;
        }
        self
    }
}

impl fmt::Display for Path {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.steps[..self.length].iter().enumerate() {
            let dot = if number == 0 { "" } else { "." };
            match (step, self.style) {
                (Step::Member(name), _) => write!(out, "{dot}{name}")?,
                (Step::Item(index), PathStyle::Dots) => write!(out, "{dot}{index}")?,
                (Step::Item(index), PathStyle::Brackets) => write!(out, "[{index}]")?,
            }
        }
        if self.length == 0 {
            out.write_str("body")?;
        }
        Ok(())
    }
}

/// An object of the request, and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'n, 'a> {
    object: &'n Object<'a>,
    /// Where it stands.
    pub(crate) path: Path,
}

/// The `content` of a message or of a tool's result.
#[derive(Clone, Debug)]
pub(crate) enum Content<'n, 'a> {
    /// It was a string.
    Text(&'n Text<'a>),
    /// It was a list of blocks or parts, or it was not there.
    Blocks(Vec<Record<'n, 'a>>),
}

/// The members of an object, each by its name and as the type that it must have. One that is `null` counts as absent; where one
/// is absent, its reader gives `None` unless it says otherwise. Of another type it is a refusal, which names it.
impl<'n, 'a> Record<'n, 'a> {
    /// The value at `path`, which must be an object.
    pub(crate) fn new(node: &'n Node<'a>, path: Path) -> Result<Self, Refusal> {
        let object = node
            .as_object()
            .ok_or_else(|| path.refuse("must be an object"))?;
        Ok(Record { object, path })
    }

    pub(crate) fn object(&self) -> &'n Object<'a> {
        self.object
    }

    /// The member of this name, whatever its type.
    pub(crate) fn node(&self, name: &str) -> Option<&'n Node<'a>> {
        self.object
            .get(name)
            .filter(|value| !matches!(value, Node::Null))
    }

    /// The string of this name.
    pub(crate) fn text(&self, name: &'static str) -> Result<Option<&'n Text<'a>>, Refusal> {
        match self.node(name) {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    /// The string of this name, which must be there.
    pub(crate) fn need_text(&self, name: &'static str) -> Result<&'n Text<'a>, Refusal> {
        self.text(name)?.ok_or_else(|| self.missing(name))
    }

    /// The string of this name; `None` where it is empty, too.
    pub(crate) fn some_text(&self, name: &'static str) -> Result<Option<&'n Text<'a>>, Refusal> {
        Ok(self.text(name)?.filter(|text| !text.is_empty()))
    }

    /// The plain text of the string of this name; empty where it is absent.
    pub(crate) fn word(&self, name: &'static str) -> Result<Cow<'n, str>, Refusal> {
        Ok(self.text(name)?.map_or(Cow::Borrowed(""), Text::plain))
    }

    /// The boolean of this name; false where it is absent.
    pub(crate) fn flag(&self, name: &'static str) -> Result<bool, Refusal> {
        Ok(self.maybe_flag(name)?.unwrap_or(false))
    }

    /// The boolean of this name.
    pub(crate) fn maybe_flag(&self, name: &'static str) -> Result<Option<bool>, Refusal> {
        match self.node(name) {
            None => Ok(None),
            Some(Node::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(name, "a boolean")),
        }
    }

    /// The number of this name, as it was spelled.
    pub(crate) fn number(&self, name: &'static str) -> Result<Option<&'n Node<'a>>, Refusal> {
        match self.node(name) {
            number @ (None | Some(Node::Number(_))) => Ok(number),
            Some(_) => Err(self.wrong(name, "a number")),
        }
    }

    /// The object of this name.
    pub(crate) fn record(&self, name: &'static str) -> Result<Option<Record<'n, 'a>>, Refusal> {
        self.node(name)
            .map(|node| Record::new(node, self.path.member(name)))
            .transpose()
    }

    /// The object of this name, which must be there.
    pub(crate) fn need_record(&self, name: &'static str) -> Result<Record<'n, 'a>, Refusal> {
        self.record(name)?.ok_or_else(|| self.missing(name))
    }

    /// The list of this name; empty where it is absent.
    pub(crate) fn list(&self, name: &'static str) -> Result<&'n [Node<'a>], Refusal> {
        match self.node(name) {
            None => Ok(&[]),
            Some(Node::List(list)) => Ok(list),
            Some(_) => Err(self.wrong(name, "a list")),
        }
    }

    /// The list of this name, which must hold objects; empty where it is absent.
    pub(crate) fn records(&self, name: &'static str) -> Result<Vec<Record<'n, 'a>>, Refusal> {
        let path = self.path.member(name);
        let items = self.list(name)?.iter().enumerate();
        items
            .map(|(index, node)| Record::new(node, path.item(index)))
            .collect()
    }

    /// The list of this name, which must hold strings; empty where it is absent.
    pub(crate) fn texts(&self, name: &'static str) -> Result<Vec<&'n Text<'a>>, Refusal> {
        let path = self.path.member(name);
        let text = |(index, node): (usize, &'n Node<'a>)| match node {
            Node::Text(text) => Ok(text),
            _ => Err(path.item(index).refuse("must be a string")),
        };
        self.list(name)?.iter().enumerate().map(text).collect()
    }

    /// The string or the list of objects of this name; an empty list where it is absent.
    pub(crate) fn content(&self, name: &'static str) -> Result<Content<'n, 'a>, Refusal> {
        match self.node(name) {
            Some(Node::Text(text)) => Ok(Content::Text(text)),
            Some(Node::List(_)) | None => Ok(Content::Blocks(self.records(name)?)),
            Some(_) => Err(self.wrong(name, "a string or a list")),
        }
    }

    /// Whether the member of this name says anything: it is not absent, null, false, zero or empty.
    pub(crate) fn says(&self, name: &str) -> bool {
        match self.node(name) {
            None | Some(Node::Null | Node::Bool(false)) => false,
            Some(Node::Bool(true)) => true,
            Some(Node::Number(spelled)) => spelled.parse::<f64>().is_ok_and(|number| number != 0.0),
            Some(Node::Text(text)) => !text.is_empty(),
            Some(Node::List(list)) => !list.is_empty(),
            Some(Node::Object(object)) => !object.is_empty(),
        }
    }

    /// The refusal for a member that must be there.
    pub(crate) fn missing(&self, name: &'static str) -> Refusal {
        self.path.member(name).refuse("Field required")
    }

    /// The refusal for a member of another type.
    fn wrong(&self, name: &'static str, wanted: &str) -> Refusal {
        self.path.member(name).refuse(format!("must be {wanted}"))
    }
}
