//! The `input` list of a Responses request, and its repair: a call without a result, or a result without a call, is
//! answered 400 by the API for the rest of the session, so both get what they miss. It does not read the client's body.

use super::json::{Node, Object, Text, object};
use crate::config::bridge::ToolMedia;
use std::collections::{HashMap, HashSet};

/// What a tool is said to have put out if it has put out nothing.
const NO_OUTPUT: &str = "(no output)";

/// What stands for the media that follow in a message of their own.
const OUTPUT_FOLLOWS: &str = "(output follows)";

/// Output of a call whose result the history has lost.
const NO_OUTPUT_RECORDED: &str = "(no output recorded)";

/// What a result without a call is introduced by, in JSON form.
const ORPHAN: &str = "[result of an earlier tool call]\\n";

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Who sets the rules; Responses has no other system role.
    Developer,
    /// Who asks.
    User,
    /// The model.
    Assistant,
}

/// How a tool is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// With JSON arguments.
    Function,
    /// With free text.
    Custom,
}

/// A part of what a user, a system text or a tool says.
#[derive(Clone, Debug)]
pub(crate) enum Part<'a> {
    /// `input_text`.
    Text(Text<'a>),
    /// `input_image` or `input_file`.
    Media(Node<'a>),
}

#[derive(Clone, Debug)]
enum Item<'a> {
    /// Something said.
    Message {
        role: Role,
        content: Vec<Node<'a>>,
        phase: Option<&'static str>,
    },
    /// A tool call of the model.
    Call {
        kind: CallKind,
        id: String,
        name: Text<'a>,
        arguments: Text<'a>,
    },
    /// What the tool of a call has put out.
    Output {
        kind: CallKind,
        id: String,
        output: Node<'a>,
    },
    /// Encrypted.
    Reasoning(Text<'a>),
}

#[derive(Debug, Default)]
pub(crate) struct Input<'a> {
    /// In the order in which they are sent.
    items: Vec<Item<'a>>,
    /// The calls so far, by their ids.
    calls: HashMap<String, CallKind>,
    /// Ids of calls that have an output.
    answered: HashSet<String>,
}

impl<'a> Part<'a> {
    /// A text part of these words, which must need no escape.
    pub(crate) fn word(word: &'static str) -> Self {
        Part::Text(Text::word(word))
    }

    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Part::Text(_))
    }

    pub(crate) fn into_text(self) -> Option<Text<'a>> {
        match self {
            Part::Text(text) => Some(text),
            Part::Media(_) => None,
        }
    }

    /// The part as Responses has it.
    pub(crate) fn into_node(self) -> Node<'a> {
        match self {
            Part::Text(text) => object! {"type": "input_text", "text": text}.into(),
            Part::Media(node) => node,
        }
    }
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

impl CallKind {
    /// The `type` of a call.
    fn call_type(self) -> &'static str {
        match self {
            CallKind::Function => "function_call",
            CallKind::Custom => "custom_tool_call",
        }
    }

    /// The `type` of its output.
    fn output_type(self) -> &'static str {
        match self {
            CallKind::Function => "function_call_output",
            CallKind::Custom => "custom_tool_call_output",
        }
    }

    /// The member that has its arguments.
    fn arguments_name(self) -> &'static str {
        match self {
            CallKind::Function => "arguments",
            CallKind::Custom => "input",
        }
    }
}

impl<'a> Input<'a> {
    /// Adds a message, unless it says nothing.
    pub(crate) fn say(&mut self, role: Role, parts: Vec<Part<'a>>) {
        let content = parts.into_iter().map(Part::into_node).collect();
        self.message(role, content);
    }

    /// Adds a message of the assistant, whose parts are of its own types, unless it is empty.
    pub(crate) fn assistant(&mut self, content: Vec<Node<'a>>) {
        self.message(Role::Assistant, content);
    }

    /// Adds a text of the assistant; to the item before, if that is one of his too.
    pub(crate) fn assistant_text(&mut self, text: &Text<'a>, phase: Option<&'static str>) {
        let part = output_text(text);
        if let Some(Item::Message {
            role: Role::Assistant,
            content,
            ..
        }) = self.items.last_mut()
        {
            content.push(part);
            return;
        }
        let content = vec![part];
        self.items.push(Item::Message {
            role: Role::Assistant,
            content,
            phase,
        });
    }

    /// Adds encrypted reasoning; it is kept if something of its own turn follows.
    pub(crate) fn reasoning(&mut self, encrypted: Text<'a>) {
        self.items.push(Item::Reasoning(encrypted));
    }

    pub(crate) fn call(&mut self, kind: CallKind, id: String, name: Text<'a>, arguments: Text<'a>) {
        self.calls.insert(id.clone(), kind);
        self.items.push(Item::Call {
            kind,
            id,
            name,
            arguments,
        });
    }

