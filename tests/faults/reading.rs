//! A reader of bodies that shares nothing with the proxy's own: it says which tier a body asks for, and whether a body is
//! the forced form of another.

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

const PRIORITY: &str = "\"priority\"";
/// What every forced body begins with, so that one that was cut short can be judged too.
const FORCED_START: &[u8] = br#"{"service_tier":"priority""#;

/// One member of an object: its name, decoded, and its value as it stands.
type Member = (String, Box<RawValue>);

/// The members of a body that is one JSON object, in order, with those of equal names; none for any other body.
pub fn members(body: &[u8]) -> Option<Vec<Member>> {
    struct All;
    impl<'de> Visitor<'de> for All {
        type Value = Vec<Member>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Vec<Member>, M::Error> {
            let mut members = Vec::new();
            while let Some(member) = map.next_entry()? {
                members.push(member);
            }
            Ok(members)
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let members = reader.deserialize_map(All).ok()?;
    reader.end().ok()?;
    Some(members)
}

/// A mark before it is no part of JSON, and readers may ignore it (RFC 8259 §8.1).
pub fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body)
}

/// Whether some reader takes a member of this name for the tier: Go's ignores case, and folds the long s.
pub fn names_tier(name: &str) -> bool {
    name.replace('\u{17f}', "s")
        .eq_ignore_ascii_case("service_tier")
}

/// The tier that a body asks for, as the log is to have it.
pub fn tier(body: &[u8]) -> Option<String> {
    let members = members(body)?;
    let last = |wanted: &dyn Fn(&str) -> bool| {
        let found = members.iter().rev().find(|(name, _)| wanted(name));
        found.map(|(_, value)| value.get())
    };
    let value = last(&|name| name == "service_tier").or_else(|| last(&names_tier))?;
    let kind = match value.as_bytes()[0] {
        b'"' => {
            let text: String = serde_json::from_str(value).ok()?;
            return Some(text.trim().to_lowercase());
        }
        b'n' => return None,
        b'{' => "<object>",
        b'[' => "<array>",
        b't' | b'f' => "<bool>",
        _ => "<number>",
    };
    Some(kind.to_owned())
}

/// Whether `got` is what a forced body is to be after `sent`.
///
/// # Errors
/// What is wrong with it.
pub fn check_forced(sent: &[u8], got: &[u8]) -> Result<(), String> {
    let sent = without_mark(sent);
    let Some(before) = members(sent) else {
        return Err("the client's body is no JSON object".to_owned());
    };
    let Some(after) = members(got) else {
        return Err("the body is no JSON object".to_owned());
    };
    let (tiers, after): (Vec<_>, Vec<_>) =
        after.into_iter().partition(|(name, _)| names_tier(name));
    let is_priority = |(name, value): &Member| name == "service_tier" && value.get() == PRIORITY;
    if tiers.len() != 1 || !is_priority(&tiers[0]) {
        return Err(format!("{} members name a tier", tiers.len()));
    }
    let before = before.into_iter().filter(|(name, _)| !names_tier(name));
    let same = |(one, other): (&Member, &Member)| one.0 == other.0 && one.1.get() == other.1.get();
    let before: Vec<_> = before.collect();
    if before.len() != after.len() || !before.iter().zip(&after).all(same) {
        return Err("other members have changed".to_owned());
    }
    check_bytes(sent, got)
}

/// Behind the member that was set stands the end of what the client sent, with spaces where a member was.
fn check_bytes(sent: &[u8], got: &[u8]) -> Result<(), String> {
    let Some(rest) = got.strip_prefix(FORCED_START) else {
        return Err("the tier does not come first".to_owned());
    };
    let rest = rest.strip_prefix(b",").unwrap_or(rest);
    let Some(end) = sent.len().checked_sub(rest.len()) else {
        return Err("the body has grown by more than the tier".to_owned());
    };
    let same = |(was, is): (&u8, &u8)| was == is || *is == b' ';
    match sent[end..].iter().zip(rest).all(same) {
        true => Ok(()),
        false => Err("a byte has changed".to_owned()),
    }
}

/// Whether this can be the beginning of a forced body.
pub fn begins_forced(got: &[u8]) -> bool {
    let length = got.len().min(FORCED_START.len());
    got[..length] == FORCED_START[..length]
}
