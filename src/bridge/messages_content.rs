//! Blocks of user content and of tool results as parts of Responses input. It does not know in which message they stand,
//! but for the place that a refusal names.

use super::error::Refusal;
use super::input::{Part, tool_output};
use super::json::{Node, Text, object};
use super::record::{Content, Path, Record};
use crate::config::bridge::ToolMedia;
use std::collections::HashSet;

/// What a tool is said to have put out if it has failed and put out nothing.
const FAILED_WITHOUT_OUTPUT: &str = "(tool failed without output)";

/// How texts of failed tools begin that need no mark, in lower case.
const ERROR_MARKS: [&str; 2] = ["error", "<tool_use_error>"];

/// The media type of images that name none.
const DEFAULT_IMAGE: &str = "image/png";

/// The parts of some blocks of the message at `place`. Tools that they refer to are put down as loaded.
pub(crate) fn parts_of<'a>(
    blocks: &[Record<'_, 'a>],
    place: Path,
    loaded: &mut HashSet<String>,
) -> Result<Vec<Part<'a>>, Refusal> {
    let mut parts = Vec::new();
    for block in blocks {
        match block.word("type")?.as_ref() {
            "text" => parts.extend(block.some_text("text")?.cloned().map(Part::Text)),
            "image" => parts.push(image(block, place)?),
            "document" => parts.append(&mut document(block, place, loaded)?),
            "search_result" => parts.push(search_result(block)?),
            "tool_reference" => parts.push(tool_reference(block, loaded)?),
            other => return Err(place.refuse(format!("content block {other} cannot be converted"))),
        }
    }
    Ok(parts)
}

/// The output of a `tool_result` block of the message at `place`, and media that are to follow in a user message.
pub(crate) fn result_output<'a>(
    block: &Record<'_, 'a>,
    place: Path,
    media: ToolMedia,
    loaded: &mut HashSet<String>,
) -> Result<(Node<'a>, Vec<Part<'a>>), Refusal> {
    let mut parts = match block.content("content")? {
        Content::Text(text) if text.is_empty() => Vec::new(),
        Content::Text(text) => vec![Part::Text(text.clone())],
        Content::Blocks(blocks) => parts_of(&blocks, place, loaded)?,
    };
    if block.flag("is_error")? {
        mark_error(&mut parts);
    }
    Ok(tool_output(parts, media))
}

/// Responses has no flag for a failed tool: the text has to say it.
fn mark_error(parts: &mut Vec<Part<'_>>) {
    match parts.first_mut() {
        None => parts.push(Part::word(FAILED_WITHOUT_OUTPUT)),
        Some(Part::Text(text)) if says_error(text) => {}
        Some(Part::Text(text)) => *text = Text::Joined(vec![Text::word("Error: "), text.clone()]),
        Some(Part::Media(_)) => parts.insert(0, Part::word("Error:")),
    }
}

/// Whether a text says by itself that a tool failed.
fn says_error(text: &Text<'_>) -> bool {
    let plain = text.plain();
    let beginning = plain.trim_start().as_bytes();
    let begins_with = |mark: &&str| {
        beginning
            .get(..mark.len())
            .is_some_and(|letters| letters.eq_ignore_ascii_case(mark.as_bytes()))
    };
    ERROR_MARKS.iter().any(begins_with)
}

/// An image part.
fn image<'a>(block: &Record<'_, 'a>, place: Path) -> Result<Part<'a>, Refusal> {
    let source = block.need_record("source")?;
    let url = match source.word("type")?.as_ref() {
        "base64" => {
            let media = source
                .some_text("media_type")?
                .cloned()
                .unwrap_or(Text::word(DEFAULT_IMAGE));
            data_uri(media, source.need_text("data")?.clone())
        }
        "url" => source.need_text("url")?.clone(),
        other => return Err(cannot(place, "image", other)),
    };
    Ok(Part::Media(
        object! {"type": "input_image", "image_url": url, "detail": "auto"}.into(),
    ))
}

/// A document: a file part, or its text.
fn document<'a>(
    block: &Record<'_, 'a>,
    place: Path,
    loaded: &mut HashSet<String>,
) -> Result<Vec<Part<'a>>, Refusal> {
    let source = block.need_record("source")?;
    let title = block.some_text("title")?.cloned();
    let kind = source.word("type")?;
    let mut parts: Vec<Part<'a>> = match kind.as_ref() {
        "base64" if source.word("media_type")? == "application/pdf" => {
            let name = title.unwrap_or(Text::word("document.pdf"));
            let data = source.need_text("data")?.clone();
            let data = data_uri(Text::word("application/pdf"), data);
            let file = object! {"type": "input_file", "filename": name, "file_data": data};
            return Ok(vec![Part::Media(file.into())]);
        }
        "url" => {
            let file = object! {"type": "input_file", "file_url": source.need_text("url")?};
            return Ok(vec![Part::Media(file.into())]);
        }
        "text" | "content" => title.map(Part::Text).into_iter().collect(),
        other => return Err(cannot(place, "document", other)),
    };
    let content = if kind == "text" { "data" } else { "content" };
    match source.content(content)? {
        Content::Text(text) => parts.push(Part::Text(text.clone())),
        Content::Blocks(blocks) => parts.append(&mut parts_of(&blocks, place, loaded)?),
    }
    Ok(parts)
}

/// The text of a search result: title, source and content.
fn search_result<'a>(block: &Record<'_, 'a>) -> Result<Part<'a>, Refusal> {
    let text = |name| Ok(block.text(name)?.cloned().unwrap_or(Text::word("")));
    let content = match block.content("content")? {
        Content::Text(text) => text.clone(),
        Content::Blocks(blocks) => {
            let texts = blocks
                .iter()
                .filter_map(|block| block.text("text").transpose());
            Text::join(
                texts.map(|text| text.cloned()).collect::<Result<_, _>>()?,
                "\\n",
            )
        }
    };
    Ok(Part::Text(Text::join(
        vec![text("title")?, text("source")?, content],
        "\\n",
    )))
}

/// The text that stands for a tool that was loaded.
fn tool_reference<'a>(
    block: &Record<'_, 'a>,
    loaded: &mut HashSet<String>,
) -> Result<Part<'a>, Refusal> {
    let name = block.need_text("tool_name")?;
    loaded.insert(name.plain().into_owned());
    Ok(Part::Text(Text::Joined(vec![
        Text::word("Tool "),
        name.clone(),
        Text::word(" is now available."),
    ])))
}

/// The URL that holds the data itself (RFC 2397).
fn data_uri<'a>(media: Text<'a>, data: Text<'a>) -> Text<'a> {
    Text::Joined(vec![
        Text::word("data:"),
        media,
        Text::word(";base64,"),
        data,
    ])
}

/// A refusal of a source that has no counterpart.
fn cannot(place: Path, block: &str, source: &str) -> Refusal {
    place.refuse(format!(
        "{block} source of type {source} cannot be converted"
    ))
}
