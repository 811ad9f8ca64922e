//! The completion that a client of Chat gets who wants no stream: the same chunks, put together.

use super::chat_chunk::{Chunk, Envelope, Finish, annotation, call, legacy_call, usage_object};
use super::fact::{Citation, Usage};
use super::input::CallKind;
use super::json::{Node, Object, object, to_string};
use super::response_context::ResponseContext;

/// The completion as far as it has come.
#[derive(Debug, Default)]
pub(crate) struct WholeCompletion {
    content: Option<String>,
    refusal: Option<String>,
    citations: Vec<Citation>,
    calls: Vec<WholeCall>,
    /// Bytes of text so far.
    pub(crate) length: usize,
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
            Chunk::Annotation(citation) => {
                self.length += citation.url.len() + citation.title.len();
                self.citations.push(citation);
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

    /// The JSON text of the completion; `None` before its end.
    pub(crate) fn json(&self, context: &ResponseContext, envelope: &Envelope) -> Option<String> {
        let choice = object! {
            "index": 0_u64,
            "message": self.message(context),
            "finish_reason": self.finish?.word(),
            "logprobs": Node::Null,
        };
        let mut completion = envelope.members("chat.completion", context);
        completion.push("choices", vec![choice.into()]);
        completion.push("usage", usage_object(&self.usage));
        completion.push("service_tier", envelope.tier.as_deref().map(Node::text));
        Some(to_string(&completion.into()))
    }

    fn message(&self, context: &ResponseContext) -> Object<'static> {
        let calls = self.calls.iter().map(|whole| {
            let id_and_name = Some((whole.id.as_str(), whole.name.as_str()));
            call(whole.kind, id_and_name, &whole.arguments).into()
        });
        let calls: Vec<Node<'_>> = calls.collect();
        let legacy = |last: &WholeCall| legacy_call(Some(&last.name), &last.arguments);
        let legacy = self.calls.last().map(legacy);
        let is_legacy = context.legacy_functions;
        let citations = self.citations.iter();
        let citations: Vec<Node<'_>> = citations.map(|cited| annotation(cited).into()).collect();
        object! {
            "role": "assistant",
            "content": Node::text_or_null(self.content.as_deref()),
            "refusal": Node::text_or_null(self.refusal.as_deref()),
            "annotations": (!citations.is_empty()).then_some(citations),
            "function_call": legacy.filter(|_| is_legacy),
            "tool_calls": (!is_legacy && !calls.is_empty()).then_some(calls),
        }
    }
}
