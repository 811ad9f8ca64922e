//! The tools of a Chat request as Responses tools, and the choice among them: what Chat nests, Responses has flat.

use super::error::Refusal;
use super::json::{Node, Object};
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
    let mut tool = named("function", function, names)?;
    tool.push("parameters", repair(function.node("parameters")));
    // Chat's default is false; left out, Responses would take true.
    tool.push("strict", Node::Bool(function.flag("strict")?));
    Ok(Node::Object(tool))
}

/// A tool that takes free text, or text of a grammar.
fn custom<'a>(custom: &Record<'_, 'a>, names: &mut ToolNames) -> Result<Node<'a>, Refusal> {
    let mut tool = named("custom", custom, names)?;
    if let Some(format) = custom.record("format")?
        && format.word("type")? == "grammar"
    {
        let grammar = format.need_record("grammar")?;
        let format = Node::object([
            ("type", Node::word("grammar")),
            ("syntax", Node::Text(grammar.need_text("syntax")?.clone())),
            (
                "definition",
                Node::Text(grammar.need_text("definition")?.clone()),
            ),
        ]);
        tool.push("format", format);
    }
    Ok(Node::Object(tool))
}

/// A tool with a name and perhaps a description.
fn named<'a>(
    kind: &'static str,
    tool: &Record<'_, 'a>,
    names: &mut ToolNames,
) -> Result<Object<'a>, Refusal> {
    let mut named = Object::default();
    named.push("type", Node::word(kind));
    named.push(
        "name",
        Node::Text(names.upstream(&tool.need_text("name")?.plain())?),
    );
    named.push_some(
        "description",
        tool.some_text("description")?.cloned().map(Node::Text),
    );
    Ok(named)
}

/// The hosted search that `web_search_options` stands for.
fn web_search<'a>(options: &Record<'_, 'a>) -> Result<Node<'a>, Refusal> {
    let mut search = Object::default();
    search.push("type", Node::word("web_search"));
    search.push_some(
        "search_context_size",
        options
            .some_text("search_context_size")?
            .cloned()
            .map(Node::Text),
    );
    if let Some(place) = options.record("user_location")? {
        let mut location = vec![("type".into(), Node::word("approximate"))];
        if let Some(approximate) = place.record("approximate")? {
            location.extend(approximate.object().clone().into_members());
        }
        search.push("user_location", Node::Object(Object::of_members(location)));
    }
    Ok(Node::Object(search))
}

/// A choice of several tools.
fn allowed_tools<'a>(allowed: &Record<'_, 'a>) -> Result<Node<'a>, Refusal> {
    let tools = allowed.records("tools")?;
    let tools = tools.iter().map(|tool| match tool.word("type")?.as_ref() {
        "custom" => one_tool("custom", tool),
        _ => one_tool("function", tool),
    });
    Ok(Node::object([
        ("type", Node::word("allowed_tools")),
        ("mode", Node::Text(allowed.need_text("mode")?.clone())),
        ("tools", Node::List(tools.collect::<Result<_, _>>()?)),
    ]))
}

/// A tool by its name, which stands in an object of the tool's kind or beside it.
fn one_tool<'a>(kind: &'static str, chosen: &Record<'_, 'a>) -> Result<Node<'a>, Refusal> {
    let inner = chosen.record(kind)?.unwrap_or(*chosen);
    let name = inner.need_text("name")?.plain();
    Ok(Node::object([
        ("type", Node::word(kind)),
        ("name", Node::text(&tool_name(&name))),
    ]))
}
