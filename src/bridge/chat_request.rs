//! A Chat Completions request as a Responses request: the top level. Its messages are in [`super::chat_input`], its tools
//! in [`super::chat_tools`]. Encrypted reasoning is not asked for: Chat has no place to carry it.

use super::Protocol;
use super::chat_input::Conversation;
use super::chat_tools::{choice, declared};
use super::error::Refusal;
use super::json::{Node, Object, Text, object};
use super::options::{UpstreamBridge, UpstreamKind};
use super::record::Record;
use super::request::Draft;

/// Members that mean something here. The others are reported as dropped.
const KNOWN: [&str; 33] = [
    "model",
    "messages",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "parallel_tool_calls",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "stop",
    "reasoning_effort",
    "response_format",
    "verbosity",
    "logprobs",
    "top_logprobs",
    "service_tier",
    "store",
    "prompt_cache_key",
    "metadata",
    "safety_identifier",
    "web_search_options",
    "n",
    "modalities",
    "prompt_cache_retention",
    "prompt_cache_options",
    "moderation",
    "prediction",
    "logit_bias",
    "audio",
];

/// Members without which the answer would be wrong.
const REFUSED: [&str; 3] = ["prediction", "logit_bias", "audio"];

/// Members that only OpenAI itself takes.
const OPENAI_ONLY: [&str; 5] = [
    "metadata",
    "safety_identifier",
    "prompt_cache_retention",
    "prompt_cache_options",
    MODERATION,
];

/// An answer that the client wanted to be looked at, and was not, would be a wrong one.
const MODERATION: &str = "moderation";

/// The request to send.
pub(crate) fn convert<'a, 'u>(
    body: &Record<'_, 'a>,
    upstream: &'u UpstreamBridge,
) -> Result<Draft<'a, 'u>, Refusal> {
    let mut draft = Draft::new(Protocol::Chat, &body.word("model")?, upstream)?;
    refuse_unsupported(body)?;
    draft.context.stream = body.flag("stream")?;
    draft.context.usage_chunk = wants_usage(body)?;
    draft.context.legacy_functions = body.says("functions");

    let mut conversation = Conversation::new(&mut draft);
    conversation.read(body)?;
    let input = conversation.finish();
    set_tools(&mut draft, body)?;
    draft.set("input", input);
    set_effort(&mut draft, body)?;
    set_text(&mut draft, body)?;
    set_logprobs(&mut draft, body)?;
    let limit = match body.node("max_completion_tokens") {
        Some(_) => "max_completion_tokens",
        None => "max_tokens",
    };
    draft.set_limit(body, limit)?;
    draft.set_sampling(body)?;
    draft.set_stops("stop", stops(body)?)?;
    set_passed(&mut draft, body)?;
    draft.dropped.unknown_members(body, &KNOWN);
    Ok(draft)
}

/// The tier that the client itself asks for, in the upstream's words.
pub(crate) fn client_tier(
    body: &Record<'_, '_>,
    kind: UpstreamKind,
) -> Result<Option<String>, Refusal> {
    let Some(tier) = body.text("service_tier")? else {
        return Ok(None);
    };
    let tier = tier.plain();
    match (kind, tier.as_ref()) {
        (UpstreamKind::Codex, "fast" | "priority") => Ok(Some("priority".to_owned())),
        (UpstreamKind::Codex, _) => Ok(None), // it refuses tiers that it does not have
        _ => Ok(Some(tier.into_owned())),
    }
}

/// 400 for what Responses cannot do.
fn refuse_unsupported(body: &Record<'_, '_>) -> Result<(), Refusal> {
    if body.node("n").is_some_and(|n| n.as_number() != Some(1)) {
        return Err(Refusal::invalid("n", "only 1 is possible on this upstream"));
    }
    if body
        .texts("modalities")?
        .iter()
        .any(|modality| modality.plain() != "text")
    {
        return Err(Refusal::invalid("modalities", "only text"));
    }
    match REFUSED.into_iter().find(|name| body.says(name)) {
        Some(name) => Err(Refusal::invalid(name, "not supported by this upstream")),
        None => Ok(()),
    }
}

/// `stream_options.include_usage`.
fn wants_usage(body: &Record<'_, '_>) -> Result<bool, Refusal> {
    match body.record("stream_options")? {
        Some(options) => options.flag("include_usage"),
        None => Ok(false),
    }
}

