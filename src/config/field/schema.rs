//! Holds the JSON Schemas in `conf/schema/`, by which editors complete and check our files, against the structs that read
//! the files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::Value;

use super::Fault;

/// The words of a struct: the keys of its mapping.
pub(crate) fn words_of<'de, T: Deserialize<'de>>() -> Vec<String> {
    let told = T::deserialize(Words).err().map(Fault::into_message);
    let told = told.unwrap_or_default();
    told.split_whitespace().map(str::to_owned).collect()
}

/// A deserializer whose error is what a struct asks for.
struct Words;

impl<'de> Deserializer<'de> for Words {
    type Error = Fault;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fault> {
        Err(Fault::custom(words.join(" ")))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        Err(Fault::custom("no struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string
        bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

/// Asserts that a schema has these mappings, by JSON pointer, with these keys, and no others; and these enums.
pub(crate) fn assert_schema(
    file: &str,
    mappings: &[(impl AsRef<str>, Vec<String>)],
    enums: &[(String, &[&str])],
) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("conf/schema")
        .join(file);
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let at = |pointer: &str| {
        schema
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{file} has no {pointer}"))
    };
    for (pointer, words) in mappings {
        let pointer = pointer.as_ref();
        let keys = at(&format!("{pointer}/properties")).as_object().unwrap();
        let keys: BTreeSet<&str> = keys.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            words.iter().map(String::as_str).collect(),
            "{file}: {pointer}"
        );
        let closed = at(&format!("{pointer}/additionalProperties"));
        assert_eq!(closed, &Value::Bool(false), "{file}: {pointer}");
    }
    assert_eq!(count(&schema, "properties"), mappings.len(), "{file}");
    for (pointer, words) in enums {
        let told: Vec<&str> = at(&format!("{pointer}/enum"))
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(told, *words, "{file}: {pointer}");
    }
    assert_eq!(count(&schema, "enum"), enums.len(), "{file}");
}

/// Members of that name in the whole document.
fn count(value: &Value, name: &str) -> usize {
    match value {
        Value::Object(members) => members
            .iter()
            .map(|(key, value)| usize::from(key == name) + count(value, name))
            .sum(),
        Value::Array(items) => items.iter().map(|item| count(item, name)).sum(),
        _ => 0,
    }
}
