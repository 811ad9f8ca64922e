//! The completion that a client of Chat gets who wants no stream: the same chunks, put together.

use super::chat_chunk::{Chunk, Envelope, Finish, call_members, usage_node};
use super::fact::Usage;
use super::input::CallKind;
use super::json::{Node, Object, to_string};
use super::response_context::ResponseContext;

/// The completion that a client gets who wants no stream.
#[derive(Debug)]
pub(crate) struct WholeCompletion {
    content: Option<String>,
    refusal: Option<String>,
    calls: Vec<WholeCall>,
    /// Bytes of text so far.
    length: usize,
    finish: Option<Finish>,
    usage: Usage,
}

/// A call with all its arguments.
#[derive(Debug)]
struct WholeCall {
    kind: CallKind,
    id: String,
    name: String,
    arguments: String,
}

impl WholeCompletion {
    /// A completion of which nothing has come.
    pub(crate) fn new() -> Self {
        WholeCompletion {
            content: None,
            refusal: None,
            calls: Vec::new(),
            length: 0,
            finish: None,
            usage: Usage::default(),
        }
    }

    /// Adds a chunk.
    pub(crate) fn add(&mut self, chunk: Chunk) {
        match chunk {
            Chunk::Role => {}
            Chunk::Content(text) => {
                self.length += text.len();
                self.content.get_or_insert_default().push_str(&text);
            }
            Chunk::Refusal(text) => {
                self.length += text.len();
                self.refusal.get_or_insert_default().push_str(&text);
            }
            Chunk::Call { kind, id, name, .. } => {
                self.calls.push(WholeCall {
                    kind,
                    id,
                    name,
                    arguments: String::new(),
                });
            }
            Chunk::Arguments { arguments, .. } => {
                self.length += arguments.len();
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&arguments);
                }
            }
            Chunk::Finish(finish) => self.finish = Some(finish),
            Chunk::Usage(usage) => self.usage = usage,
        }
    }

    /// Bytes of text so far.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The JSON text of the completion; `None` before its end.
    pub(crate) fn into_json(
        self,
        context: &ResponseContext,
        envelope: &Envelope,
    ) -> Option<String> {
        let finish = self.finish?;
        let choice = Node::object([
            ("index", Node::number(0)),
            ("message", self.message(context)),
            ("finish_reason", Node::word(finish.word())),
            ("logprobs", Node::Null),
        ]);
        let mut completion = envelope.members("chat.completion", context);
        completion.push("choices", Node::List(vec![choice]));
        completion.push("usage", usage_node(&self.usage));
        completion.push_some("service_tier", envelope.tier.as_deref().map(Node::text));
        Some(to_string(&Node::Object(completion)))
    }

    /// The assistant's message.
    fn message(&self, context: &ResponseContext) -> Node<'static> {
        let mut message = Object::default();
        message.push("role", Node::word("assistant"));
        message.push("content", Node::text_or_null(self.content.as_deref()));
        message.push("refusal", Node::text_or_null(self.refusal.as_deref()));
        if context.legacy_functions {
            message.push_some("function_call", self.calls.last().map(WholeCall::legacy));
        } else if !self.calls.is_empty() {
            message.push(
                "tool_calls",
                Node::List(self.calls.iter().map(WholeCall::node).collect()),
            );
        }
        Node::Object(message)
    }
}

impl WholeCall {
    /// The call as one of `tool_calls`.
    fn node(&self) -> Node<'static> {
        Node::Object(call_members(
            self.kind,
            &self.id,
            &self.name,
            &self.arguments,
        ))
    }

    /// The call as `function_call`.
    fn legacy(&self) -> Node<'static> {
        Node::object([
            ("name", Node::text(&self.name)),
            ("arguments", Node::text(&self.arguments)),
        ])
    }
}
