//! The reference tables: each has what the program has, and no more.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tiergate::accounting::access_log::line::{FIELDS, OTEL_FIELDS};
use tiergate::codec::error::Cause;

use super::page::{blocks, headings, name, names, pages, quoted, table};
use super::{assert_same, read, root};
use crate::support::command::run;
use crate::support::{proxy, upstream};

const LOG: &str = "docs/access-log.md";
const METRICS: &str = "docs/metrics.md";

/// An answer that says that another tier was served than the one that is forced.
const DOWNGRADED: &str = r#"{"object":"response","status":"completed","service_tier":"default","usage":{"input_tokens":1,"output_tokens":1}}"#;

fn set<S: Into<String>>(names: impl IntoIterator<Item = S>) -> BTreeSet<String> {
    names.into_iter().map(Into::into).collect()
}

#[test]
fn the_log_fields_are_those_of_a_line() {
    assert_same("fields", &set(names(LOG, "field")), &set(FIELDS));
}

#[test]
fn the_columns_for_clickhouse_are_the_fields_of_a_line() {
    let file = read("conf/clickhouse.sql");
    let (_, columns) = file.split_once("tiergate.access\n(\n").unwrap();
    let (columns, _) = columns.split_once("\n)\n").unwrap();
    let columns = columns.lines().map(str::trim_start);
    let columns = columns.filter(|line| !line.starts_with("--"));
    let columns = columns.map(|line| line.split(' ').next().unwrap().trim_matches('`'));
    assert_same("columns", &set(columns), &set(FIELDS));
}

#[test]
fn the_names_of_opentelemetry_are_those_of_the_program() {
    let documented = table(LOG, "`format: otel`");
    let documented: BTreeMap<String, String> = documented
        .iter()
        .map(|row| (name(&row[1]), name(&row[0])))
        .collect();
    assert_same("fields", &set(documented.keys().cloned()), &set(FIELDS));
    for (field, otel) in FIELDS.iter().zip(OTEL_FIELDS) {
        if let Some(documented) = documented.get(*field) {
            assert_eq!(documented, otel, "{field}");
        }
    }
}

#[test]
fn the_line_shown_has_the_documented_fields_of_their_types() {
    let shown: Map<String, Value> = serde_json::from_str(&blocks(LOG, "json")[0]).unwrap();
    assert_eq!(set(shown.keys().cloned()), set(names(LOG, "field")));
    for row in table(LOG, "field") {
        let kinds: Vec<&str> = row[1].split(", ").collect();
        let kind = match &shown[&name(&row[0])] {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            other => panic!("{other}"),
        };
        assert!(kinds.contains(&kind), "{} is {kind}", row[0]);
    }
}

#[test]
fn the_errors_are_those_of_the_program_with_their_status() {
    let documented: BTreeMap<String, String> = table("docs/errors.md", "status")
        .iter()
        .map(|row| (name(&row[1]), row[0].clone()))
        .collect();
    let known = Cause::ALL.map(|cause| (cause.code().to_owned(), cause.status().to_string()));
    assert_same(
        "errors",
        &set(documented.keys().cloned()),
        &set(known.iter().map(|(code, _)| code.clone())),
    );
    for (code, status) in known {
        assert_eq!(documented[&code], status, "{code}");
    }
}

#[test]
fn every_error_has_its_place_in_troubleshooting() {
    let text = read("docs/troubleshooting.md");
    for row in table("docs/errors.md", "status") {
        let code = name(&row[1]);
        assert!(text.contains(&format!("`{code}`")), "{code}");
    }
}

/// A value of JSON, which is YAML too, into which a setting is put at its path.
struct Probe {
    value: Value,
    /// The paths at which there is a list of maps.
    lists: &'static [&'static str],
}

impl Probe {
    fn put(&mut self, path: &str, setting: &Value) {
        let words: Vec<&str> = path.split('.').collect();
        let (mut here, mut at) = (&mut self.value, String::new());
        for (place, word) in words.iter().enumerate() {
            if self.lists.contains(&at.as_str()) {
                here = first_of_list(here);
                if *word == "*" {
                    at.push_str(".*");
                    continue;
                }
            }
            let map = as_map(here);
            let key = match *word {
                "*" => map.keys().next().cloned().unwrap_or("x".to_owned()),
                word => word.to_owned(),
            };
            here = map.entry(key).or_insert(Value::Null);
            if place == words.len() - 1 {
                *here = setting.clone();
            }
            at = match at.as_str() {
                "" => (*word).to_owned(),
                at => format!("{at}.{word}"),
            };
        }
    }
}

fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().unwrap()
}

fn first_of_list(value: &mut Value) -> &mut Value {
    if !value.is_array() {
        *value = Value::Array(vec![Value::Object(Map::new())]);
    }
    &mut value.as_array_mut().unwrap()[0]
}

