//! The README against the code: its tables name every key, field, code, metric, command and file, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tiergate::accounting::access_log::line::{FIELDS, OTEL_FIELDS};
use tiergate::codec::error::Cause;
use tiergate::config::Config;

const README: &str = include_str!("../../README.md");
const DEADLINE: Duration = Duration::from_secs(20);

/// The rows of the table whose first column has that heading, in that section, each cell as it is written.
fn table(section: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, text) = README
        .split_once(&format!("\n## {section}\n"))
        .unwrap_or_else(|| panic!("no section `{section}`"));
    let text = text.split("\n## ").next().unwrap();
    let rows: Vec<Vec<String>> = text
        .lines()
        .skip_while(|line| !line.starts_with(&format!("| {heading} |")))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect();
    assert!(!rows.is_empty(), "no table `{heading}` in `{section}`");
    rows
}

fn cells(row: &str) -> Vec<String> {
    row.trim_matches('|')
        .split(" | ")
        .map(|cell| cell.trim().to_owned())
        .collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// The one thing in backticks.
fn name(cell: &str) -> String {
    let names = quoted(cell);
    assert_eq!(names.len(), 1, "one name in `{cell}`");
    names.into_iter().next().unwrap()
}

fn names(section: &str, heading: &str) -> Vec<String> {
    let rows = table(section, heading);
    rows.iter().map(|row| name(&row[0])).collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_log_fields_are_those_of_a_line_in_its_order() {
    assert_eq!(names("Access log", "field"), FIELDS);
}

#[test]
fn the_names_of_opentelemetry_are_those_of_the_code() {
    let rows = table("Access log", "`format: otel`");
    let told: Vec<[String; 2]> = rows
        .iter()
        .map(|row| [name(&row[0]), name(&row[1])])
        .collect();
    let known = OTEL_FIELDS.iter().zip(FIELDS);
    let known: Vec<[String; 2]> = known
        .map(|(otel, field)| [*otel, field].map(str::to_owned))
        .collect();
    assert_eq!(told, known);
}

#[test]
fn the_line_shown_is_one_that_a_reader_of_the_log_would_take() {
    let line = README.lines().find(|line| line.starts_with("{\"schema\""));
    let line: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(line.expect("a line is shown")).unwrap();
    let shown: BTreeSet<&str> = line.keys().map(String::as_str).collect();
    assert_eq!(shown, BTreeSet::from(FIELDS));
    for row in table("Access log", "field") {
        let kinds: Vec<&str> = row[1].split(", ").collect();
        let kind = match &line[&name(&row[0])] {
            serde_json::Value::Null => "null",
            serde_json::Value::Bool(_) => "boolean",
            serde_json::Value::Number(number) if number.is_f64() => "number",
            serde_json::Value::Number(_) => "integer",
            serde_json::Value::String(_) => "string",
            other => panic!("{other}"),
        };
        assert!(kinds.contains(&kind), "{} is {kind}", row[0]);
    }
}

#[test]
fn the_errors_are_those_of_the_code_with_their_status() {
    let told: BTreeSet<(String, String)> = table("Errors", "status")
        .iter()
        .map(|row| (row[0].clone(), name(&row[1])))
        .collect();
    let known = Cause::ALL.map(|cause| (cause.status().to_string(), cause.code().to_owned()));
    assert_eq!(told, BTreeSet::from(known));
}

/// The words that a reader of a file asks for: the first argument of these methods.
fn words_read(source: &str) -> BTreeSet<String> {
    const METHODS: [&str; 12] = [
        ".take(\"",
        ".take_entry(\"",
        ".required(\"",
        ".optional(\"",
        ".optional_entry(\"",
        ".choice(\"",
        ".timeout(\"",
        ".duration(\"",
        ".size(\"",
        ".integer(\"",
        ".boolean(\"",
        " rate(\"",
    ];
    let code = fs::read_to_string(root().join(source)).unwrap();
    let code = code.split("#[cfg(test)]").next().unwrap();
    let words: BTreeSet<String> = METHODS
        .iter()
        .flat_map(|method| code.split(method).skip(1))
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    assert!(words.len() > 5, "{source} reads {words:?}");
    words
}

fn words_told(section: &str) -> BTreeSet<String> {
    let last = |key: &String| {
        let word = key.rsplit('.').find(|word| *word != "*");
        word.unwrap().to_owned()
    };
    let all = names(section, "key");
    let parents = all
        .iter()
        .flat_map(|key| key.split('.'))
        .filter(|word| *word != "*");
    let parents: BTreeSet<String> = parents.map(str::to_owned).collect();
    all.iter().map(last).chain(parents).collect()
}

#[test]
fn the_configuration_keys_are_those_that_are_read() {
    assert_eq!(
        words_told("Configuration"),
        words_read("src/config/file.rs")
    );
    assert_eq!(words_told("Policy"), words_read("src/policy/file.rs"));
    assert_eq!(words_told("Prices"), words_read("src/accounting/prices.rs"));
}

/// The settings of the sample, those that are commented out too, by their path; an upstream's name is `*`.
fn sample_settings() -> BTreeMap<String, String> {
    let sample = fs::read_to_string(root().join("conf/tiergate.yaml")).unwrap();
    let (mut path, mut settings) = (Vec::<(usize, String)>::new(), BTreeMap::new());
    for line in sample.lines() {
        let setting = match line.trim_start().strip_prefix("# ") {
            Some(off) => off,
            None => line.trim_start(),
        };
        let Some((key, value)) = setting.split_once(':') else {
            continue;
        };
        let of_keys = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let is_key = !key.is_empty() && key.chars().all(of_keys);
        // Of what is commented out, prose has a colon too; a setting has no more than one word behind it.
        if !is_key || (setting != line.trim_start() && value.trim().contains(' ')) {
            continue;
        }
        let depth = line.len() - line.trim_start().len();
        path.retain(|(above, _)| *above < depth);
        let name = if path.last().is_some_and(|(_, above)| above == "upstreams") {
            "*"
        } else {
            key
        };
        path.push((depth, name.to_owned()));
        let words: Vec<&str> = path.iter().map(|(_, word)| word.as_str()).collect();
        settings.insert(words.join("."), value.trim().to_owned());
    }
    settings
}

#[test]
fn the_sample_shows_every_setting_with_the_default_that_is_told() {
    let sample = sample_settings();
    for row in table("Configuration", "key") {
        let key = name(&row[0]);
        if key.starts_with("listen.") {
            // Shown in the sample's words on TLS.
            continue;
        }
        let value = sample
            .get(&key)
            .unwrap_or_else(|| panic!("the sample has no `{key}`"));
        if let [default] = &quoted(&row[2])[..]
            && !value.is_empty()
            && default != "kind"
        {
            assert_eq!(value, default, "{key}");
        }
    }
}

#[test]
fn the_sample_is_what_an_empty_configuration_means() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiergate.yaml");
    let load = |text: &str| {
        fs::write(&path, text).unwrap();
        Config::load(&path).unwrap().0
    };
    let sample = load(&fs::read_to_string(root().join("conf/tiergate.yaml")).unwrap());
    let least =
        load("policy: policy.yaml\nupstreams: {openai: {url: \"https://api.openai.com\"}}\n");
    assert_eq!(sample.listen, least.listen);
    assert_eq!(sample.admin, least.admin);
    assert_eq!(sample.access_log, least.access_log);
    assert_eq!(sample.tier_paths, least.tier_paths);
    assert_eq!(sample.limits, least.limits);
    assert_eq!(sample.server, least.server);
    let without_place = |config: &Config| {
        let upstream = &config.upstreams[0];
        let mut upstream = tiergate::config::Upstream::clone(upstream);
        upstream.place = least.upstreams[0].place;
        upstream
    };
    assert_eq!(without_place(&sample), without_place(&least));
}

#[test]
fn the_presets_of_kinds_are_those_of_the_code() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiergate.yaml");
    for row in table("Configuration", "`kind`") {
        let [kind, served_tier, messages] = [&row[0], &row[1], &row[2]].map(|cell| name(cell));
        let load = |more: &str| {
            let upstream = format!("{{url: \"http://h\", kind: {kind}{more}}}");
            fs::write(
                &path,
                format!("policy: p.yaml\nupstreams: {{u: {upstream}}}\n"),
            )
            .unwrap();
            Config::load(&path).unwrap().0.upstreams[0].clone()
        };
        let spelled = load(&format!(
            ", served_tier: {served_tier}, messages: {messages}"
        ));
        assert_eq!(load(""), spelled, "{kind}");
    }
    assert_eq!(table("Configuration", "`kind`").len(), 4);
}

