//! JSON schemas of tools and outputs: repairs what the Responses API refuses, and says what it takes as strict. It
//! checks no value against a schema.

use super::json::{Node, Object, Text};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// Members whose values are data, not schemas.
const DATA: [&str; 5] = ["const", "default", "enum", "examples", "example"];

/// Members that hold schemas by name.
const NAMED_SCHEMAS: [&str; 4] = ["properties", "$defs", "definitions", "patternProperties"];

/// Members that combine schemas, which the top level may not have.
const COMBINED: [&str; 3] = ["oneOf", "anyOf", "allOf"];

/// A tool's schema as Responses takes it: its top level is an object with properties, and no array is without `items`.
/// Everything else is as it came.
pub(crate) fn repair<'a>(schema: Option<&Node<'a>>) -> Node<'a> {
    let mut schema = match schema.map(|schema| with_items(schema.clone())) {
        Some(Node::Object(schema)) => schema,
        _ => Object::default(),
    };
    schema.remove("$schema");
    for name in COMBINED {
        if let Some(Node::List(branches)) = schema.remove(name) {
            merge(&mut schema, name, &branches);
        }
    }
    schema.remove("enum");
    schema.remove("not");
    schema.set("type", "object");
    if !matches!(schema.get("properties"), Some(Node::Object(_))) {
        schema.set("properties", Object::default());
    }
    Node::Object(schema)
}

/// Whether the API takes a schema with `strict`: every object allows no other properties and requires all its own.
pub(crate) fn is_strict_safe(schema: &Node<'_>) -> bool {
    match schema {
        Node::List(schemas) => schemas.iter().all(is_strict_safe),
        Node::Object(schema) => is_closed(schema) && parts_are_strict_safe(schema),
        _ => true,
    }
}

/// Gives every array below and at this schema `items`, which the API misses (`array schema missing items`).
fn with_items(schema: Node<'_>) -> Node<'_> {
    match schema {
        Node::List(schemas) => Node::List(schemas.into_iter().map(with_items).collect()),
        Node::Object(schema) => {
            let mut schema = schema.map_values(repaired_member);
            let has_items = schema.get("items").is_some() || schema.get("prefixItems").is_some();
            if is_array(&schema) && !has_items {
                schema.push("items", Object::default());
            }
            Node::Object(schema)
        }
        other => other,
    }
}

/// A schema's member, repaired where it holds schemas.
fn repaired_member<'a>(name: &str, value: Node<'a>) -> Node<'a> {
    match value {
        value if DATA.contains(&name) => value,
        Node::Object(schemas) if NAMED_SCHEMAS.contains(&name) => {
            Node::Object(schemas.map_values(|_, schema| with_items(schema)))
        }
        value => with_items(value),
    }
}

/// Whether its type is or may be array.
fn is_array(schema: &Object<'_>) -> bool {
    let says_array = |node: &Node<'_>| node.as_text().is_some_and(|kind| kind == "array");
    match schema.get("type") {
        Some(Node::List(kinds)) => kinds.iter().any(says_array),
        Some(kind) => says_array(kind),
        None => false,
    }
}

/// Puts the properties of combined schemas into the one around them. What all branches require stays required, and with
/// `allOf` what any requires.
fn merge<'a>(schema: &mut Object<'a>, combined: &str, branches: &[Node<'a>]) {
    let branches: Vec<&Object<'a>> = branches.iter().filter_map(Node::as_object).collect();
    let own = schema.get("properties").and_then(Node::as_object);
    let theirs = branches
        .iter()
        .filter_map(|branch| branch.get("properties")?.as_object());
    let properties = theirs
        .chain(own)
        .flat_map(|properties| properties.clone().into_members())
        .collect();
    schema.set("properties", Object::of_members(properties));
    let Some(needed) = branches
        .iter()
        .map(|branch| required(branch))
        .reduce(|left, right| match combined {
            "allOf" => left.union(&right).cloned().collect(),
            _ => left.intersection(&right).cloned().collect(),
        })
    else {
        return;
    };
    require(schema, &needed);
}

/// Adds names to those that a schema requires.
fn require(schema: &mut Object<'_>, names: &BTreeSet<String>) {
    let had = required(schema);
    let mut list = schema
        .get("required")
        .and_then(Node::as_list)
        .unwrap_or_default()
        .to_vec();
    list.extend(names.difference(&had).map(|name| Node::text(name)));
    if list.is_empty() {
        schema.remove("required");
    } else {
        schema.set("required", list);
    }
}

/// The names that it requires.
fn required(schema: &Object<'_>) -> BTreeSet<String> {
    let list = schema
        .get("required")
        .and_then(Node::as_list)
        .unwrap_or_default();
    list.iter()
        .filter_map(Node::as_text)
        .map(Cow::into_owned)
        .collect()
}

/// Whether it is no object, or one that allows no other properties and requires all its own.
fn is_closed(schema: &Object<'_>) -> bool {
    let properties = schema.get("properties");
    let is_object = schema
        .get("type")
        .and_then(Node::as_text)
        .is_some_and(|kind| kind == "object");
    if !is_object && properties.is_none() {
        return true;
    }
    let Some(properties) = properties.and_then(Node::as_object) else {
        return false;
    };
    let names = properties
        .members()
        .map(|(name, _)| Text::word(name).plain().into_owned())
        .collect();
    matches!(schema.get("additionalProperties"), Some(Node::Bool(false)))
        && required(schema) == names
}

/// Whether the schemas inside it are.
fn parts_are_strict_safe(schema: &Object<'_>) -> bool {
    let direct = ["items", "anyOf", "oneOf", "allOf"];
    let named = ["properties", "$defs", "definitions"];
    direct
        .iter()
        .filter_map(|name| schema.get(name))
        .all(is_strict_safe)
        && named
            .iter()
            .filter_map(|name| schema.get(name)?.as_object())
            .all(|schemas| schemas.members().all(|(_, schema)| is_strict_safe(schema)))
}
