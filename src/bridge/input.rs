//! The `input` list of a Responses request, and its repair: a call without a result, or a result without a call, is
//! answered 400 by the API for the rest of the session, so both get what they miss. It does not read the client's body.

use super::json::{Node, Object, Text};
use std::collections::{HashMap, HashSet};

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

/// One item of the list.
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

/// Collects the items.
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

    /// Whether it is a text.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Part::Text(_))
    }

    /// The text, if it is one.
    pub(crate) fn into_text(self) -> Option<Text<'a>> {
        match self {
            Part::Text(text) => Some(text),
            Part::Media(_) => None,
        }
    }

    /// The part as Responses has it.
    pub(crate) fn into_node(self) -> Node<'a> {
        match self {
            Part::Text(text) => Node::object([
                ("type", Node::word("input_text")),
                ("text", Node::Text(text)),
            ]),
            Part::Media(node) => node,
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
    pub(crate) fn assistant_text(&mut self, text: Text<'a>, phase: Option<&'static str>) {
        let part = Node::object([
            ("type", Node::word("output_text")),
            ("text", Node::Text(text)),
        ]);
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

    /// Adds a call.
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

    /// Whether nobody says anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether anybody but the developer says something.
    pub(crate) fn is_conversation(&self) -> bool {
        let of_conversation = |item: &Item<'_>| {
            !matches!(
                item,
                Item::Message {
                    role: Role::Developer,
                    ..
                } | Item::Reasoning(_)
            )
        };
        self.items.iter().any(of_conversation)
    }

    /// Whether it ends with a text of the assistant, which the model will not continue.
    pub(crate) fn ends_with_assistant(&self) -> bool {
        let last = self
            .items
            .iter()
            .rfind(|item| !matches!(item, Item::Reasoning(_)));
        matches!(
            last,
            Some(Item::Message {
                role: Role::Assistant,
                ..
            })
        )
    }

    /// The list, with an output for every call, and reasoning only where something of its own turn follows.
    pub(crate) fn finish(self) -> Node<'a> {
        let answered = self.answered;
        let mut nodes = Vec::with_capacity(self.items.len());
        let mut reasoning = Vec::new();
        for item in self.items {
            if let Item::Reasoning(_) = item {
                reasoning.push(item.into_node());
                continue;
            }
            if item.is_turn_of_assistant() {
                nodes.append(&mut reasoning);
            }
            reasoning.clear();
            let lost = item.lost_output(&answered);
            nodes.push(item.into_node());
            nodes.extend(lost.map(Item::into_node));
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
    /// Whether the assistant has made it, so that reasoning may stand before it.
    fn is_turn_of_assistant(&self) -> bool {
        matches!(
            self,
            Item::Call { .. }
                | Item::Message {
                    role: Role::Assistant,
                    ..
                }
        )
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
    fn into_node(self) -> Node<'a> {
        match self {
            Item::Message {
                role,
                content,
                phase,
            } => message_node(role, content, phase),
            Item::Call {
                kind,
                id,
                name,
                arguments,
            } => Node::object([
                ("type", Node::word(kind.call_type())),
                ("call_id", Node::text(&id)),
                ("name", Node::Text(name)),
                (kind.arguments_name(), Node::Text(arguments)),
            ]),
            Item::Output { kind, id, output } => Node::object([
                ("type", Node::word(kind.output_type())),
                ("call_id", Node::text(&id)),
                ("output", output),
            ]),
            // No `id`: with `store: false` it would be looked up, and not found.
            Item::Reasoning(encrypted) => Node::object([
                ("type", Node::word("reasoning")),
                ("summary", Node::List(Vec::new())),
                ("encrypted_content", Node::Text(encrypted)),
            ]),
        }
    }
}

/// A message as Responses has it: without `id` and `status`, which stand only in answers.
fn message_node<'a>(role: Role, content: Vec<Node<'a>>, phase: Option<&'static str>) -> Node<'a> {
    let role = match role {
        Role::Developer => "developer",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let mut message = Object::default();
    message.push("type", Node::word("message"));
    message.push("role", Node::word(role));
    message.push("content", Node::List(content));
    message.push_some("phase", phase.map(Node::word));
    Node::Object(message)
}

/// What a tool's result without a call becomes: its text with a note, and its media.
pub(crate) fn orphan<'a>(output: Node<'a>) -> Vec<Part<'a>> {
    let mut texts = Vec::new();
    let mut media = Vec::new();
    match output {
        Node::Text(text) => texts.push(text),
        Node::List(parts) => {
            for part in parts {
                match text_of_part(&part) {
                    Some(text) => texts.push(text),
                    None => media.push(Part::Media(part)),
                }
            }
        }
        _ => {}
    }
    let text = Text::Joined(vec![Text::word(ORPHAN), Text::join(texts, "\\n")]);
    let mut parts = vec![Part::Text(text)];
    parts.append(&mut media);
    parts
}

/// The text of a part that is one.
fn text_of_part<'a>(part: &Node<'a>) -> Option<Text<'a>> {
    match part.member("text")? {
        Node::Text(text) => Some(text.clone()),
        _ => None,
    }
}
