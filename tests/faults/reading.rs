//! A reader of bodies that shares nothing with the proxy's own: it says which tier a body asks for, and whether a body is
//! the forced form of another.

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The tiers that a policy can force.
pub const TIERS: [&str; 3] = ["priority", "flex", "default"];

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

/// The tier that a body asks for, as the log is to have it: the dearest that some reader may find, where one that knows the
/// name alone finds none of the others.
pub fn tier(body: &[u8]) -> Option<String> {
    let members = members(body)?;
    let dearest = |is_exact: bool| {
        let named = members.iter().filter(|(name, _)| names_tier(name));
        let such = named.filter(|(name, _)| (name == "service_tier") == is_exact);
        such.filter_map(|(_, value)| told(value.get()))
            .max_by_key(|tier| dearness(tier))
    };
    let (own, other) = (dearest(true), dearest(false));
    let own_price = own.as_deref().map_or(STANDARD, dearness);
    let dearer = other.filter(|other| dearness(other) > own_price);
    dearer.or(own).filter(|tier| tier != "<null>")
}

const STANDARD: u8 = 1;

/// How tiers stand to one another in price.
fn dearness(tier: &str) -> u8 {
    match tier {
        "flex" | "batch" => STANDARD - 1,
        "priority" | "fast" => STANDARD + 1,
        _ => STANDARD,
    }
}

/// The value of a member that names the tier, as the log is to have it.
fn told(value: &str) -> Option<String> {
    let kind = match value.as_bytes()[0] {
        b'"' => {
            let text: String = serde_json::from_str(value).ok()?;
            return Some(text.trim().to_lowercase());
        }
        b'n' => "<null>",
        b'{' => "<object>",
        b'[' => "<array>",
        b't' | b'f' => "<bool>",
        _ => "<number>",
    };
    Some(kind.to_owned())
}

/// Whether some reader takes a member of this name for the model.
fn names_model(name: &str) -> bool {
    name.eq_ignore_ascii_case("model")
}

/// The model of a body, where no reader finds another one.
pub fn sole_model(body: &[u8]) -> Option<String> {
    let members = members(without_mark(body))?;
    let mut named = members.iter().filter(|(name, _)| names_model(name));
    let (name, value) = named.next()?;
    let is_sole = name == "model" && named.next().is_none();
    serde_json::from_str(value.get()).ok().filter(|_| is_sole)
}

/// Whether the member asks for fast mode as Anthropic's API has it.
fn asks_for_speed((name, value): &Member) -> bool {
    let text = || serde_json::from_str::<String>(value.get()).unwrap_or_default();
    name.eq_ignore_ascii_case("speed") && text().trim().eq_ignore_ascii_case("fast")
}

/// Whether a body asks for fast mode by the last of its members `speed`.
pub fn asks_for_fast(body: &[u8]) -> bool {
    let members = members(without_mark(body)).unwrap_or_default();
    let speed = members.iter().rev().find(|(name, _)| name == "speed");
    speed.is_some_and(asks_for_speed)
}

/// What a body begins with that was forced to this tier, so that one that was cut short can be judged too.
fn start_of(tier: Option<&str>) -> String {
    match tier {
        Some(tier) => format!(r#"{{"service_tier":"{tier}""#),
        None => "{".to_owned(),
    }
}

/// The tier that `got` was forced to after `sent`; none where every way to ask for one was taken away.
///
/// # Errors
/// What is wrong with it as a forced body.
pub fn forced_to(sent: &[u8], got: &[u8]) -> Result<Option<&'static str>, String> {
    let begun = |tier: &&str| got.starts_with(start_of(Some(tier)).as_bytes());
    let tier = TIERS.into_iter().find(begun);
    check_forced(without_mark(sent), got, tier)?;
    Ok(tier)
}

fn check_forced(sent: &[u8], got: &[u8], tier: Option<&str>) -> Result<(), String> {
    let Some(before) = members(sent) else {
        return Err("the client's body is no JSON object".to_owned());
    };
    let Some(after) = members(got) else {
        return Err("the body is no JSON object".to_owned());
    };
    let (tiers, after): (Vec<_>, Vec<_>) =
        after.into_iter().partition(|(name, _)| names_tier(name));
    let set = tier.map(|tier| ("service_tier".to_owned(), format!("{tier:?}")));
    let found = tiers.iter();
    let found = found.map(|(name, value)| (name.clone(), value.get().to_owned()));
    if !found.eq(set) {
        return Err(format!("{} members name a tier", tiers.len()));
    }
    // The fast tier is what this asks for too.
    let goes = |member: &Member| {
        names_tier(&member.0) || (tier != Some("priority") && asks_for_speed(member))
    };
    let before: Vec<_> = before.into_iter().filter(|member| !goes(member)).collect();
    let same = |(one, other): (&Member, &Member)| one.0 == other.0 && one.1.get() == other.1.get();
    if before.len() != after.len() || !before.iter().zip(&after).all(same) {
        return Err("other members have changed".to_owned());
    }
    check_bytes(sent, got, tier)
}

/// Behind the member that was set stands the end of what the client sent, with spaces where a member was.
fn check_bytes(sent: &[u8], got: &[u8], tier: Option<&str>) -> Result<(), String> {
    let Some(rest) = got.strip_prefix(start_of(tier).as_bytes()) else {
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

/// Whether this can be the beginning of a body that was forced to this tier.
pub fn begins_forced(got: &[u8], tier: Option<&str>) -> bool {
    let start = start_of(tier);
    let length = got.len().min(start.len());
    got[..length] == start.as_bytes()[..length]
}