/// The tools and what is said about their choice; nothing of it where there is no tool.
fn set_tools<'a>(draft: &mut Draft<'a, '_>, body: &Record<'_, 'a>) -> Result<(), Refusal> {
    let tools = declared(body, &mut draft.context.names)?;
    let choice = choice(body)?;
    let legacy = draft.context.legacy_functions.then_some(false);
    let parallel = body.maybe_flag("parallel_tool_calls")?.or(legacy);
    if !tools.is_empty() {
        draft.set("tools", tools);
        draft.set("tool_choice", choice);
        draft.set("parallel_tool_calls", parallel);
    }
    Ok(())
}

/// `reasoning_effort`, where the model takes one.
fn set_effort(draft: &mut Draft<'_, '_>, body: &Record<'_, '_>) -> Result<(), Refusal> {
    let asked = body.word("reasoning_effort")?;
    let model = &draft.model;
    let effort = model.effort(asked.parse().ok()).filter(|_| model.reasoning);
    draft.set_reasoning(effort, None);
    if effort.is_none() && !asked.is_empty() {
        draft.dropped.add("reasoning_effort");
    }
    Ok(())
}

/// `text`: the format of the answer, and how wordy it is.
fn set_text<'a>(draft: &mut Draft<'a, '_>, body: &Record<'_, 'a>) -> Result<(), Refusal> {
    let format = body.record("response_format")?;
    let format = format.map(|format| output_format(&format)).transpose()?;
    let text = object! {"format": format.flatten(), "verbosity": body.some_text("verbosity")?};
    draft.set("text", text.or_none());
    Ok(())
}

/// `text.format` for `response_format`.
fn output_format<'a>(format: &Record<'_, 'a>) -> Result<Option<Object<'a>>, Refusal> {
    match format.word("type")?.as_ref() {
        "json_schema" => Ok(Some(schema_format(&format.need_record("json_schema")?)?)),
        "json_object" => Ok(Some(object! {"type": "json_object"})),
        "text" | "" => Ok(None),
        _ => Err(format
            .path
            .member("type")
            .refuse("only text, json_object and json_schema")),
    }
}

/// A JSON schema, which Responses has flat, and whose `strict` must be said.
fn schema_format<'a>(schema: &Record<'_, 'a>) -> Result<Object<'a>, Refusal> {
    Ok(object! {
        "type": "json_schema",
        "name": schema.need_text("name")?,
        "description": schema.text("description")?,
        "schema": schema.record("schema")?.map(|schema| schema.object().clone()),
        "strict": schema.flag("strict")?,
    })
}

/// `logprobs`, where the model takes it.
fn set_logprobs<'a>(draft: &mut Draft<'a, '_>, body: &Record<'_, 'a>) -> Result<(), Refusal> {
    if !body.flag("logprobs")? {
        return Ok(());
    }
    if !draft.takes_sampling() {
        draft.dropped.add("logprobs");
        return Ok(());
    }
    draft.set_include(vec!["message.output_text.logprobs"]);
    draft.set("top_logprobs", body.number("top_logprobs")?.cloned());
    Ok(())
}

/// `stop`, which is a string or a list.
fn stops<'n, 'a>(body: &Record<'n, 'a>) -> Result<Vec<&'n Text<'a>>, Refusal> {
    match body.node("stop") {
        Some(Node::Text(text)) => Ok(vec![text]),
        _ => body.texts("stop"),
    }
}

/// What passes as it is, where the upstream takes it.
fn set_passed<'a>(draft: &mut Draft<'a, '_>, body: &Record<'_, 'a>) -> Result<(), Refusal> {
    draft.set("prompt_cache_key", body.some_text("prompt_cache_key")?);
    body.record("metadata")?;
    body.text("safety_identifier")?;
    body.text("prompt_cache_retention")?;
    body.record("prompt_cache_options")?;
    body.record(MODERATION)?;
    let is_openai = draft.upstream.kind == UpstreamKind::OpenAi;
    if !is_openai && body.says(MODERATION) {
        return Err(Refusal::invalid(
            MODERATION,
            "not supported by this upstream",
        ));
    }
    for name in OPENAI_ONLY {
        match body.node(name) {
            Some(value) if is_openai => draft.set(name, value.clone()),
            Some(_) => draft.dropped.add(name),
            None => {}
        }
    }
    if body.flag("store")? {
        draft.dropped.add("store");
    }
    Ok(())
}