#[test]
fn the_make_targets_are_those_of_the_makefile() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let phony = makefile.lines().find_map(|line| {
        let names = line.strip_prefix(".PHONY:")?;
        Some(names.split_whitespace().filter(|name| *name != "tools"))
    });
    let targets: BTreeSet<String> = phony.unwrap().map(|name| format!("make {name}")).collect();
    let told: BTreeSet<String> = names("Testing", "target").into_iter().collect();
    assert_eq!(told, targets);
    for command in shell_commands().filter(|command| command.starts_with("make ")) {
        assert!(targets.contains(&command), "`{command}` is no target");
    }
}

#[test]
fn the_fuzz_targets_are_those_of_the_folder_and_have_seeds() {
    let files = |folder: &str| {
        let entries = fs::read_dir(root().join("fuzz").join(folder)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let stems = paths.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
        stems.collect::<BTreeSet<String>>()
    };
    let told: BTreeSet<String> = names("Testing", "fuzz target").into_iter().collect();
    for folder in ["fuzz_targets", "seeds", "dictionaries"] {
        assert_eq!(told, files(folder), "{folder}");
    }
}

#[test]
fn fuzzing_stands_on_the_versions_of_the_program() {
    let read = |file: &str| fs::read_to_string(root().join(file)).unwrap();
    let dependencies = |file: &str| {
        let file = read(file);
        let (_, lines) = file.split_once("\n[dependencies]\n").unwrap();
        let lines = lines.lines().take_while(|line| !line.starts_with('['));
        let names = lines.filter_map(|line| line.split_once(" = "));
        names
            .map(|(name, _)| name.to_owned())
            .collect::<BTreeSet<_>>()
    };
    let versions = |file: &str, name: &str| {
        let file = read(file);
        let begin = format!("\nname = \"{name}\"\nversion = ");
        let versions = file.split(&begin).skip(1);
        let lines = versions.map(|rest| rest.lines().next().unwrap().to_owned());
        lines.collect::<BTreeSet<_>>()
    };
    let fuzzing = dependencies("fuzz/Cargo.toml");
    let program = dependencies("Cargo.toml");
    let shared: Vec<&String> = fuzzing.intersection(&program).collect();
    assert!(shared.len() > 10);
    for name in shared {
        let (fuzzed, used) = (
            versions("fuzz/Cargo.lock", name),
            versions("Cargo.lock", name),
        );
        assert!(fuzzed.is_subset(&used), "{name}");
    }
}

/// The commands of the shell blocks, without their comments.
fn shell_commands() -> impl Iterator<Item = String> {
    let blocks = README.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
    lines.map(|line| line.split('#').next().unwrap().trim().to_owned())
}

#[test]
fn the_commands_are_those_of_the_program() {
    let help = Command::new(env!("CARGO_BIN_EXE_tiergate"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let known: BTreeSet<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // What is indented more goes on with a description.
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !["", "help"].contains(name))
        .collect();
    let told = names("Commands", "command");
    let told: BTreeSet<&str> = told
        .iter()
        .map(|command| command.split(' ').nth(1).unwrap())
        .collect();
    assert_eq!(told, known);
}

#[test]
fn the_map_has_every_file_of_the_source_and_no_other() {
    let mut files = BTreeSet::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let path = path.strip_prefix(root()).unwrap();
                files.insert(path.display().to_string());
            }
        }
    }
    let rows = table("Map of the source", "file");
    let told = rows
        .iter()
        .filter(|row| row[0].starts_with('`'))
        .map(|row| name(&row[0]));
    assert_eq!(told.collect::<BTreeSet<_>>(), files);
}

