//! The tools of a Chat request as Responses tools, and the choice among them: what Chat nests, Responses has flat.

use super::error::Refusal;
use super::json::{Node, Object, object};
use super::names::{ToolNames, tool_name};
use super::record::Record;
use super::schema::repair;

/// `tools`, `functions` and the web search, as Responses tools.
pub(crate) fn declared<'a>(
    body: &Record<'_, 'a>,
    names: &mut ToolNames,
) -> Result<Vec<Node<'a>>, Refusal> {
    let mut tools = Vec::new();
    for tool in body.records("tools")? {
        match tool.word("type")?.as_ref() {
            "custom" => tools.push(custom(&tool.need_record("custom")?, names)?),
            // Some editors send the form of Responses, without the object around.
            "function" => tools.push(function(&tool.record("function")?.unwrap_or(tool), names)?),
            other => {
                return Err(Refusal::invalid(
                    "tools",
                    format!("{other} is not available through this gateway"),
                ));
            }
        }
    }
    for legacy in body.records("functions")? {
        tools.push(function(&legacy, names)?);
    }
    if let Some(options) = body.record("web_search_options")? {
        tools.push(web_search(&options)?);
    }
    Ok(tools)
}

/// `tool_choice`, or `function_call` of the legacy form.
pub(crate) fn choice<'a>(body: &Record<'_, 'a>) -> Result<Option<Node<'a>>, Refusal> {
    let name = if body.node("tool_choice").is_some() {
        "tool_choice"
    } else {
        "function_call"
    };
    match body.node(name) {
        None => Ok(None),
        Some(word @ Node::Text(_)) => Ok(Some(word.clone())),
        Some(_) => {
            let chosen = body.need_record(name)?;
            match chosen.word("type")?.as_ref() {
                "allowed_tools" => allowed_tools(&chosen.need_record("allowed_tools")?).map(Some),
                "custom" => one_tool("custom", &chosen).map(Some),
                _ => one_tool("function", &chosen).map(Some),
            }
        }
    }
}

/// A function. The schema is the client's, repaired.
fn function<'a>(function: &Record<'_, 'a>, names: &mut ToolNames) -> Result<Node<'a>, Refusal> {
    let function = object! {
        "type": "function",
        "name": names.upstream(&function.need_text("name")?.plain())?,
        "description": function.some_text("description")?,
        "parameters": repair(function.node("parameters")),
        // Chat's default is false; left out, Responses would take true.
        "strict": function.flag("strict")?,
    };
    Ok(function.into())
}

/// A tool that takes free text, or text of a grammar.
fn custom<'a>(custom: &Record<'_, 'a>, names: &mut ToolNames) -> Result<Node<'a>, Refusal> {
    let mut tool = object! {
        "type": "custom",
        "name": names.upstream(&custom.need_text("name")?.plain())?,
        "description": custom.some_text("description")?,
    };
    if let Some(format) = custom.record("format")?
        && format.word("type")? == "grammar"
    {
        let grammar = format.need_record("grammar")?;
        let format = object! {
            "type": "grammar",
            "syntax": grammar.need_text("syntax")?,
            "definition": grammar.need_text("definition")?,
        };
        tool.push("format", format);
    }
    Ok(tool.into())
}

/// The hosted search that `web_search_options` stands for.
fn web_search<'a>(options: &Record<'_, 'a>) -> Result<Node<'a>, Refusal> {
    let mut search = object! {
        "type": "web_search",
        "search_context_size": options.some_text("search_context_size")?,
    };
    if let Some(place) = options.record("user_location")? {
        let mut location = vec![("type".into(), Node::word("approximate"))];
        if let Some(approximate) = place.record("approximate")? {
            location.extend(approximate.object().clone().into_members());
        }
        search.push("user_location", Object::of_members(location));
    }
    Ok(search.into())
}

/// A choice of several tools.
fn allowed_tools<'a>(allowed: &Record<'_, 'a>) -> Result<Node<'a>, Refusal> {
    let mut tools = Vec::new();
    for tool in allowed.records("tools")? {
        tools.push(match tool.word("type")?.as_ref() {
            "custom" => one_tool("custom", &tool)?,
            _ => one_tool("function", &tool)?,
        });
    }
    let mode = allowed.need_text("mode")?;
    Ok(object! {"type": "allowed_tools", "mode": mode, "tools": tools}.into())
}

/// A tool by its name, which stands in an object of the tool's kind or beside it.
fn one_tool<'a>(kind: &'static str, chosen: &Record<'_, 'a>) -> Result<Node<'a>, Refusal> {
    let inner = chosen.record(kind)?.unwrap_or(*chosen);
    let name = inner.need_text("name")?.plain();
    Ok(object! {"type": kind, "name": Node::text(&tool_name(&name))}.into())
}
