//! A Messages request as a Responses request: the top level. Its messages are in [`super::messages_input`], its tools in
//! [`super::messages_tools`]. Members that are not known are dropped and reported, never refused: clients add some every
//! week.

use super::error::Refusal;
use super::json::{Node, Object, Text, object, parse};
use super::messages_input::Conversation;
use super::messages_tools::{Tools, choice};
use super::models::{Model, effort_of_budget};
use super::names::prompt_cache_key;
use super::options::{UpstreamBridge, UpstreamKind};
use super::record::{Content, Record};
use super::request::Draft;
use super::schema::is_strict_safe;
use super::{ClientRequest, Protocol};
use crate::config::bridge::{Effort, SystemAs};
use std::borrow::Cow;

/// Members that mean something here. The others are reported as dropped.
const KNOWN: [&str; 15] = [
    "model",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "max_tokens",
    "thinking",
    "output_config",
    "output_format",
    "stream",
    "stop_sequences",
    "speed",
    "service_tier",
    "temperature",
    "top_p",
];

/// Members without which the answer would be wrong.
const REFUSED: [&str; 3] = ["mcp_servers", "container", "compaction"];

/// A conversation that the server is to hold, so that later requests have only what is new.
const THREAD: &str = "thread";

/// What Claude Code puts before its system prompt. It changes with every version, and would make the upstream's cache
/// miss.
const BILLING_HEADER: &str = "x-anthropic-billing-header:";

/// What the client says about thinking.
struct Thinking<'n> {
    kind: Cow<'n, str>,
    display: Cow<'n, str>,
    /// Tokens it may take, of `enabled`.
    budget: u64,
}

impl<'n> Thinking<'n> {
    /// Reads `thinking`; where it is not there, nothing is said.
    fn read(body: &Record<'n, '_>) -> Result<Self, Refusal> {
        let Some(thinking) = body.record("thinking")? else {
            return Ok(Thinking {
                kind: "".into(),
                display: "".into(),
                budget: 0,
            });
        };
        let budget = thinking.number("budget_tokens")?;
        Ok(Thinking {
            kind: thinking.word("type")?,
            display: thinking.word("display")?,
            budget: budget.and_then(Node::as_number).unwrap_or(0),
        })
    }

    /// Whether the client wants thinking.
    fn is_on(&self) -> bool {
        matches!(self.kind.as_ref(), "adaptive" | "enabled")
    }

    /// Whether the client wants no thinking.
    fn is_off(&self) -> bool {
        self.kind == "disabled"
    }

    /// The effort to send, given the word that the client chose, if any.
    fn effort(&self, word: Option<&str>, model: &Model<'_>) -> Option<Effort> {
        if self.is_off() {
            return Some(model.effort_off()); // before every other rule: side requests have 64 tokens
        }
        let of_budget = || (self.kind == "enabled").then(|| effort_of_budget(self.budget));
        model.effort(word.map_or_else(of_budget, |word| word.parse().ok()))
    }
}

/// The request to send.
pub(crate) fn convert<'a, 'u>(
    body: &Record<'_, 'a>,
    request: &ClientRequest<'_>,
    upstream: &'u UpstreamBridge,
) -> Result<Draft<'a, 'u>, Refusal> {
    refuse_unsupported(body)?;
    let mut draft = Draft::new(Protocol::Messages, &body.word("model")?, upstream)?;
    let thinking = Thinking::read(body)?;
    draft.context.thinking = thinking.is_on() && draft.model.reasoning;
    draft.context.stream = body.flag("stream")?;
    draft.context.speed_asked = matches!(body.word("speed")?.as_ref(), "fast" | "standard");

    let system = system_texts(body, &mut draft)?;
    let mut conversation = Conversation::new(&mut draft);
    conversation.system(&system);
    conversation.read(body)?;
    let conversation = conversation.finish();

    let tools = Tools::read(body, &conversation.tools, &mut draft)?;
    draft.context.search = tools.searches();
    if upstream.options.system_as == SystemAs::Instructions && !system.is_empty() {
        draft.set("instructions", Text::join(system, "\\n\\n"));
    }
    set_tools(&mut draft, body, tools)?;
    draft.set("input", conversation.input);
    set_thinking(&mut draft, &thinking, conversation.effort.as_deref());
    set_include(&mut draft);
    set_format(&mut draft, body)?;
    draft.set_limit(body, "max_tokens")?;
    draft.set_sampling(body)?;
    draft.set_stops("stop_sequences", body.texts("stop_sequences")?)?;
    if let Some(session) = session(body, request) {
        let key = prompt_cache_key(request.group, &session);
        draft.set("prompt_cache_key", Node::text(&key));
    }
    draft.dropped.unknown_members(body, &KNOWN);
    Ok(draft)
}

