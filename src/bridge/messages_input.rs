//! The messages of a Messages request as the `input` of a Responses request. What is not known in user content is
//! refused, because silence would lose what the user said; elsewhere it is dropped and reported.

use super::error::Refusal;
use super::input::{CallKind, Input, Part, Role, orphan, output_text};
use super::json::{Node, Text, to_string};
use super::messages_content::{parts_of, result_output};
use super::names::call_id;
use super::record::{Content, Record};
use super::request::Draft;
use crate::config::bridge::SystemAs;
use std::collections::HashSet;

/// Reads the messages one after the other.
pub(crate) struct Conversation<'n, 'a, 'u, 'd> {
    /// Takes what is found besides input: names of tools, and what is dropped.
    draft: &'d mut Draft<'a, 'u>,
    input: Input<'a>,
    effort: Option<String>,
    tools: MentionedTools<'n, 'a>,
}

/// What the messages say about tools.
#[derive(Debug, Default)]
pub(crate) struct MentionedTools<'n, 'a> {
    /// Names of deferred tools that were loaded.
    pub(crate) loaded: HashSet<String>,
    /// Names of tools that were taken away.
    pub(crate) removed: HashSet<String>,
    /// Definitions that came with messages.
    pub(crate) added: Vec<Record<'n, 'a>>,
}

/// What the messages come to.
pub(crate) struct Read<'n, 'a> {
    /// The list of input items.
    pub(crate) input: Node<'a>,
    /// The last word about effort that was not empty.
    pub(crate) effort: Option<String>,
    /// What the messages say about tools.
    pub(crate) tools: MentionedTools<'n, 'a>,
}

impl<'n, 'a, 'u, 'd> Conversation<'n, 'a, 'u, 'd> {
    pub(crate) fn new(draft: &'d mut Draft<'a, 'u>) -> Self {
        Conversation {
            draft,
            input: Input::default(),
            effort: None,
            tools: MentionedTools::default(),
        }
    }

    /// The texts of `system`, unless they become `instructions`.
    pub(crate) fn system(&mut self, texts: &[Text<'a>]) {
        if !self.as_instructions() {
            self.input.say(
                Role::Developer,
                texts.iter().cloned().map(Part::Text).collect(),
            );
        }
    }

    /// All messages of the body.
    pub(crate) fn read(&mut self, body: &Record<'n, 'a>) -> Result<(), Refusal> {
        body.node("messages")
            .ok_or_else(|| body.missing("messages"))?;
        if let Some(config) = body.record("output_config")? {
            self.take_effort(&config)?;
        }
        let messages = body.records("messages")?;
        let last_user = messages
            .iter()
            .rposition(|message| message.word("role").is_ok_and(|role| role == "user"));
        for (index, message) in messages.iter().enumerate() {
            match message.word("role")?.as_ref() {
                "user" => self.user(message)?,
                "assistant" => self.assistant(message)?,
                "system" => self.system_message(message, last_user > Some(index))?,
                _ => {
                    return Err(message
                        .path
                        .refuse("role must be user, assistant or system"));
                }
            }
        }
        if !self.input.is_conversation() {
            return Err(Refusal::invalid(
                "messages",
                "at least one message is required",
            ));
        }
        if self.input.ends_with_assistant() {
            self.draft.dropped.add("prefill");
        }
        Ok(())
    }

    /// What the messages have come to.
    pub(crate) fn finish(self) -> Read<'n, 'a> {
        Read {
            input: self.input.finish(),
            effort: self.effort,
            tools: self.tools,
        }
    }

    /// A system text in the middle of the conversation stays in its place: moved to the front, it would make the
    /// upstream's cache miss at every turn.
    fn system_message(
        &mut self,
        message: &Record<'n, 'a>,
        user_follows: bool,
    ) -> Result<(), Refusal> {
        if let Some(config) = message.record("output_config")? {
            self.take_effort(&config)?;
        }
        let mut texts = Vec::new();
        match message.content("content")? {
            Content::Text(text) => texts.push(text.clone()),
            Content::Blocks(blocks) => {
                for block in &blocks {
                    texts.extend(self.system_block(block)?);
                }
            }
        }
        texts.retain(|text| !text.is_empty());
        if user_follows && message.word("clear_at")? == "next_user_message" {
            return Ok(());
        }
        if self.as_instructions() {
            let reminders = texts.into_iter().map(|text| Part::Text(reminder(text)));
            self.input.say(Role::User, reminders.collect());
        } else {
            self.input
                .say(Role::Developer, texts.into_iter().map(Part::Text).collect());
        }
        Ok(())
    }

    /// The text of a block; a block about tools has none.
    fn system_block(&mut self, block: &Record<'n, 'a>) -> Result<Option<Text<'a>>, Refusal> {
        match block.word("type")?.as_ref() {
            "text" => return Ok(block.text("text")?.cloned()),
            "tool_addition" => {
                let (name, definition) = mentioned_tool(block)?;
                self.tools.removed.remove(&name);
                self.tools.loaded.insert(name);
                self.tools.added.extend(definition);
            }
            "tool_removal" => {
                let (name, _) = mentioned_tool(block)?;
                self.tools.loaded.remove(&name);
                self.tools.removed.insert(name);
            }
            other => self.draft.dropped.add(&format!("system.{other}")),
        }
        Ok(None)
    }

