//! The tools of a Messages request as Responses tools, and the choice among them. A deferred tool is declared once the
//! conversation has loaded it.

use super::error::Refusal;
use super::json::{Node, object};
use super::messages_input::MentionedTools;
use super::names::{ToolNames, tool_name};
use super::record::Record;
use super::request::{Draft, Dropped};
use super::schema::{is_strict_safe, repair};
use std::collections::HashSet;

/// Server tools that Responses has as well.
const WEB_SEARCH: &str = "web_search_";

/// Server tools that look for deferred tools, which the upstream cannot; all tools are declared then.
const TOOL_SEARCH: &str = "tool_search_tool_";

/// A server tool that the client does without if it is answered that the API does not know it.
const ADVISOR: &str = "advisor_";

/// The tools to declare.
#[derive(Debug, Default)]
pub(crate) struct Tools<'a> {
    nodes: Vec<Node<'a>>,
    /// Names of the functions among them, as the client has them.
    functions: HashSet<String>,
    /// Names of hosted searches.
    searches: HashSet<String>,
    /// Names of all tools of the request, declared or not.
    listed: HashSet<String>,
}

impl<'a> Tools<'a> {
    /// Reads `tools`, and what the messages added.
    pub(crate) fn read(
        body: &Record<'_, 'a>,
        mentioned: &MentionedTools<'_, 'a>,
        draft: &mut Draft<'a, '_>,
    ) -> Result<Self, Refusal> {
        let (names, dropped) = (&mut draft.context.names, &mut draft.dropped);
        let listed = body.records("tools")?;
        let mut tools = Tools::default();
        let mut all_loaded = false;
        for tool in &listed {
            all_loaded |= tool.word("type")?.starts_with(TOOL_SEARCH);
        }
        for tool in listed.iter().chain(&mentioned.added) {
            if let Some(name) = tool.text("name")? {
                tools.listed.insert(name.plain().into_owned());
            }
            let kind = tool.word("type")?;
            match kind.as_ref() {
                "" | "custom" => tools.function(tool, mentioned, all_loaded, names)?,
                kind if kind.starts_with(WEB_SEARCH) => tools.web_search(tool, dropped)?,
                kind if kind.starts_with(TOOL_SEARCH) => dropped.add(&format!("tools.{kind}")),
                kind => return Err(unavailable(kind)),
            }
        }
        Ok(tools)
    }

    /// Whether there is none to declare.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether a hosted web search is among them.
    pub(crate) fn searches(&self) -> bool {
        !self.searches.is_empty()
    }

    /// `tools` of the request.
    pub(crate) fn into_node(self) -> Node<'a> {
        Node::List(self.nodes)
    }

    /// A client's tool: declared, unless it is not loaded.
    fn function(
        &mut self,
        tool: &Record<'_, 'a>,
        mentioned: &MentionedTools<'_, 'a>,
        all_loaded: bool,
        names: &mut ToolNames,
    ) -> Result<(), Refusal> {
        let name = tool.need_text("name")?.plain();
        let deferred =
            tool.flag("defer_loading")? && !all_loaded && !mentioned.loaded.contains(name.as_ref());
        if deferred
            || mentioned.removed.contains(name.as_ref())
            || self.functions.contains(name.as_ref())
        {
            return Ok(());
        }
        let schema = repair(tool.node("input_schema"));
        // Left out, `strict` would be on: every optional parameter then comes, as an empty string.
        let strict = tool.flag("strict")? && is_strict_safe(&schema);
        let function = object! {
            "type": "function",
            "name": names.upstream(&name)?,
            "description": tool.some_text("description")?,
            "parameters": schema,
            "strict": strict,
        };
        self.nodes.push(function.into());
        self.functions.insert(name.into_owned());
        Ok(())
    }

    /// The hosted web search.
    fn web_search(&mut self, tool: &Record<'_, 'a>, dropped: &mut Dropped) -> Result<(), Refusal> {
        let domains = tool.list("allowed_domains")?;
        let filters = (!domains.is_empty()).then(|| object! {"allowed_domains": domains.to_vec()});
        let place = tool.record("user_location")?;
        let search = object! {
            "type": "web_search",
            "filters": filters,
            "user_location": place.map(|place| place.object().clone()),
        };
        for name in ["blocked_domains", "max_uses"] {
            if tool.says(name) {
                dropped.add(&format!("tools.web_search.{name}"));
            }
        }
        self.searches
            .insert(tool.need_text("name")?.plain().into_owned());
        self.nodes.push(search.into());
        Ok(())
    }
}

/// `tool_choice` for these tools.
pub(crate) fn choice<'a>(
    chosen: &Record<'_, 'a>,
    tools: &Tools<'a>,
    dropped: &mut Dropped,
) -> Result<Option<Node<'a>>, Refusal> {
    let word = match chosen.word("type")?.as_ref() {
        "auto" => "auto",
        "any" => "required",
        "none" => "none",
        "tool" => {
            return named_choice(&chosen.need_text("name")?.plain(), tools, dropped).map(Some);
        }
        "" => return Ok(None),
        other => {
            return Err(chosen
                .path
                .member("type")
                .refuse(format!("{other} is not available through this gateway")));
        }
    };
    Ok(Some(Node::word(word)))
}

/// `tool_choice` for a tool by its name.
fn named_choice<'a>(
    name: &str,
    tools: &Tools<'a>,
    dropped: &mut Dropped,
) -> Result<Node<'a>, Refusal> {
    if tools.functions.contains(name) {
        return Ok(object! {"type": "function", "name": Node::text(&tool_name(name))}.into());
    }
    if tools.searches.contains(name) {
        let is_alone = tools.nodes.len() == 1;
        return Ok(Node::word(if is_alone { "required" } else { "auto" }));
    }
    if tools.listed.contains(name) {
        dropped.add("tool_choice.not_loaded");
        return Ok(Node::word("auto"));
    }
    Err(Refusal::invalid(
        "tool_choice",
        format!("no such tool: {name}"),
    ))
}

/// The refusal of a server tool that Responses does not have.
fn unavailable(kind: &str) -> Refusal {
    let what = if kind.starts_with(ADVISOR) {
        format!("Input tag '{kind}' found using 'type' does not match any of the expected tags")
    } else {
        format!("{kind} is not available through this gateway")
    };
    Refusal::invalid("tools", what)
}