/// What `check` says of a file that has this setting.
fn said_of(file: &str, path: &str, setting: &Value) -> String {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Value| {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap()
    };
    let mut files = BTreeMap::from([
        (
            "tiergate.yaml",
            serde_json::json!({"policy": "policy.yaml", "prices": "prices.yaml",
                "upstreams": {"u": {"url": "http://127.0.0.1:1"}}}),
        ),
        (
            "policy.yaml",
            serde_json::json!({"version": 1, "groups": {"g": {"platform": "openai"}}, "keys": {"sk-1": "g"}}),
        ),
        (
            "prices.yaml",
            serde_json::json!({"version": 1, "prices": [{"models": ["m"], "tiers": {"default": {"input": 1}}}]}),
        ),
    ]);
    let lists: &[&str] = match file {
        "tiergate.yaml" => &["listen", "upstreams.*.models"],
        "prices.yaml" => &["prices"],
        _ => &[],
    };
    let value = files.remove(file).expect("one of these");
    let mut probe = Probe { value, lists };
    probe.put(path, setting);
    files.insert(file, probe.value);
    files.iter().for_each(|(name, value)| write(name, value));
    let said = run(folder.path(), &["check", "--config", "tiergate.yaml"]);
    String::from_utf8(said.stdout).unwrap()
}

const FILES: [(&str, &str); 3] = [
    ("docs/configuration.md", "tiergate.yaml"),
    ("docs/policy.md", "policy.yaml"),
    ("docs/prices.md", "prices.yaml"),
];

#[test]
fn the_program_knows_every_setting() {
    // Of a kind that most settings do not take.
    let value = serde_json::json!([[]]);
    for (page, file) in FILES {
        let unknown = said_of(file, "no_such_setting", &value);
        assert!(unknown.contains("unknown"), "{file}: {unknown}");
        for setting in names(page, "key") {
            let said = said_of(file, &setting, &value);
            assert!(!said.contains("unknown"), "{setting}: {said}");
        }
    }
}

/// The JSON Schema of that file.
fn schema_of(file: &str) -> Value {
    let stem = file.trim_end_matches(".yaml");
    let schema = read(&format!("conf/schema/{stem}.schema.json"));
    serde_json::from_str(&schema).unwrap()
}

/// A schema's alternatives, one of which a value has to meet.
fn alternatives<'s>(schema: &'s Value, all: &'s Value) -> Vec<&'s Value> {
    if let Some(reference) = schema["$ref"].as_str() {
        return alternatives(all.pointer(reference.trim_start_matches('#')).unwrap(), all);
    }
    let any = ["anyOf", "oneOf"].iter();
    let any = any.filter_map(|word| schema[word].as_array()).next();
    any.map_or(vec![schema], |any| {
        let any = any.iter().flat_map(|schema| alternatives(schema, all));
        any.collect()
    })
}

/// Whether the schema takes `null` at that path.
fn takes_null(all: &Value, path: &str) -> bool {
    let mut here = alternatives(all, all);
    for word in path.split('.') {
        let below = here.into_iter().flat_map(|schema| match word {
            "*" => [&schema["additionalProperties"], &schema["items"]],
            word => [
                &schema["properties"][word],
                &schema["items"]["properties"][word],
            ],
        });
        let below = below.filter(|schema| schema.is_object());
        here = below.flat_map(|schema| alternatives(schema, all)).collect();
    }
    assert!(!here.is_empty(), "the schema has no {path}");
    here.into_iter().any(meets_null)
}

/// Whether `null` meets all that a schema says of a value. What it says of strings is met.
fn meets_null(schema: &Value) -> bool {
    let null = Value::from("null");
    let has = |word: &str, wanted: &Value| match schema.get(word) {
        None => true,
        Some(Value::Array(listed)) => listed.contains(wanted),
        Some(one) => one == wanted,
    };
    let is_excluded = schema.get("not").is_some_and(meets_null);
    has("type", &null) && has("enum", &Value::Null) && has("const", &Value::Null) && !is_excluded
}

#[test]
fn the_schemas_take_null_where_the_program_does() {
    for (page, file) in FILES {
        let schema = schema_of(file);
        let documented = names(page, "key");
        let sections = documented.iter().filter_map(|key| key.rsplit_once('.'));
        let sections = sections.map(|(section, _)| section.to_owned());
        let sections = sections.filter(|section| !section.ends_with('*'));
        let settings: BTreeSet<String> = documented.iter().cloned().chain(sections).collect();
        for setting in settings {
            let said = said_of(file, &setting, &Value::Null);
            let is_taken = !said.contains("found nothing");
            assert_eq!(takes_null(&schema, &setting), is_taken, "{setting}: {said}");
        }
    }
}

