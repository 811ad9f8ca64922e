//! The client's half of an answer: facts in, bytes in the client's protocol out, as a stream or put together. It does
//! not know how the upstream's half is read.

use super::Protocol;
use super::chat_chunk::{self, Chunk, Envelope};
use super::chat_response::ChatResponse;
use super::chat_whole::WholeCompletion;
use super::fact::{Fact, Head};
use super::failure::Failure;
use super::messages_event::{self, Event};
use super::messages_response::MessagesResponse;
use super::messages_whole::WholeMessage;
use super::response_context::ResponseContext;
use super::response_converter::Delivery;

/// What a call is called that comes beside another one to a client of the legacy form.
const FURTHER_CALL: &str = "function_call.further";

/// Where facts become bytes.
#[derive(Debug)]
pub(crate) struct ClientSide {
    context: ResponseContext,
    writer: Writer,
    /// Written and not yet taken.
    out: Vec<u8>,
}

/// The writer of the client's protocol. Where the client wants no stream, what it gives is put together in `whole`.
#[derive(Debug)]
enum Writer {
    Messages {
        response: MessagesResponse,
        whole: Option<WholeMessage>,
    },
    Chat {
        response: ChatResponse,
        whole: Option<WholeCompletion>,
        envelope: Envelope,
        /// The envelope has got its id.
        named: bool,
    },
}

impl ClientSide {
    /// Starts with nothing written.
    pub(crate) fn new(context: ResponseContext, delivery: &Delivery) -> Self {
        let writer = match context.protocol {
            Protocol::Messages => Writer::Messages {
                response: MessagesResponse::new(
                    &context,
                    delivery.sent_tier.clone(),
                    delivery.tier_trusted,
                    delivery.fallback_id.clone(),
                ),
                whole: (!context.stream).then(WholeMessage::new),
            },
            Protocol::Chat => Writer::Chat {
                response: ChatResponse::new(&context),
                whole: (!context.stream).then(WholeCompletion::new),
                envelope: Envelope {
                    id: format!("chatcmpl-{}", delivery.fallback_id),
                    created: delivery.created,
                    tier: None,
                },
                named: false,
            },
        };
        let out = Vec::new();
        ClientSide {
            context,
            writer,
            out,
        }
    }

    /// The request was sent again, without the tier that the upstream had refused.
    pub(crate) fn without_tier(&mut self) {
        if let Writer::Messages { response, .. } = &mut self.writer {
            response.without_tier();
        }
    }

    /// The client's protocol.
    pub(crate) fn protocol(&self) -> Protocol {
        self.context.protocol
    }

    /// Whether the client gets a stream, of which something was given: its status is gone.
    pub(crate) fn has_begun(&self) -> bool {
        let started = match &self.writer {
            Writer::Messages { response, .. } => response.started(),
            Writer::Chat { response, .. } => response.started(),
        };
        started && self.context.stream
    }

    /// What of the answer had no room in the client's protocol and is missed there.
    pub(crate) fn dropped(&self) -> Option<&'static str> {
        match &self.writer {
            Writer::Chat { response, .. } if response.has_hidden() => Some(FURTHER_CALL),
            _ => None,
        }
    }

    /// Takes a fact that is no failure.
    pub(crate) fn fact(&mut self, fact: Fact, head: &Head) {
        match &mut self.writer {
            Writer::Messages { response, .. } => {
                let mut events = Vec::new();
                response.fact(fact, &self.context, head, &mut events);
                self.messages(events);
            }
            Writer::Chat { response, .. } => {
                let mut chunks = Vec::new();
                response.fact(fact, &self.context, &mut chunks);
                self.chat(chunks, head);
            }
        }
    }

    /// Begins a stream before there is a fact.
    pub(crate) fn begin(&mut self, head: &Head) {
        match &mut self.writer {
            _ if !self.context.stream => {}
            Writer::Messages { response, .. } => {
                let mut events = Vec::new();
                response.start(head, &mut events);
                self.messages(events);
            }
            Writer::Chat { response, .. } => {
                let mut chunks = Vec::new();
                response.start(&mut chunks);
                self.chat(chunks, head);
            }
        }
    }

    /// Keeps a silent stream alive.
    pub(crate) fn ping(&mut self) {
        match self.context.protocol {
            Protocol::Messages => messages_event::write_ping(&mut self.out),
            Protocol::Chat => chat_chunk::write_ping(&mut self.out),
        }
    }

    /// Tells the client of a stream that it has failed. No end follows: it would make the answer look whole.
    pub(crate) fn error(&mut self, failure: &Failure) {
        let error = failure.error_object(self.context.protocol);
        match self.context.protocol {
            Protocol::Messages => messages_event::write_error(error, &mut self.out),
            Protocol::Chat => chat_chunk::write_error(error, &mut self.out),
        }
    }

    /// What has been written since the last time.
    pub(crate) fn take_written(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Bytes of text that are being put together.
    pub(crate) fn whole_length(&self) -> usize {
        match &self.writer {
            Writer::Messages { whole, .. } => whole.as_ref().map_or(0, WholeMessage::length),
            Writer::Chat { whole, .. } => whole.as_ref().map_or(0, WholeCompletion::length),
        }
    }

    /// The answer that was put together; `None` where the client gets a stream.
    pub(crate) fn take_whole(&mut self) -> Option<Result<Vec<u8>, Failure>> {
        let json = match &mut self.writer {
            Writer::Messages { whole, .. } => {
                whole.take()?.into_json(&self.context.requested_model)
            }
            Writer::Chat {
                whole, envelope, ..
            } => whole.take()?.into_json(&self.context, envelope),
        };
        let json = json.ok_or(Failure::Cut);
        Some(json.map(String::into_bytes))
    }

    /// Writes events, or adds them to the message.
    fn messages(&mut self, events: Vec<Event>) {
        let Writer::Messages { whole, .. } = &mut self.writer else {
            return;
        };
        for event in events {
            match whole {
                Some(whole) => whole.add(event),
                None => event.write(&self.context.requested_model, &mut self.out),
            }
        }
    }

    /// Writes chunks, or adds them to the completion.
    fn chat(&mut self, chunks: Vec<Chunk>, head: &Head) {
        let Writer::Chat {
            whole,
            envelope,
            named,
            ..
        } = &mut self.writer
        else {
            return;
        };
        if !chunks.is_empty()
            && !std::mem::replace(named, true)
            && let Some(id) = head.bare_id()
        {
            envelope.id = format!("chatcmpl-{id}"); // of the first chunk; it stays
        }
        envelope.tier.clone_from(&head.tier);
        for chunk in chunks {
            match whole {
                Some(whole) => whole.add(chunk),
                None => chunk.write(&self.context, envelope, &mut self.out),
            }
        }
    }
}
