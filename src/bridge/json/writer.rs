//! The writer of JSON: a tree in, its shortest text out. Strings and numbers come out as they were spelled.

use super::{Node, Text};

/// Writes a value without any white space.
fn write(node: &Node<'_>, out: &mut String) {
    match node {
        Node::Null => out.push_str("null"),
        Node::Bool(true) => out.push_str("true"),
        Node::Bool(false) => out.push_str("false"),
        Node::Number(spelled) => out.push_str(spelled),
        Node::Text(text) => {
            out.push('"');
            raw(text, out);
            out.push('"');
        }
        Node::List(items) => {
            separated(items, ['[', ']'], out, write);
        }
        Node::Object(object) => {
            separated(object.members(), ['{', '}'], out, |(name, value), out| {
                out.push('"');
                out.push_str(name);
                out.push_str("\":");
                write(value, out);
            })
        }
    }
}

/// A value without any white space.
pub(crate) fn to_string(node: &Node<'_>) -> String {
    let mut out = String::new();
    write(node, &mut out);
    out
}

/// What stands between the quotes of a string's JSON form.
pub(crate) fn escape(plain: &str) -> String {
    let mut quoted = serde_json::to_string(plain).unwrap_or_default(); // there is no text that it cannot write
    quoted.pop();
    quoted.split_off(1)
}

/// Writes what stands between the quotes.
pub(super) fn raw(text: &Text<'_>, out: &mut String) {
    match text {
        Text::Raw(raw) => out.push_str(raw),
        Text::Joined(parts) => parts.iter().for_each(|part| raw(part, out)),
    }
}

/// Writes items with commas between and brackets around.
fn separated<T>(
    items: impl IntoIterator<Item = T>,
    ends: [char; 2],
    out: &mut String,
    write: impl Fn(T, &mut String),
) {
    out.push(ends[0]);
    for (number, item) in items.into_iter().enumerate() {
        if number > 0 {
            out.push(',');
        }
        write(item, out);
    }
    out.push(ends[1]);
}
