//! The writer of JSON: a tree in, its shortest text out. Strings and numbers come out as they were spelled.

use super::{Node, Text};

/// Writes a value without any white space.
pub(crate) fn write(node: &Node<'_>, out: &mut String) {
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

/// What stands between the quotes of a string's JSON form. Only what must be escaped is.
pub(crate) fn escape(plain: &str) -> String {
    let mut out = String::with_capacity(plain.len());
    let mut rest = plain;
    while let Some(at) = rest
        .bytes()
        .position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))
    {
        out.push_str(&rest[..at]);
        escape_byte(rest.as_bytes()[at], &mut out);
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out
}

/// Writes the escape of one byte.
fn escape_byte(byte: u8, out: &mut String) {
    match byte {
        b'"' => out.push_str("\\\""),
        b'\\' => out.push_str("\\\\"),
        b'\n' => out.push_str("\\n"),
        b'\r' => out.push_str("\\r"),
        b'\t' => out.push_str("\\t"),
        _ => out.push_str(&format!("\\u{byte:04x}")),
    }
}

/// Writes what stands between the quotes.
pub(super) fn raw(text: &Text<'_>, out: &mut String) {
    match text {
        Text::Slice(raw) => out.push_str(raw),
        Text::Owned(raw) => out.push_str(raw),
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
