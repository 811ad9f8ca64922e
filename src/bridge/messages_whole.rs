//! The message that a client of Messages gets who wants no stream: the same events, put together.

use super::json::{Node, to_string};
use super::messages_event::{Block, Delta, Ending, Event, MessagesUsage, empty_message};

/// The message as far as it has come.
#[derive(Debug, Default)]
pub(crate) struct WholeMessage {
    id: String,
    blocks: Vec<WholeBlock>,
    /// Bytes of text so far.
    pub(crate) length: usize,
    ending: Option<(Ending, MessagesUsage)>,
}

/// A block and its text: of a tool the JSON of its input.
#[derive(Debug)]
struct WholeBlock {
    block: Block,
    text: String,
    signature: String,
}

impl WholeMessage {
    pub(crate) fn add(&mut self, event: Event) {
        match event {
            Event::Start { id } => self.id = id,
            Event::Open { block, .. } => self.blocks.push(WholeBlock {
                block,
                text: String::new(),
                signature: String::new(),
            }),
            Event::Delta { delta, .. } => {
                self.length += delta.text().len();
                match (self.blocks.last_mut(), delta) {
                    (Some(open), Delta::Signature(signature)) => open.signature = signature,
                    (Some(open), delta) => open.text.push_str(delta.text()),
                    (None, _) => {}
                }
            }
            Event::Close { .. } => {}
            Event::End { ending, usage } => self.ending = Some((ending, usage)),
        }
    }

    /// The JSON text of the message; `None` before its end.
    pub(crate) fn json(&self, model: &str) -> Option<String> {
        let (ending, usage) = self.ending.as_ref()?;
        let blocks = self.blocks.iter();
        let content = blocks.map(|whole| whole.block.object(&whole.text, &whole.signature).into());
        let mut message = empty_message(&self.id, model);
        message.set("content", content.collect::<Vec<Node<'_>>>());
        for (name, value) in ending.members().into_members() {
            message.set(name, value);
        }
        message.set("usage", usage.object());
        Some(to_string(&message.into()))
    }
}
