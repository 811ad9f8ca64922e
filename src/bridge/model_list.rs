//! The answer to `GET /v1/models`, made of the model map: a list has the names that the map spells out, a single model is
//! any name that the map matches. Nothing is known of a model but its name.

use std::borrow::Cow;

use super::Protocol;
use super::error::{Answer, Refusal};
use super::json::{Node, Object, object};
use super::models::Model;
use crate::config::ModelEntry;

/// Models on a page of Anthropic's list, where the client does not say (<https://platform.claude.com/docs/en/api/models-list>).
const DEFAULT_LIMIT: usize = 20;
/// The most that it may ask for.
const MAX_LIMIT: usize = 1000;
/// What Anthropic's API says where the date of a model is unknown.
const UNKNOWN_DATE: &str = "1970-01-01T00:00:00Z";
const OWNER: &str = "tiergate";

/// A request for the models, or for one of them.
#[derive(Clone, Copy, Debug)]
pub struct ModelsRequest<'r> {
    /// In whose shape the client expects the answer.
    pub protocol: Protocol,
    /// The name of a model as it stands in the path; empty for all of them.
    pub name: &'r str,
    /// The query as it stands in the target. Anthropic's list has pages.
    pub query: &'r str,
}

/// Which models of the list an Anthropic client wants.
#[derive(Debug)]
struct Page {
    limit: usize,
    after: Option<String>,
    before: Option<String>,
}

/// The client's answer.
///
/// # Errors
/// Another answer: 404 for a model that is not mapped, 400 for a page that there is not.
pub fn models_answer(
    request: &ModelsRequest<'_>,
    models: &[ModelEntry],
) -> Result<Answer, Refusal> {
    let name = decoded(request.name);
    let body = match (name.is_empty(), request.protocol) {
        (true, Protocol::Messages) => page(&listed(models), &Page::of(request.query)?)?,
        (true, Protocol::Chat) => {
            let models = listed(models)
                .into_iter()
                .map(|name| chat_model(name).into());
            object! {"object": "list", "data": models.collect::<Vec<Node<'_>>>()}
        }
        (false, protocol) => {
            Model::find(&name, models)?;
            match protocol {
                Protocol::Messages => messages_model(&name),
                Protocol::Chat => chat_model(&name),
            }
        }
    };
    Ok(Answer::json(200, body))
}

/// The names that the map spells out, each once, in its order.
fn listed(models: &[ModelEntry]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for entry in models {
        let name = entry.pattern.as_str();
        if !name.ends_with('*') && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A part of Anthropic's list.
fn page(names: &[&str], page: &Page) -> Result<Object<'static>, Refusal> {
    let place = |parameter: &'static str, id: &String| {
        let at = names.iter().position(|name| name == id);
        at.ok_or_else(|| Refusal::invalid(parameter, "there is no such model in the list"))
    };
    let after = page.after.as_ref().map(|id| place("after_id", id));
    let before = page.before.as_ref().map(|id| place("before_id", id));
    let (shown, more) = match (after.transpose()?, before.transpose()?) {
        (Some(_), Some(_)) => {
            let why = "cannot stand beside after_id";
            return Err(Refusal::invalid("before_id", why));
        }
        (None, Some(at)) => {
            let begin = at.saturating_sub(page.limit);
            (&names[begin..at], begin > 0)
        }
        (after, None) => {
            let rest = &names[after.map_or(0, |at| at + 1)..];
            let end = rest.len().min(page.limit);
            (&rest[..end], end < rest.len())
        }
    };
    let models = shown.iter().map(|name| messages_model(name).into());
    Ok(object! {
        "data": models.collect::<Vec<Node<'_>>>(),
        "has_more": more,
        "first_id": Node::text_or_null(shown.first().copied()),
        "last_id": Node::text_or_null(shown.last().copied()),
    })
}

fn messages_model(name: &str) -> Object<'static> {
    object! {
        "type": "model",
        "id": Node::text(name),
        "display_name": Node::text(name),
        "created_at": UNKNOWN_DATE,
    }
}