/// The settings of a JSON Schema by their path, without the names of maps and the places in lists.
fn settings_of(schema: &Value, all: &Value, path: &str, settings: &mut BTreeSet<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = all.pointer(reference.trim_start_matches('#'));
        return settings_of(target.expect(reference), all, path, settings);
    }
    settings.insert(path.to_owned());
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = [path, name].join(".");
        settings_of(schema, all, path.trim_start_matches('.'), settings);
    }
    let nested = ["additionalProperties", "items"].map(|word| &schema[word]);
    let any = ["anyOf", "oneOf", "allOf"].map(|word| schema[word].as_array());
    for schema in nested
        .into_iter()
        .chain(any.into_iter().flatten().flatten())
    {
        if schema.is_object() {
            settings_of(schema, all, path, settings);
        }
    }
}

/// Maps that are described as a whole, and what is below them by the text of their row.
const AS_A_WHOLE: [&str; 2] = ["prices.tiers.long.", "upstreams.headers.set."];

#[test]
fn every_setting_of_the_schemas_is_documented() {
    for (page, file) in FILES {
        let schema = schema_of(file);
        let mut settings = BTreeSet::new();
        settings_of(&schema, &schema, "", &mut settings);
        let is_parent = |path: &str| {
            settings
                .iter()
                .any(|other| other.starts_with(&format!("{path}.")))
        };
        let leaves = settings.iter().filter(|path| !is_parent(path));
        let documented = set(names(page, "key").iter().map(|key| key.replace(".*", "")));
        for leaf in leaves.filter(|path| !["", "$schema"].contains(&path.as_str())) {
            let whole = AS_A_WHOLE.iter().any(|map| leaf.starts_with(map));
            let described = whole || documented.contains(leaf);
            assert!(
                described,
                "{leaf} of {file} is not documented in {page}: {documented:?}"
            );
        }
    }
}

/// The settings of the sample that are not commented out, by their path; an upstream's name is `*`.
fn sample_settings() -> BTreeMap<String, String> {
    let sample = read("conf/tiergate.yaml");
    let (mut path, mut settings) = (Vec::<(usize, String)>::new(), BTreeMap::new());
    for line in sample.lines() {
        let text = line.trim_start();
        let Some((key, value)) = text
            .split_once(':')
            .filter(|_| !text.starts_with(['#', '-']))
        else {
            continue;
        };
        let depth = line.len() - text.len();
        path.retain(|(above, _)| *above < depth);
        let name = match path.last() {
            Some((_, above)) if above == "upstreams" => "*",
            _ => key,
        };
        path.push((depth, name.to_owned()));
        let words: Vec<&str> = path.iter().map(|(_, word)| word.as_str()).collect();
        settings.insert(words.join("."), value.trim().to_owned());
    }
    settings
}

#[test]
fn the_sample_has_the_documented_defaults_and_no_other_setting() {
    let documented: BTreeMap<String, String> = table("docs/configuration.md", "key")
        .into_iter()
        .map(|row| (name(&row[0]), row[2].clone()))
        .collect();
    let sample = sample_settings();
    assert!(sample.len() > 30);
    for (setting, value) in sample {
        let is_parent = documented
            .keys()
            .any(|key| key.starts_with(&format!("{setting}.")));
        let Some(default) = documented.get(&setting) else {
            assert!(is_parent, "{setting} is not documented");
            continue;
        };
        if let [default] = &quoted(default)[..]
            && !value.is_empty()
            && default != "kind"
        {
            assert_eq!(value, *default, "{setting}");
        }
    }
}

#[test]
fn the_presets_of_kinds_are_those_of_the_program() {
    for row in table("docs/configuration.md", "`kind`") {
        let [kind, served_tier, messages, forwarded] =
            [&row[0], &row[1], &row[2], &row[3]].map(|cell| name(cell));
        let server = upstream::json(DOWNGRADED).run();
        let proxy = proxy::new()
            .upstream_with("main", &server, &format!("kind: {kind}"))
            .run();
        let client = proxy
            .client("sk-fast")
            .header("x-forwarded-for", "192.0.2.1");
        client.post("/v1/responses", "{}");
        let billed_by = proxy.access_log(1)[0]["tier_billed_by"].clone();
        let trusted = billed_by == "served";
        assert_eq!(trusted, served_tier == "trusted", "{kind}: {billed_by}");
        let passed = server.request().head.contains("192.0.2.1");
        assert_eq!(passed, forwarded == "pass", "{kind}");

        let answer = client.post("/v1/messages", "{}");
        let sent = server.received().pop().unwrap();
        let asked = match answer.status {
            403 => "off",
            _ if sent.head.contains("fast-mode-2026-02-01") => "tier_and_beta",
            _ => "tier",
        };
        assert_eq!(asked, messages, "{kind}");
    }
}