/// The numbered sentences behind "What always holds:", in one line each.
fn invariants(text: &str) -> Vec<String> {
    let (_, text) = text.split_once("What always holds:").unwrap();
    let words = text.split_whitespace().filter(|word| *word != "//!");
    let text = words.collect::<Vec<_>>().join(" ");
    let text = text.split(" ## ").next().unwrap();
    let text = text.split(" In reading order").next().unwrap();
    (1..=6)
        .map(|number| {
            let (_, from) = text.split_once(&format!("{number}. ")).unwrap();
            let to = from.split(&format!(" {}. ", number + 1)).next().unwrap();
            to.to_owned()
        })
        .collect()
}

#[test]
fn the_invariants_are_those_of_the_library() {
    assert_eq!(
        invariants(README),
        invariants(include_str!("../../src/lib.rs"))
    );
}

#[test]
fn every_promise_names_tests_that_exist() {
    let mut folders = vec![root().join("tests"), root().join("src")];
    let mut code = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                code += &fs::read_to_string(path).unwrap();
            }
        }
    }
    for row in table("Threat model", "promise") {
        let names = quoted(&row[1]);
        assert!(!names.is_empty(), "{row:?}");
        for name in names {
            let found = code.contains(&format!("#[test]\nfn {name}() {{"));
            assert!(found, "there is no test `{name}`");
        }
    }
}

