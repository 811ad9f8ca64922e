//! The messages of a Chat request as the `input` of a Responses request. `reasoning_content` and names of speakers have
//! no place there.

use super::error::Refusal;
use super::input::{CallKind, Input, Part, Role, orphan, output_text, tool_output};
use super::json::{Node, Text, object};
use super::names::call_id;
use super::record::{Content, Record};
use super::request::Draft;
use crate::config::bridge::ToolMedia;

/// Reads the messages one after the other.
pub(crate) struct Conversation<'a, 'u, 'd> {
    /// Takes what is found besides input: names of tools, and what is dropped.
    draft: &'d mut Draft<'a, 'u>,
    input: Input<'a>,
    /// Calls of the legacy form so far: they have no ids.
    legacy_calls: usize,
}

impl<'a, 'u, 'd> Conversation<'a, 'u, 'd> {
    pub(crate) fn new(draft: &'d mut Draft<'a, 'u>) -> Self {
        Conversation {
            draft,
            input: Input::default(),
            legacy_calls: 0,
        }
    }

    /// All messages of the body.
    pub(crate) fn read(&mut self, body: &Record<'_, 'a>) -> Result<(), Refusal> {
        for message in body.records("messages")? {
            match message.word("role")?.as_ref() {
                "system" | "developer" => self.says(Role::Developer, &message)?,
                "user" => self.says(Role::User, &message)?,
                "assistant" => self.assistant(&message)?,
                "tool" => {
                    let id = call_id(&message.need_text("tool_call_id")?.plain()).into_owned();
                    self.result(id, &message)?;
                }
                "function" => self.result(self.legacy_id(), &message)?,
                _ => return Err(message.path.refuse("unknown role")),
            }
        }
        if self.input.is_empty() {
            return Err(Refusal::invalid(
                "messages",
                "at least one message is required",
            ));
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Node<'a> {
        self.input.finish()
    }

    /// A message that is not the assistant's.
    fn says(&mut self, role: Role, message: &Record<'_, 'a>) -> Result<(), Refusal> {
        let parts = parts_of(message, role == Role::User)?;
        self.input.say(role, parts);
        Ok(())
    }

    /// Its text comes before its calls.
    fn assistant(&mut self, message: &Record<'_, 'a>) -> Result<(), Refusal> {
        let mut parts = Vec::new();
        match message.content("content")? {
            Content::Text(text) if text.is_empty() => {}
            Content::Text(text) => parts.push(output_text(text)),
            Content::Blocks(blocks) => {
                for part in blocks {
                    match part.word("type")?.as_ref() {
                        "text" => parts.extend(part.some_text("text")?.map(output_text)),
                        "refusal" => parts.extend(part.some_text("refusal")?.map(refusal)),
                        other => self.draft.dropped.add(&format!("assistant.{other}")),
                    }
                }
            }
        }
        parts.extend(message.some_text("refusal")?.map(refusal));
        self.input.assistant(parts);
        for call in message.records("tool_calls")? {
            self.call(&call)?;
        }
        if let Some(call) = message.record("function_call")? {
            self.legacy_calls += 1;
            let id = self.legacy_id();
            self.function_call(id, &call)?;
        }
        Ok(())
    }

    /// One of `tool_calls`.
    fn call(&mut self, call: &Record<'_, 'a>) -> Result<(), Refusal> {
        let id = call_id(&call.need_text("id")?.plain()).into_owned();
        if call.word("type")? != "custom" {
            return self.function_call(id, &call.need_record("function")?);
        }
        let custom = call.need_record("custom")?;
        let name = self
            .draft
            .context
            .names
            .upstream(&custom.need_text("name")?.plain())?;
        let input = custom.text("input")?.cloned().unwrap_or(Text::word(""));
        self.input.call(CallKind::Custom, id, name, input);
        Ok(())
    }

    /// A call of a function, whose arguments are JSON text already.
    fn function_call(&mut self, id: String, function: &Record<'_, 'a>) -> Result<(), Refusal> {
        let name = self
            .draft
            .context
            .names
            .upstream(&function.need_text("name")?.plain())?;
        let arguments = function
            .some_text("arguments")?
            .cloned()
            .unwrap_or(Text::word("{}"));
        self.input.call(CallKind::Function, id, name, arguments);
        Ok(())
    }

    /// The result of the call with this id.
    fn result(&mut self, id: String, message: &Record<'_, 'a>) -> Result<(), Refusal> {
        let (output, _) = tool_output(parts_of(message, true)?, ToolMedia::Inline);
        if let Err(output) = self.input.output(id, output) {
            self.draft.dropped.add("tool.orphan");
            self.input.say(Role::User, orphan(output));
        }
        Ok(())
    }

    /// The id of the last legacy call.
    fn legacy_id(&self) -> String {
        format!("tgf_{}", self.legacy_calls)
    }
}

/// The content of a message that is not the assistant's.
fn parts_of<'a>(message: &Record<'_, 'a>, media: bool) -> Result<Vec<Part<'a>>, Refusal> {
    let blocks = match message.content("content")? {
        Content::Text(text) if text.is_empty() => return Ok(Vec::new()),
        Content::Text(text) => return Ok(vec![Part::Text(text.clone())]),
        Content::Blocks(blocks) => blocks,
    };
    let mut parts = Vec::new();
    for part in blocks {
        match part.word("type")?.as_ref() {
            "text" => parts.extend(part.some_text("text")?.cloned().map(Part::Text)),
            "image_url" if media => parts.push(image(&part)?),
            "file" if media => parts.push(file(&part)?),
            other => {
                return Err(message
                    .path
                    .refuse(format!("content part {other} cannot be converted")));
            }
        }
    }
    Ok(parts)
}

/// An image; its URL is a string in the requests of some clients.
fn image<'a>(part: &Record<'_, 'a>) -> Result<Part<'a>, Refusal> {
    let (url, detail) = match part.node("image_url") {
        Some(Node::Text(url)) => (url, None),
        _ => {
            let image = part.need_record("image_url")?;
            (image.need_text("url")?, image.some_text("detail")?)
        }
    };
    let detail = detail.cloned().unwrap_or(Text::word("auto"));
    Ok(Part::Media(
        object! {"type": "input_image", "image_url": url, "detail": detail}.into(),
    ))
}

/// A file part, whose members pass as they are: both APIs are of one vendor.
fn file<'a>(part: &Record<'_, 'a>) -> Result<Part<'a>, Refusal> {
    let file = part.need_record("file")?;
    let file = object! {
        "type": "input_file",
        "file_id": file.some_text("file_id")?,
        "filename": file.some_text("filename")?,
        "file_data": file.some_text("file_data")?,
    };
    Ok(Part::Media(file.into()))
}

/// A refusal of the assistant.
fn refusal<'a>(text: &Text<'a>) -> Node<'a> {
    object! {"type": "refusal", "refusal": text}.into()
}
