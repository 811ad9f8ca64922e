//! Why a value cannot be what its setting asks for, in the words that people get to read. serde's own errors quote the
//! value, which may be an API key.

use std::fmt::{self, Display};

use serde::de::{self, Expected, Unexpected};

use crate::config::diagnostic::{any_of, nearest, shown};

/// The message about one value.
#[derive(Debug)]
pub(crate) struct Fault(Box<str>);

impl Fault {
    pub(crate) fn into_message(self) -> Box<str> {
        self.0
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(message: T) -> Fault {
        Fault(message.to_string().into())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Fault {
        let (expected, found) = (words_of(expected), kind_of(&found));
        let could_be_quoted = expected == "a string" && found.starts_with(['t', 'n', 'a']);
        let is_scalar = matches!(found, "true or false" | "a number");
        let advice = if could_be_quoted && is_scalar {
            "; put it in quotes"
        } else {
            ""
        };
        Fault::custom(format_args!("expected {expected}, found {found}{advice}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Fault {
        Fault::custom(format_args!("expected {}", words_of(expected)))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Fault {
        if expected.contains(&variant) {
            // It is a word of YAML's own, and stands there as a string.
            return Fault::custom(format_args!(
                "expected {variant}, found the string `{variant}`; leave out the quotes"
            ));
        }
        match nearest(variant, expected.iter().copied()) {
            Some(near) => Fault::custom(format_args!(
                "unknown value `{variant}`; did you mean `{near}`?"
            )),
            None => Fault::custom(format_args!(
                "unknown value{}; expected {}",
                shown(variant),
                any_of(expected)
            )),
        }
    }
}

/// What serde calls Rust's types, as people call them.
fn words_of(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "a boolean" => "true or false".to_owned(),
        "i64" | "u64" | "u32" | "usize" => "an integer".to_owned(),
        text if text.starts_with("struct ") => "a mapping".to_owned(),
        _ => text,
    }
}

fn kind_of(found: &Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "true or false",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a mapping",
        Unexpected::Unit | Unexpected::Option => "nothing",
        _ => "a string",
    }
}