/// The tier that the client itself asks for, in the upstream's words. `speed` and the beta of fast mode are no matter of
/// the upstream's kind, and are read where tiers are decided.
pub(crate) fn client_tier(
    body: &Record<'_, '_>,
    kind: UpstreamKind,
) -> Result<Option<String>, Refusal> {
    let standard_only = body.word("service_tier")? == "standard_only";
    Ok((standard_only && kind == UpstreamKind::OpenAi).then(|| "default".to_owned()))
}

/// 400 for what would give a wrong answer if it were dropped.
fn refuse_unsupported(body: &Record<'_, '_>) -> Result<(), Refusal> {
    if let Some(name) = REFUSED.into_iter().find(|name| body.says(name)) {
        let what = "not supported by this gateway's upstream";
        return Err(Refusal::invalid(name, what));
    }
    // One that begins a thread has all of the conversation.
    let thread = body.record(THREAD)?;
    match thread.map(|thread| thread.word("type")).transpose()? {
        Some(kind) if kind != "create" => Err(Refusal::held_conversation(THREAD)),
        _ => Ok(()),
    }
}

/// The texts of `system`.
fn system_texts<'a>(
    body: &Record<'_, 'a>,
    draft: &mut Draft<'a, '_>,
) -> Result<Vec<Text<'a>>, Refusal> {
    let mut texts = Vec::new();
    let mut take = |text: &Text<'a>| {
        if text.plain().starts_with(BILLING_HEADER) {
            draft.dropped.add("system.billing_header");
        } else if !text.is_empty() {
            texts.push(text.clone());
        }
    };
    match body.content("system")? {
        Content::Text(text) => take(text),
        Content::Blocks(blocks) => {
            for block in blocks {
                block.text("text")?.into_iter().for_each(&mut take);
            }
        }
    }
    Ok(texts)
}

/// The tools and what is said about their choice; nothing of it where no tool is left, which is a 400.
fn set_tools<'a>(
    draft: &mut Draft<'a, '_>,
    body: &Record<'_, 'a>,
    tools: Tools<'a>,
) -> Result<(), Refusal> {
    let chosen = body.record("tool_choice")?;
    let node = chosen
        .map(|chosen| choice(&chosen, &tools, &mut draft.dropped))
        .transpose()?
        .flatten();
    if tools.is_empty() {
        return Ok(());
    }
    draft.set("tools", tools.into_node());
    draft.set("tool_choice", node);
    if let Some(chosen) = chosen
        && chosen.flag("disable_parallel_tool_use")?
    {
        draft.set("parallel_tool_calls", false);
    }
    Ok(())
}

/// `effort` is the word that the client chose.
fn set_thinking(draft: &mut Draft<'_, '_>, thinking: &Thinking<'_>, effort: Option<&str>) {
    if !draft.model.reasoning {
        if thinking.is_on() || effort.is_some() {
            draft.dropped.add("thinking");
        }
        return;
    }
    let shown = thinking.is_on() && thinking.display != "omitted";
    let summary = draft.upstream.summary().filter(|_| shown);
    draft.set_reasoning(thinking.effort(effort, &draft.model), summary);
}

/// `include`: what the upstream has to add to its answer.
fn set_include(draft: &mut Draft<'_, '_>) {
    let mut include = Vec::new();
    if draft.context.thinking && draft.upstream.options.reasoning_replay {
        include.push("reasoning.encrypted_content");
    }
    if draft.context.search && draft.upstream.kind == UpstreamKind::OpenAi {
        include.push("web_search_call.action.sources");
    }
    draft.set_include(include);
}

/// `output_config.format`, or `output_format`, as it was called before and LiteLLM 1.110 calls it.
fn set_format<'a>(draft: &mut Draft<'a, '_>, body: &Record<'_, 'a>) -> Result<(), Refusal> {
    let config = body.record("output_config")?;
    let format = config.map(|config| config.record("format")).transpose()?;
    let Some(format) = format.flatten().or(body.record("output_format")?) else {
        return Ok(());
    };
    if format.word("type")? != "json_schema" {
        return Err(format.path.refuse("only json_schema"));
    }
    let schema = format.record("schema")?;
    let schema = schema.map_or_else(Object::default, |schema| schema.object().clone());
    let schema = Node::Object(schema);
    let strict = is_strict_safe(&schema);
    let format =
        object! {"type": "json_schema", "name": "output", "schema": schema, "strict": strict};
    draft.set("text", object! {"format": format});
    Ok(())
}

/// The client's session: of its header, else of the JSON in `metadata.user_id`.
fn session(body: &Record<'_, '_>, request: &ClientRequest<'_>) -> Option<String> {
    if let Some(session) = request.session.filter(|session| !session.is_empty()) {
        return Some(session.to_owned());
    }
    let user = body.node("metadata")?.member_text("user_id")?;
    let user = parse(user.as_bytes()).ok()?;
    let session = user
        .member_text("session_id")
        .filter(|session| !session.is_empty())?;
    Some(session.into_owned())
}