    /// Adds a call's output; hands it back where no call stands before it, or it has one already.
    pub(crate) fn output(&mut self, id: String, output: Node<'a>) -> Result<(), Node<'a>> {
        let Some(&kind) = self.calls.get(&id).filter(|_| !self.answered.contains(&id)) else {
            return Err(output);
        };
        self.answered.insert(id.clone());
        self.items.push(Item::Output { kind, id, output });
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether anybody but the developer says something.
    pub(crate) fn is_conversation(&self) -> bool {
        let says = |item: &Item<'_>| !matches!(item.role(), None | Some(Role::Developer));
        self.items.iter().any(says)
    }

    /// Whether it ends with a text of the assistant, which the model will not continue.
    pub(crate) fn ends_with_assistant(&self) -> bool {
        let mut items = self.items.iter();
        let last = items.rfind(|item| !matches!(item, Item::Reasoning(_)));
        matches!(last, Some(Item::Message { role, .. }) if *role == Role::Assistant)
    }

    /// The list, with an output for every call, and reasoning only where something of its own turn follows.
    pub(crate) fn finish(self) -> Node<'a> {
        let answered = self.answered;
        let mut nodes = Vec::with_capacity(self.items.len());
        let mut reasoning = Vec::new();
        for item in self.items {
            if let Item::Reasoning(_) = item {
                reasoning.push(item.into_object().into());
                continue;
            }
            if item.role() == Some(Role::Assistant) {
                nodes.append(&mut reasoning);
            }
            reasoning.clear();
            let lost = item.lost_output(&answered);
            let items = [Some(item), lost].into_iter().flatten();
            nodes.extend(items.map(|item| item.into_object().into()));
        }
        Node::List(nodes)
    }

    /// Adds a message, unless it is empty.
    fn message(&mut self, role: Role, content: Vec<Node<'a>>) {
        if !content.is_empty() {
            let phase = None;
            self.items.push(Item::Message {
                role,
                content,
                phase,
            });
        }
    }
}

impl<'a> Item<'a> {
    /// Who has made it; nobody says reasoning by itself.
    fn role(&self) -> Option<Role> {
        match self {
            Item::Message { role, .. } => Some(*role),
            Item::Call { .. } => Some(Role::Assistant),
            Item::Output { .. } => Some(Role::User),
            Item::Reasoning(_) => None,
        }
    }

    /// The output to put behind a call that has none.
    fn lost_output(&self, answered: &HashSet<String>) -> Option<Item<'a>> {
        match self {
            Item::Call { kind, id, .. } if !answered.contains(id) => Some(Item::Output {
                kind: *kind,
                id: id.clone(),
                output: Node::word(NO_OUTPUT_RECORDED),
            }),
            _ => None,
        }
    }

    /// The item as Responses has it.
    fn into_object(self) -> Object<'a> {
        match self {
            // Without `id` and `status`, which stand only in answers.
            Item::Message {
                role,
                content,
                phase,
            } => object! {
                "type": "message",
                "role": role.word(),
                "content": content,
                "phase": phase,
            },
            Item::Call {
                kind,
                id,
                name,
                arguments,
            } => {
                let mut call = object! {
                    "type": kind.call_type(),
                    "call_id": Node::text(&id),
                    "name": name,
                };
                call.push(kind.arguments_name(), arguments);
                call
            }
            Item::Output { kind, id, output } => object! {
                "type": kind.output_type(),
                "call_id": Node::text(&id),
                "output": output,
            },
            // No `id`: with `store: false` it would be looked up, and not found.
            Item::Reasoning(encrypted) => object! {
                "type": "reasoning",
                "summary": Vec::new(),
                "encrypted_content": encrypted,
            },
        }
    }
}

/// A text of the assistant.
pub(crate) fn output_text<'a>(text: &Text<'a>) -> Node<'a> {
    object! {"type": "output_text", "text": text}.into()
}

/// What a tool has put out: `output` of the item, and media that are to follow in a user message. The output is a string
/// where there are only texts, else a list.
pub(crate) fn tool_output(parts: Vec<Part<'_>>, media: ToolMedia) -> (Node<'_>, Vec<Part<'_>>) {
    let texts_only = parts.iter().all(Part::is_text);
    if media == ToolMedia::Inline && !texts_only {
        let parts = parts.into_iter().map(Part::into_node).collect();
        return (Node::List(parts), Vec::new());
    }
    let (texts, media): (Vec<_>, Vec<_>) = parts.into_iter().partition(Part::is_text);
    let texts: Vec<_> = texts.into_iter().filter_map(Part::into_text).collect();
    let output = match (texts.is_empty(), media.is_empty()) {
        (true, true) => Node::word(NO_OUTPUT),
        (true, false) => Node::word(OUTPUT_FOLLOWS),
        _ => Node::Text(Text::join(texts, "\\n")),
    };
    (output, media)
}

/// What a tool's result without a call becomes: its text with a note, and its media.
pub(crate) fn orphan<'a>(output: Node<'a>) -> Vec<Part<'a>> {
    let (mut texts, mut media) = (Vec::new(), Vec::new());
    let parts = match output {
        Node::Text(text) => {
            texts.push(text);
            Vec::new()
        }
        Node::List(parts) => parts,
        _ => Vec::new(),
    };
    for part in parts {
        match part.member("text") {
            Some(Node::Text(text)) => texts.push(text.clone()),
            _ => media.push(Part::Media(part)),
        }
    }
    let text = Text::Joined(vec![Text::word(ORPHAN), Text::join(texts, "\\n")]);
    media.insert(0, Part::Text(text));
    media
}
