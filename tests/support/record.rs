//! Lines of the access log as tests compare them: whole, with what differs from run to run checked and then replaced.

use serde_json::{Map, Value, json};
use tiergate::accounting::access_log::line::FIELDS;

/// Takes a line apart, checks the form of what cannot be foretold, and puts a name in its place.
pub fn normalised(line: &str) -> Value {
    let mut record: Map<String, Value> = serde_json::from_str(line).expect("a line is one object");
    assert_fields(line, &record);
    let id = uuid(&record["request_id"]);
    assert_eq!(
        record["event_id"],
        format!("{id}#{}", record["turn"]).as_str()
    );
    uuid(&record["instance"]);
    let time = record["time"].as_str().expect("a time");
    assert!(
        time.parse::<jiff::Timestamp>().is_ok()
            && time.len() == "2026-01-02T03:04:05.678901Z".len(),
        "{time}"
    );
    let revision = record["policy"].as_str().expect("a revision");
    let digits = revision.strip_prefix("sha256:").expect("a digest");
    assert!(digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert!(
        record["duration_ms"]
            .as_f64()
            .is_some_and(|time| time >= 0.0)
    );
    if !record["ttfb_ms"].is_null() {
        assert!(record["ttfb_ms"].as_f64() <= record["duration_ms"].as_f64());
        record["ttfb_ms"] = json!("MS");
    }
    if let Some(id) = record["key_id"].as_str() {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        assert!(id.len() == 8 && id.bytes().all(is_hex), "{id}");
    }
    for (name, stands_for) in [
        ("key_id", "KEY ID"),
        ("event_id", "ID#TURN"),
        ("request_id", "ID"),
        ("instance", "INSTANCE"),
        ("time", "TIME"),
        ("duration_ms", "MS"),
        ("policy", "REVISION"),
    ] {
        record[name] = json!(stands_for);
    }
    Value::Object(record)
}

/// A record with some fields changed; all of them must be fields of it.
pub fn with(mut record: Value, changed: Value) -> Value {
    for (name, value) in changed.as_object().expect("an object of changes") {
        assert!(record.get(name).is_some(), "no field `{name}`");
        record[name] = value.clone();
    }
    record
}

/// All fields are there in their order, and no other.
fn assert_fields(line: &str, record: &Map<String, Value>) {
    let names: Vec<&str> = record.keys().map(String::as_str).collect();
    assert_eq!(names, FIELDS);
    assert!(line.len() < 16 * 1024, "a line of {} bytes", line.len());
}

fn uuid(value: &Value) -> String {
    let text = value.as_str().expect("an id");
    assert_eq!(text.len(), 36, "{text}");
    text.parse::<uuid::Uuid>().expect("a UUID");
    text.to_owned()
}

/// Fails unless the record has these members; of others nothing is said.
pub fn assert_told(record: &Value, told: &Value) {
    for (name, value) in told.as_object().unwrap() {
        assert_eq!(&record[name], value, "{name}");
    }
}