#[test]
fn every_link_to_a_file_leads_somewhere() {
    let targets = README
        .split("](")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap());
    let files: Vec<&str> = targets
        .filter(|target| !target.starts_with("http") && !target.starts_with('#'))
        .collect();
    assert!(files.len() > 5);
    for file in files {
        assert!(root().join(file).exists(), "{file}");
    }
}

#[test]
fn the_metrics_are_those_of_the_catalogue() {
    let known: BTreeSet<String> = tiergate::accounting::metrics::CATALOGUE
        .iter()
        .map(|metric| metric.name.to_owned())
        .collect();
    let told: BTreeSet<String> = names("Operation", "metric").into_iter().collect();
    assert_eq!(told, known);
}

#[test]
fn the_metrics_have_the_types_and_labels_that_are_told() {
    let proxy = Proxy::start();
    proxy.get(proxy.listen, "/v1/models");
    let text = proxy.get(proxy.admin, "/metrics");
    let rows: BTreeMap<String, Vec<String>> = table("Operation", "metric")
        .into_iter()
        .map(|row| (name(&row[0]), row))
        .collect();
    let mut seen = 0;
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert_eq!(rows[name][1], kind, "{name}");
            seen += 1;
        } else if let Some((sample, _)) = line.split_once(' ').filter(|_| !line.starts_with('#')) {
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let suffixes = ["_bucket", "_sum", "_count"];
            let family = suffixes
                .iter()
                .find_map(|suffix| {
                    name.strip_suffix(suffix)
                        .filter(|name| rows.contains_key(*name))
                })
                .unwrap_or(name);
            let labels: BTreeSet<String> = labels
                .trim_end_matches('}')
                .split("\",")
                .filter_map(|label| label.split_once('='))
                .map(|(label, _)| label.to_owned())
                .filter(|label| label != "le")
                .collect();
            assert_eq!(
                labels,
                quoted(&rows[family][2]).into_iter().collect(),
                "{name}"
            );
        }
    }
    assert!(seen >= 10, "{text}");
}

