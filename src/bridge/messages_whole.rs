//! The message that a client of Messages gets who wants no stream: the same events, put together.

use super::json::{Node, Object, parse, to_string};
use super::messages_event::{
    Block, Delta, Ending, Event, MessagesUsage, empty_message, thinking_node, tool_node,
};

/// The message that a client gets who wants no stream.
#[derive(Debug)]
pub(crate) struct WholeMessage {
    id: String,
    blocks: Vec<(Block, WholeBlock)>,
    /// Bytes of text so far.
    length: usize,
    ending: Option<(Ending, MessagesUsage)>,
}

/// The text of a block: its signature if it is thinking, its JSON if it is a tool's input.
#[derive(Debug, Default)]
struct WholeBlock {
    text: String,
    signature: String,
}

impl WholeMessage {
    /// A message of which nothing has come.
    pub(crate) fn new() -> Self {
        WholeMessage {
            id: String::new(),
            blocks: Vec::new(),
            length: 0,
            ending: None,
        }
    }

    /// Adds an event.
    pub(crate) fn add(&mut self, event: Event) {
        match event {
            Event::Start { id } => self.id = id,
            Event::Open { block, .. } => self.blocks.push((block, WholeBlock::default())),
            Event::Delta { delta, .. } => {
                self.length += delta.text().len();
                if let Some((_, block)) = self.blocks.last_mut() {
                    block.add(&delta);
                }
            }
            Event::Close { .. } => {}
            Event::End { ending, usage } => self.ending = Some((ending, usage)),
        }
    }

    /// Bytes of text so far.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The JSON text of the message; `None` before its end.
    pub(crate) fn into_json(self, model: &str) -> Option<String> {
        let (ending, usage) = self.ending?;
        let blocks = self.blocks.iter();
        let content = blocks.map(|(block, text)| block.whole(text)).collect();
        let mut message = empty_message(&self.id, model);
        if let Node::Object(message) = &mut message {
            message.set("content", Node::List(content));
            for (name, value) in ending.members().into_members() {
                message.set(name, value);
            }
            message.set("usage", Node::Object(usage.members()));
        }
        Some(to_string(&message))
    }
}

impl WholeBlock {
    /// Adds a delta.
    fn add(&mut self, delta: &Delta) {
        match delta {
            Delta::Signature(signature) => signature.clone_into(&mut self.signature),
            delta => self.text.push_str(delta.text()),
        }
    }
}

impl Block {
    /// The block with all its text.
    fn whole<'a>(&self, block: &'a WholeBlock) -> Node<'a> {
        match self {
            Block::Text => Node::object([
                ("type", Node::word("text")),
                ("text", Node::text(&block.text)),
            ]),
            Block::Thinking => thinking_node(Node::text(&block.text), Node::text(&block.signature)),
            Block::ToolUse { id, name } => tool_node("tool_use", id, name, input(&block.text)),
            Block::WebSearch { id } => {
                tool_node("server_tool_use", id, "web_search", input(&block.text))
            }
            Block::SearchResult { .. } => self.node(),
        }
    }
}

/// A tool's input from its JSON text. What is no object, as a model may write it, or a limit may have cut it, cannot be in a
/// message; the client's own check of the tool's schema tells the model.
fn input(text: &str) -> Node<'_> {
    let node = parse(text.as_bytes()).ok();
    let object = node.filter(|node| node.as_object().is_some());
    object.unwrap_or(Node::Object(Object::default()))
}