fn chat_model(name: &str) -> Object<'static> {
    object! {"id": Node::text(name), "object": "model", "created": 0_u64, "owned_by": OWNER}
}

impl Page {
    fn of(query: &str) -> Result<Page, Refusal> {
        let mut page = Page {
            limit: DEFAULT_LIMIT,
            after: None,
            before: None,
        };
        for parameter in query.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                "limit" => page.limit = limit(value)?,
                "after_id" => page.after = Some(decoded(value).into_owned()),
                "before_id" => page.before = Some(decoded(value).into_owned()),
                _ => {}
            }
        }
        Ok(page)
    }
}

fn limit(value: &str) -> Result<usize, Refusal> {
    let number = value.parse().ok();
    number
        .filter(|number| (1..=MAX_LIMIT).contains(number))
        .ok_or_else(|| {
            Refusal::invalid("limit", format!("expected a number from 1 to {MAX_LIMIT}"))
        })
}

/// A part of a target without its escapes (RFC 3986 §2.1).
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, after @ ..] = rest {
        let mut byte = [0];
        let escaped = after.get(..2).filter(|_| *first == b'%');
        match escaped.map(|digits| hex::decode_to_slice(digits, &mut byte)) {
            Some(Ok(())) => {
                bytes.push(byte[0]);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn models() -> Vec<ModelEntry> {
        let names = ["claude-a", "gpt-*", "claude-b", "claude-c", "claude-a"];
        names.map(|name| ModelEntry::new(name, Some("x"))).to_vec()
    }

    /// The ids on a page, and whether there are more.
    fn listed_by(query: &str) -> Result<(Vec<String>, Value), String> {
        let request = ModelsRequest {
            protocol: Protocol::Messages,
            name: "",
            query,
        };
        let answer = models_answer(&request, &models()).map_err(|refusal| refusal.message)?;
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let data = body["data"].as_array().unwrap();
        let ids: Vec<String> = data
            .iter()
            .map(|model| model["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(body["first_id"], json!(ids.first()));
        assert_eq!(body["last_id"], json!(ids.last()));
        Ok((ids, body["has_more"].clone()))
    }

    #[test]
    fn a_list_has_the_names_that_are_spelled_out_on_pages() {
        for (query, ids, more) in [
            ("", &["claude-a", "claude-b", "claude-c"][..], false),
            ("limit=1000", &["claude-a", "claude-b", "claude-c"], false),
            ("beta=true&limit=2", &["claude-a", "claude-b"], true),
            ("limit=2&after_id=claude-b", &["claude-c"], false),
            ("after_id=claude%2Db&limit=1", &["claude-c"], false),
            ("limit=1&before_id=claude-c", &["claude-b"], true),
            ("before_id=claude-b", &["claude-a"], false),
            ("before_id=claude-a", &[], false),
        ] {
            let ids = ids.iter().map(|id| (*id).to_owned()).collect();
            assert_eq!(listed_by(query), Ok((ids, json!(more))), "{query}");
        }
        for query in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "after_id=gpt-5",
            "before_id=",
            "after_id=claude-a&before_id=claude-c",
        ] {
            assert!(listed_by(query).is_err(), "{query}");
        }
    }

    #[test]
    fn a_single_model_is_any_name_that_is_mapped() {
        let status = |name: &str| {
            let request = ModelsRequest {
                protocol: Protocol::Chat,
                name,
                query: "",
            };
            match models_answer(&request, &models()) {
                Ok(answer) => answer.status,
                Err(refusal) => refusal.status,
            }
        };
        let names = ["claude-b", "claude-b%5B1m%5D", "gpt-5", "claude-d", "%zz"];
        assert_eq!(names.map(status), [200, 200, 200, 404, 404]);
    }
}