/// The lines of the text block that begins with these words.
fn shown(beginning: &str) -> Vec<&'static str> {
    let block = README
        .split("```text\n")
        .find(|block| block.starts_with(beginning));
    let block = block.unwrap_or_else(|| panic!("nothing shown begins with `{beginning}`"));
    let lines = block.split("```").next().unwrap().lines();
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn what_the_demo_is_shown_to_print_is_what_it_prints() {
    let demo = Command::new(env!("CARGO_BIN_EXE_tiergate"))
        .arg("demo")
        .output()
        .unwrap();
    let printed = String::from_utf8(demo.stdout).unwrap();
    for line in shown("1  alice") {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line}\nin\n{printed}"
        );
    }
}

#[test]
fn the_quick_start_files_do_what_is_shown() {
    let blocks: Vec<&str> = README
        .split("```yaml\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .collect();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiergate.yaml"), blocks[0]).unwrap();
    fs::write(folder.path().join("policy.yaml"), blocks[1]).unwrap();
    let check = |folder: &Path| {
        Command::new(env!("CARGO_BIN_EXE_tiergate"))
            .args(["check", "--config", "tiergate.yaml"])
            .current_dir(folder)
            .output()
            .unwrap()
    };
    let good = check(folder.path());
    assert_eq!(
        (good.status.code(), &good.stdout[..]),
        (Some(0), &b""[..]),
        "{good:?}"
    );
    let explain = Command::new(env!("CARGO_BIN_EXE_tiergate"))
        .args(["explain", "--config", "tiergate.yaml", "--key", "sk-demo-1"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let explained = String::from_utf8(explain.stdout).unwrap();
    let explained: Vec<&str> = explained.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(explained, shown("POST /v1/responses"));

    let digest = tiergate::policy::hash_key(b"sk-demo-1");
    assert!(
        blocks[1].contains(&digest),
        "the digest of the quick start's key"
    );

    let misspelt = blocks[1].replace("group: codex-fast", "group: codex-fats");
    fs::write(folder.path().join("policy.yaml"), misspelt).unwrap();
    let bad = check(folder.path());
    let told = String::from_utf8(bad.stdout).unwrap();
    assert_eq!(bad.status.code(), Some(78));
    assert!(
        README.contains(told.trim()),
        "the README shows another mistake than {told}"
    );
}

/// The binary with a configuration of its own, on free ports; killed when dropped.
struct Proxy {
    process: Child,
    listen: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Proxy {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [listen, admin, upstream] = free_ports();
        let config = format!(
            "listen: {listen}\nadmin: {admin}\npolicy: policy.yaml\n\
             upstreams: {{u: {{url: 'http://{upstream}'}}}}\naccess_log: {{path: access.log}}\n"
        );
        fs::write(folder.path().join("tiergate.yaml"), config).unwrap();
        fs::write(
            folder.path().join("policy.yaml"),
            "version: 1\ngroups: {g: {platform: openai}}\nkeys: {sk-1: g}\n",
        )
        .unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_tiergate"))
            .arg("run")
            .arg("--config")
            .arg(folder.path().join("tiergate.yaml"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            listen,
            admin,
            _folder: folder,
        }
    }

    /// The whole answer, once the proxy listens.
    fn get(&self, address: SocketAddr, path: &str) -> String {
        let end = Instant::now() + DEADLINE;
        let mut socket = loop {
            match TcpStream::connect(address) {
                Ok(socket) => break socket,
                Err(why) => assert!(Instant::now() < end, "the proxy does not listen: {why}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer sk-1\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
        body.to_owned()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Different ones: all are bound before any is let go.
fn free_ports<const N: usize>() -> [SocketAddr; N] {
    let bound = std::array::from_fn::<_, N, _>(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    bound.each_ref().map(|socket| socket.local_addr().unwrap())
}
