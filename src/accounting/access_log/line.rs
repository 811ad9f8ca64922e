//! One line of the access log, read back: the raw JSON of the fields that a reader wants, and nothing of the others. It
//! checks that the line is one JSON object; what the values mean is up to the reader.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::accounting::access_log::fields::NAMES;
use crate::config::LogFormat;

/// Every field of the access log, in the order in which a line holds them.
pub const FIELDS: [&str; NAMES.len()] = names(0);

/// The same under the names of `format: otel`.
pub const OTEL_FIELDS: [&str; NAMES.len()] = names(1);

const fn names(column: usize) -> [&'static str; NAMES.len()] {
    let mut names = [""; NAMES.len()];
    let mut index = 0;
    while index < NAMES.len() {
        names[index] = NAMES[index][column];
        index += 1;
    }
    names
}

/// A field of the access log, by its place in [`FIELDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(usize);

/// A name that is not in [`FIELDS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownField(String);

/// The fields to keep when a line is read.
#[derive(Clone, Debug)]
pub struct Wanted([bool; FIELDS.len()]);

/// The wanted fields of one line. A field that the line does not have reads as `null`.
pub struct Line<'a> {
    /// Raw JSON, one for each of [`FIELDS`].
    values: [&'a str; FIELDS.len()],
}

impl Field {
    /// The field called `name`. Made for constants: an unknown name then does not compile.
    pub const fn named(name: &str) -> Field {
        let mut index = 0;
        while index < FIELDS.len() {
            if same(FIELDS[index].as_bytes(), name.as_bytes()) {
                return Field(index);
            }
            index += 1;
        }
        panic!("not a field of the access log");
    }

    /// The field's name in the log's own format.
    pub fn name(self) -> &'static str {
        FIELDS[self.0]
    }

    /// The field's name in the given format of the log.
    pub fn name_in(self, format: LogFormat) -> &'static str {
        match format {
            LogFormat::Json => FIELDS[self.0],
            LogFormat::Otel => OTEL_FIELDS[self.0],
        }
    }
}

impl FromStr for Field {
    type Err = UnknownField;

    fn from_str(name: &str) -> Result<Field, UnknownField> {
        position(name, 0)
            .map(Field)
            .ok_or_else(|| UnknownField(name.to_owned()))
    }
}

impl fmt::Display for UnknownField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown field `{}`", self.0)?;
        let near = FIELDS
            .iter()
            .map(|field| (strsim::jaro_winkler(field, &self.0), field));
        match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((likeness, field)) if likeness > 0.8 => write!(f, "; did you mean `{field}`?"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for UnknownField {}

impl Wanted {
    /// Selects these fields; all others are passed over when a line is read.
    pub fn new(fields: impl IntoIterator<Item = Field>) -> Wanted {
        let mut wanted = [false; FIELDS.len()];
        for field in fields {
            wanted[field.0] = true;
        }
        Wanted(wanted)
    }

    /// All but these.
    pub fn without(fields: impl IntoIterator<Item = Field>) -> Wanted {
        let mut wanted = [true; FIELDS.len()];
        for field in fields {
            wanted[field.0] = false;
        }
        Wanted(wanted)
    }

    /// The selected fields, in the order in which a line has them.
    pub fn fields(&self) -> impl Iterator<Item = Field> {
        let all = (0..FIELDS.len()).map(Field);
        all.filter(|field| self.0[field.0])
    }
}

impl<'a> Line<'a> {
    /// Reads one line, given without its line feed.
    ///
    /// # Errors
    /// Where it is not one JSON object. The error says what is wrong and quotes nothing of the line.
    pub fn parse(line: &'a [u8], wanted: &Wanted) -> Result<Line<'a>, serde_json::Error> {
        let mut json = serde_json::Deserializer::from_slice(line);
        let line = LineSeed(wanted).deserialize(&mut json)?;
        json.end()?;
        Ok(line)
    }

    /// The value as it is spelled in the line.
    pub fn raw(&self, field: Field) -> &'a str {
        self.values[field.0]
    }

    /// The value of a field that holds a string.
    pub fn text(&self, field: Field) -> Option<Cow<'a, str>> {
        decode(self.raw(field))
    }

    /// The value of a field that holds a count.
    pub fn count(&self, field: Field) -> Option<u64> {
        self.raw(field).parse().ok()
    }

    /// Whether the field's value is `true`.
    pub fn is_true(&self, field: Field) -> bool {
        self.raw(field) == "true"
    }
}

/// The string that a raw JSON value spells, if it is a string.
pub fn decode(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// The raw JSON of a value as this program writes it: shippers spell some texts in other ways, `"\u00fc"` for `"ü"`.
pub fn own_spelling(raw: &str) -> Cow<'_, str> {
    match decode(raw) {
        // Only then it is spelled in another way than it reads.
        Some(Cow::Owned(text)) => serde_json::Value::String(text).to_string().into(),
        _ => raw.into(),
    }
}