#[test]
fn the_commands_are_those_of_the_program() {
    let help = run(root(), &["--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    let known: BTreeSet<String> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // What is indented more goes on with a description.
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !["", "help"].contains(name))
        .map(str::to_owned)
        .collect();
    let documented = names("README.md", "command");
    let documented = documented
        .iter()
        .map(|command| command.trim_start_matches("tiergate "));
    assert_same("commands", &set(documented), &known);
}

/// The options of that command which stand in the text.
fn options_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|sign: char| !(sign.is_ascii_lowercase() || sign == '-'));
    let options = words.filter(|word| word.len() > 3 && word.starts_with("--"));
    options.map(str::to_owned).collect()
}

/// The lines of a page that call that command, and the sections that are called after it.
fn told_of(page: &str, command: &str) -> String {
    let text = read(page);
    let mut section = "";
    let lines = text.lines().filter(|line| {
        section = line.strip_prefix("## ").unwrap_or(section);
        let calls = line.contains("tiergate ");
        line.contains(&format!("tiergate {command} ")) || section == command && !calls
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_options_shown_are_those_of_the_commands() {
    for command in names("README.md", "command") {
        let command = command.trim_start_matches("tiergate ");
        let help = run(root(), &[command, "--help"]);
        let help = options_in(&String::from_utf8(help.stdout).unwrap());
        let mut shown = BTreeSet::new();
        for page in pages() {
            shown.append(&mut options_in(&told_of(&page, command)));
        }
        if command == "report" {
            let options = table("docs/report.md", "option");
            shown.append(&mut set(options.iter().flat_map(|row| options_in(&row[0]))));
        }
        let invented: Vec<_> = shown.difference(&help).collect();
        assert!(
            invented.is_empty(),
            "{command}: {invented:?} not in the help: {help:?}"
        );
    }
}

/// Every literal of the catalogue that is a metric's name.
fn catalogue() -> BTreeSet<String> {
    let source = super::files::text_below(&["src/accounting"], |path| {
        path.to_str().unwrap().contains("metrics")
    });
    let prefixes = ["tiergate_", "process_"].into_iter();
    let names = prefixes.flat_map(|prefix| {
        let begin = format!("\"{prefix}");
        let literals = source.split(begin.as_str()).skip(1);
        let ends: Vec<&str> = literals.filter_map(|rest| rest.split('"').next()).collect();
        ends.into_iter().map(move |end| format!("{prefix}{end}"))
    });
    let is_name = |sign: char| sign.is_ascii_lowercase() || sign == '_';
    names.filter(|name| name.chars().all(is_name)).collect()
}

#[test]
fn the_metrics_are_those_of_the_catalogue() {
    assert_same("metrics", &set(names(METRICS, "metric")), &catalogue());
}

#[test]
fn the_metrics_have_the_types_and_labels_that_are_documented() {
    let server = upstream::json(DOWNGRADED).run();
    let proxy = proxy::new().upstream(&server).run();
    proxy.client("sk-fast").post("/v1/responses", "{}");
    let answer = proxy.admin("/metrics");
    let rows: BTreeMap<String, Vec<String>> = table(METRICS, "metric")
        .into_iter()
        .map(|row| (name(&row[0]), row))
        .collect();
    let mut seen = 0;
    for line in answer.text().lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert_eq!(rows[name][1], kind, "{name}");
            seen += 1;
        } else if let Some((sample, _)) = line.split_once(' ').filter(|_| !line.starts_with('#')) {
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|name| rows.contains_key(*name))
                .unwrap_or(name);
            let labels = labels.trim_end_matches('}').split("\",");
            let labels = labels.filter_map(|label| label.split_once('='));
            let labels = labels.map(|(label, _)| label).filter(|name| *name != "le");
            assert_eq!(set(labels), set(quoted(&rows[family][2])), "{name}");
        }
    }
    assert!(seen >= 10, "{answer:?}");
}

#[test]
fn every_alert_of_the_rules_is_in_the_runbook() {
    let documented = headings("docs/operations.md").into_iter();
    let documented = documented.filter(|heading| heading.starts_with("Tiergate"));
    let rules = read("conf/alerts.yml");
    let known = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    assert_same("alerts", &set(documented), &set(known));
}

#[test]
fn the_columns_of_the_report_are_those_that_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("access.log"), "").unwrap();
    let arguments = ["report", "access.log", "--by", "key", "--format", "csv"];
    let written = run(folder.path(), &arguments);
    let written = String::from_utf8(written.stdout).unwrap();
    let known = written.lines().next().unwrap().split(',').skip(1);
    assert_same(
        "columns",
        &set(names("docs/report.md", "column")),
        &set(known),
    );
}