    /// Results of tools come before everything else, whatever their place in the message.
    fn user(&mut self, message: &Record<'n, 'a>) -> Result<(), Refusal> {
        let blocks = match message.content("content")? {
            Content::Text(text) => {
                let said = Some(text).filter(|text| !text.is_empty());
                self.input.say(
                    Role::User,
                    said.cloned().map(Part::Text).into_iter().collect(),
                );
                return Ok(());
            }
            Content::Blocks(blocks) => blocks,
        };
        let (mut parts, mut others) = (Vec::new(), Vec::new());
        for block in blocks {
            if block.word("type")? == "tool_result" {
                parts.append(&mut self.tool_result(&block, message)?);
            } else {
                others.push(block);
            }
        }
        parts.append(&mut parts_of(
            &others,
            message.path,
            &mut self.tools.loaded,
        )?);
        self.input.say(Role::User, parts);
        Ok(())
    }

    /// Adds a result behind its call; gives what has to be said by a user message instead.
    fn tool_result(
        &mut self,
        block: &Record<'n, 'a>,
        message: &Record<'n, 'a>,
    ) -> Result<Vec<Part<'a>>, Refusal> {
        let media = self.draft.upstream.options.tool_media;
        let (output, media) = result_output(block, message.path, media, &mut self.tools.loaded)?;
        let id = call_id(&block.need_text("tool_use_id")?.plain()).into_owned();
        let mut said = match self.input.output(id, output) {
            Ok(()) => Vec::new(),
            Err(output) => {
                self.draft.dropped.add("tool_result.orphan");
                orphan(output)
            }
        };
        said.extend(media);
        Ok(said)
    }

    /// A message of the assistant, block by block.
    fn assistant(&mut self, message: &Record<'n, 'a>) -> Result<(), Refusal> {
        let blocks = match message.content("content")? {
            Content::Text(text) => {
                self.assistant_text(text, false);
                return Ok(());
            }
            Content::Blocks(blocks) => blocks,
        };
        let is_call =
            |block: &Record<'_, '_>| block.word("type").is_ok_and(|kind| kind == "tool_use");
        let last_call = blocks.iter().rposition(is_call);
        for (index, block) in blocks.iter().enumerate() {
            self.assistant_block(block, last_call > Some(index))?;
        }
        Ok(())
    }

    /// A block of the assistant.
    fn assistant_block(
        &mut self,
        block: &Record<'n, 'a>,
        call_follows: bool,
    ) -> Result<(), Refusal> {
        match block.word("type")?.as_ref() {
            "text" => block
                .text("text")?
                .into_iter()
                .for_each(|text| self.assistant_text(text, call_follows)),
            "compaction" => {
                // What changed the tools in what was compacted.
                for change in block.records("tool_changes")? {
                    self.system_block(&change)?;
                }
                if let Some(text) = block.some_text("content")? {
                    self.input.assistant(vec![output_text(text)]);
                }
            }
            "thinking" => self.thinking(block.text("signature")?),
            "redacted_thinking" => self.thinking(block.text("data")?),
            "tool_use" => self.tool_use(block)?,
            other => self.draft.dropped.add(&format!("assistant.{other}")),
        }
        Ok(())
    }

    /// A text of the assistant; nothing if it is empty.
    fn assistant_text(&mut self, text: &Text<'a>, call_follows: bool) {
        if text.is_empty() {
            return;
        }
        let phase = if call_follows {
            "commentary"
        } else {
            "final_answer"
        };
        self.input
            .assistant_text(text, self.draft.model.phase().then_some(phase));
    }

    /// Reasoning goes back to where it came from, and nowhere else.
    fn thinking(&mut self, signature: Option<&Text<'a>>) {
        let replay = self.draft.upstream.options.reasoning_replay && self.draft.model.reasoning;
        match signature
            .filter(|_| replay)
            .and_then(|signature| self.draft.context.carrier.open(signature))
        {
            Some(encrypted) => self.input.reasoning(encrypted),
            None => self.draft.dropped.add("thinking.foreign"),
        }
    }

    /// A call of a tool; its input goes in the client's own spelling.
    fn tool_use(&mut self, block: &Record<'n, 'a>) -> Result<(), Refusal> {
        let id = call_id(&block.need_text("id")?.plain()).into_owned();
        let name = self
            .draft
            .context
            .names
            .upstream(&block.need_text("name")?.plain())?;
        let arguments = match block.record("input")? {
            Some(_) => block.node("input").map(to_string).unwrap_or_default(),
            None => "{}".to_owned(),
        };
        self.input
            .call(CallKind::Function, id, name, Text::of(&arguments));
        Ok(())
    }

    /// A word about effort counts until the next.
    fn take_effort(&mut self, config: &Record<'_, '_>) -> Result<(), Refusal> {
        if let Some(effort) = config.some_text("effort")? {
            self.effort = Some(effort.plain().into_owned());
        }
        Ok(())
    }

    /// Whether system texts become `instructions`.
    fn as_instructions(&self) -> bool {
        self.draft.upstream.options.system_as == SystemAs::Instructions
    }
}

/// Name and definition of the tool that a block is about.
fn mentioned_tool<'n, 'a>(
    block: &Record<'n, 'a>,
) -> Result<(String, Option<Record<'n, 'a>>), Refusal> {
    let tool = block.need_record("tool")?;
    let definition = tool.record("definition")?;
    let name = match (tool.some_text("name")?, definition) {
        (Some(name), _) => name,
        (None, Some(definition)) => definition.need_text("name")?,
        (None, None) => return Err(tool.missing("name")),
    };
    Ok((name.plain().into_owned(), definition))
}

/// A system text as a text of the user.
fn reminder(text: Text<'_>) -> Text<'_> {
    Text::Joined(vec![
        Text::word("<system-reminder>\\n"),
        text,
        Text::word("\\n</system-reminder>"),
    ])
}