/// Reads an object into a [`Line`].
struct LineSeed<'w>(&'w Wanted);

impl<'de> DeserializeSeed<'de> for LineSeed<'_> {
    type Value = Line<'de>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Line<'de>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for LineSeed<'_> {
    type Value = Line<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Line<'de>, M::Error> {
        let mut values = ["null"; FIELDS.len()];
        let mut expected = 0;
        while let Some(index) = map.next_key_seed(NameSeed { expected })? {
            expected = index.map_or(expected, |index| index + 1);
            match index {
                Some(index) if self.0.0[index] => {
                    values[index] = map.next_value::<&'de RawValue>()?.get()
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Line { values })
    }
}

/// Reads a field's name into its place in [`FIELDS`]; `None` if it has none there.
struct NameSeed {
    /// Where the name stands if the line keeps to the order of [`FIELDS`].
    expected: usize,
}

impl<'de> DeserializeSeed<'de> for NameSeed {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<usize>, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for NameSeed {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<usize>, E> {
        Ok(position(name, self.expected))
    }
}

/// Where `name` stands in [`FIELDS`] or in [`OTEL_FIELDS`], looked for at `expected` first.
fn position(name: &str, expected: usize) -> Option<usize> {
    if NAMES
        .get(expected)
        .is_some_and(|names| names.contains(&name))
    {
        return Some(expected);
    }
    NAMES.iter().position(|names| names.contains(&name))
}

/// Whether two names are equal, in a constant.
const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut index = 0;
    while index < a.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GROUP: Field = Field::named("group");
    const STATUS: Field = Field::named("status");

    fn parse(line: &str) -> Result<Line<'_>, serde_json::Error> {
        Line::parse(line.as_bytes(), &Wanted::new([GROUP, STATUS]))
    }

    #[test]
    fn fields_are_read_in_any_order_and_the_others_are_passed_over() {
        let line =
            parse(r#"{"status": 200 ,"more":{"group":[1]},"group":"a\u0062","key":"k"}"#).unwrap();
        assert_eq!(line.text(GROUP).as_deref(), Some("ab"));
        assert_eq!(line.count(STATUS), Some(200));
        assert_eq!(line.raw(Field::named("key")), "null");
    }

    #[test]
    fn what_is_not_one_json_object_is_an_error() {
        for line in [
            "",
            "[]",
            "null",
            r#"{"group":"a""#,
            r#"{"group":"a"} x"#,
            r#"{"group":}"#,
            "{\"group\":\"\n\"}",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn no_two_fields_have_a_name_in_common() {
        let names: std::collections::HashSet<&str> = NAMES.iter().flatten().copied().collect();
        assert_eq!(names.len(), 2 * NAMES.len());
    }

    #[test]
    fn a_line_says_the_same_under_either_name() {
        for [plain, otel] in NAMES {
            let field: Field = plain.parse().unwrap();
            assert_eq!(otel.parse(), Ok(field));
            let text = format!(r#"{{"{otel}":7,"tiergate.x":8}}"#);
            let line = Line::parse(text.as_bytes(), &Wanted::new([field])).unwrap();
            assert_eq!(line.count(field), Some(7));
        }
    }

    #[test]
    fn an_unknown_field_names_the_nearest() {
        let unknown = "service_teir_billed".parse::<Field>().unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "unknown field `service_teir_billed`; did you mean `service_tier_billed`?"
        );
        assert_eq!(
            "zzz".parse::<Field>().unwrap_err().to_string(),
            "unknown field `zzz`"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn it_agrees_with_a_parser_of_the_whole_line(
            names in proptest::collection::vec("[a-z]{0,3}|group|status|seq", 0..6),
            value in "-?[0-9]{1,3}|\"[a-z\\\\\"]{0,4}\"|null|true|\\{\"group\":1\\}|\\[1, 2\\]",
            cut in 0usize..80,
        ) {
            let members: Vec<String> = names.iter().map(|name| format!("{name:?}:{value}")).collect();
            let text = format!("{{{}}}", members.join(","));
            let text = &text[..text.len().min(cut)];
            match (parse(text), serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)) {
                (Ok(line), Ok(map)) => {
                    let expected = map.get("group").cloned().unwrap_or_default();
                    prop_assert_eq!(serde_json::from_str::<serde_json::Value>(line.raw(GROUP)).unwrap(), expected);
                }
                (line, map) => prop_assert_eq!(line.is_ok(), map.is_ok()),
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Line::parse(&bytes, &Wanted::new([GROUP]));
        }
    }
}
