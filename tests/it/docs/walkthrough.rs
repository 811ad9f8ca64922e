//! What is shown is what happens: YAML blocks pass `check`, and the quick start goes as it is told.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Map, Value};

use super::page::{blocks, pages};
use super::{read, root};
use crate::support::client::Client;
use crate::support::command::{Running, command, run};
use crate::support::tls::certificates;
use crate::support::upstream::Reply;
use crate::support::{eventually, proxy, upstream};

/// Different ones: all are bound before any is let go.
fn free_ports<const N: usize>() -> [SocketAddr; N] {
    let bound = std::array::from_fn::<_, N, _>(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    bound.each_ref().map(|socket| socket.local_addr().unwrap())
}

/// Whatever the blocks name besides themselves.
fn write_companions(folder: &Path, first_upstream: &str) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    write(
        "policy.yaml",
        &format!(
            "version: 1\ngroups: {{g: {{platform: other, upstream: {first_upstream}}}}}\nkeys: {{sk-1: g}}\n"
        ),
    );
    write(
        "prices.yaml",
        "version: 1\nprices: [{models: [m], tiers: {default: {input: 1}}}]\n",
    );
    write("cert.pem", &certificates().certificate);
    write("key.pem", &certificates().key);
    for key in ["openai.key", "codex.key", "redis.key"] {
        write(key, "sk-of-the-upstream\n");
    }
}

/// A configuration that this machine can run: on free ports, with the log in its folder.
fn on_this_machine(block: &str) -> String {
    let [plain, tls, admin] = free_ports();
    let block = block
        .replace("127.0.0.1:8080", &plain.to_string())
        .replace("0.0.0.0:8443", &tls.to_string())
        .replace("/var/log/tiergate/", "");
    let listen = match block.contains("listen:") {
        true => String::new(),
        false => format!("listen: {plain}\n"),
    };
    format!("admin: {admin}\n{listen}{block}")
}

#[test]
fn every_yaml_block_passes_check() {
    let mut checked = 0;
    for page in pages() {
        for block in blocks(&page, "yaml") {
            let folder = tempfile::tempdir().unwrap();
            let upstreams = block.split("upstreams:\n").nth(1).unwrap_or("  main:");
            write_companions(
                folder.path(),
                upstreams.trim_start().split(':').next().unwrap(),
            );
            let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
            let minimal = "policy: policy.yaml\nprices: prices.yaml\nupstreams: {main: {url: \"http://127.0.0.1:1\"}}\n";
            write("tiergate.yaml", &on_this_machine(minimal));
            match () {
                () if block.contains("upstreams:") => {
                    write("tiergate.yaml", &on_this_machine(&block))
                }
                () if block.contains("groups:") => write("policy.yaml", &block),
                () if block.contains("tiers:") => write("prices.yaml", &block),
                () => panic!("{page} has a block of no known file:\n{block}"),
            }
            let said = run(folder.path(), &["check", "--config", "tiergate.yaml"]);
            let text = String::from_utf8_lossy(&said.stdout);
            assert_eq!(said.status.code(), Some(0), "{page}: {text}\n{block}");
            checked += 1;
        }
    }
    assert!(checked >= 5, "{checked}");
}

/// The lines of the text block of that page that begins with these words.
fn shown(page: &str, beginning: &str) -> Vec<String> {
    let blocks = blocks(page, "text");
    let block = blocks.iter().find(|block| block.starts_with(beginning));
    let block = block.unwrap_or_else(|| panic!("nothing shown begins with `{beginning}`"));
    let lines = block.lines().filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

#[test]
fn what_the_demo_is_shown_to_print_is_what_it_prints() {
    let demo = run(root(), &["demo"]);
    let printed = String::from_utf8(demo.stdout).unwrap();
    for line in shown("README.md", "1  alice") {
        let found = printed.lines().any(|printed| printed == line);
        assert!(found, "{line}\nin\n{printed}");
    }
}

#[test]
fn explain_says_of_the_policy_what_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    write_companions(folder.path(), "openai");
    let policy = &blocks("docs/policy.md", "yaml")[0];
    fs::write(folder.path().join("policy.yaml"), policy).unwrap();
    let config = "policy: policy.yaml\nupstreams: {openai: {url: \"https://api.openai.com\"}}\n";
    fs::write(folder.path().join("tiergate.yaml"), config).unwrap();
    let arguments = ["explain", "--config", "tiergate.yaml", "--key", "sk-demo-1"];
    let explained = run(folder.path(), &arguments);
    let explained = String::from_utf8(explained.stdout).unwrap();
    // Which column of the line decides may differ: that of the key, or of its value.
    let without_column = |line: &str| match line.rsplit_once(':') {
        Some((line, column)) if column.parse::<u32>().is_ok() => line.to_owned(),
        _ => line.to_owned(),
    };
    let explained: Vec<String> = explained.lines().map(without_column).collect();
    for line in shown("docs/policy.md", "POST /v1/responses") {
        let found = explained.contains(&without_column(&line));
        assert!(found, "{line}\nin\n{explained:#?}");
    }
}

/// A request that goes wrong, as a section of docs/troubleshooting.md tells: what the upstream does, who asks for what.
fn symptom(reply: Reply, key: &str, path: &str, body: &str) -> Value {
    let server = upstream::script([reply]).run();
    let proxy = proxy::new()
        .upstream_with("main", &server, "response_timeout: 300ms")
        .run();
    proxy.client(key).post(path, body);
    proxy.access_log(1).remove(0)
}

#[test]
fn the_lines_of_troubleshooting_are_those_of_their_symptoms() {
    let downgraded = r#"{"object":"response","status":"completed","service_tier":"default","usage":{"input_tokens":1,"output_tokens":1}}"#;
    let chat =
        r#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"hi"}}]}"#;
    let chat = [format!("data: {chat}\n\n"), "data: [DONE]\n\n".to_owned()];
    let chat: Vec<&str> = chat.iter().map(String::as_str).collect();
    let cut = ["event: response.created\ndata: {\"type\":\"response.created\"}\n\n"];
    let json = |body: &str| upstream::reply(200).json(body);
    let responses = "/v1/responses";
    let lines = [
        symptom(json("{}"), "sk-unknown", responses, "{}"),
        symptom(json("{}"), "sk-fast", responses, "{\"model\":"),
        symptom(Reply::default().close(), "sk-fast", responses, "{}"),
        symptom(upstream::silence(), "sk-fast", responses, "{}"),
        symptom(upstream::reply(200).sse(&cut), "sk-fast", responses, "{}"),
        symptom(json(downgraded), "sk-fast", responses, "{}"),
        symptom(
            upstream::reply(200).sse(&chat),
            "sk-plain",
            "/v1/chat/completions",
            r#"{"model":"m","stream":true,"messages":[]}"#,
        ),
    ];
    let shown = blocks("docs/troubleshooting.md", "json").join("");
    let shown: Vec<&str> = shown.lines().collect();
    assert_eq!(shown.len(), lines.len());
    for (shown, line) in shown.iter().zip(lines) {
        let fields: Map<String, Value> = serde_json::from_str(shown).unwrap();
        for (field, value) in fields {
            assert_eq!(line[&field], value, "{field} of {shown}");
        }
    }
}

/// The proxy of the quick start.
fn start(folder: &Path, words: &str, address: SocketAddr) -> Running {
    let arguments = words.trim_end_matches(" &").split(' ').skip(1);
    let child = command(folder, &arguments.collect::<Vec<_>>())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the proxy listens", || TcpStream::connect(address).ok());
    Running(child)
}

#[test]
fn the_quick_start_leads_to_the_line_that_is_shown() {
    let yaml = blocks("README.md", "yaml");
    let commands = blocks("README.md", "sh").pop().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let server = upstream::json(r#"{"object":"response","status":"completed"}"#).run_plain();
    let [address, admin] = free_ports();
    let config = yaml[0]
        .replace(
            "https://api.openai.com",
            &format!("http://{}", server.address),
        )
        .replace("127.0.0.1:8080", &address.to_string());
    fs::write(
        folder.path().join("tiergate.yaml"),
        format!("{config}admin: {admin}\n"),
    )
    .unwrap();
    fs::write(folder.path().join("policy.yaml"), &yaml[1]).unwrap();

    let program = Path::new(env!("CARGO_BIN_EXE_tiergate"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut running = None;
    for command in commands.replace("\\\n", "").lines() {
        let command = command.split(" #").next().unwrap().trim();
        if command.starts_with("tiergate run") {
            running = Some(start(folder.path(), command, address));
        } else if command.starts_with("curl") {
            let (_, body) = command.split_once("-d '").unwrap();
            let client = Client::new(address).header("authorization", "Bearer sk-demo-1");
            let answer = client.post("/v1/responses", body.trim_end_matches('\''));
            assert_eq!(answer.status, 200, "{answer:?}");
        } else if !command.starts_with("tail") {
            let done = Command::new("sh")
                .args(["-ec", command])
                .current_dir(folder.path())
                .envs([("PATH", path.as_str()), ("OPENAI_API_KEY", "sk-upstream")])
                .output()
                .unwrap();
            assert!(done.status.success(), "{command}: {done:?}");
            if command.ends_with("hash-key") {
                let digest = String::from_utf8(done.stdout).unwrap();
                assert!(yaml[1].contains(digest.trim()), "{digest}");
            } else {
                // Not even a warning.
                assert_eq!(String::from_utf8_lossy(&done.stdout), "", "{command}");
            }
        }
    }
    assert!(running.is_some() && server.request().head.contains("Bearer sk-upstream"));

    let line = eventually("the line is written", || {
        let log = fs::read_to_string(folder.path().join("access.log")).ok()?;
        serde_json::from_str::<Value>(log.lines().last()?).ok()
    });
    let shown: Map<String, Value> = serde_json::from_str(&blocks("README.md", "json")[0]).unwrap();
    for (field, value) in shown {
        assert_eq!(line[&field], value, "{field}");
    }
}

#[test]
fn the_mistake_shown_is_what_check_says_of_it() {
    let folder = tempfile::tempdir().unwrap();
    write_companions(folder.path(), "openai");
    let yaml = blocks("README.md", "yaml");
    fs::write(
        folder.path().join("tiergate.yaml"),
        on_this_machine(&yaml[0]),
    )
    .unwrap();
    let misspelt = yaml[1].replace("group: fast", "group: fats");
    fs::write(folder.path().join("policy.yaml"), misspelt).unwrap();
    let said = run(folder.path(), &["check", "--config", "tiergate.yaml"]);
    assert_eq!(said.status.code(), Some(78));
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(read("README.md").contains(said.trim()), "{said}");
}

/// What stands between backticks in the text, in one line each.
fn spans(text: &str) -> impl Iterator<Item = String> {
    let spans = text.split('`').skip(1).step_by(2);
    spans.map(|span| span.replace('\n', " "))
}

#[test]
fn the_reports_that_are_to_be_made_in_trouble_can_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let line = &blocks("docs/access-log.md", "json")[0];
    fs::write(folder.path().join("access.log"), line).unwrap();
    let operations = read("docs/operations.md");
    let (_, runbook) = operations.split_once("\n## Runbook\n").unwrap();
    let symptoms = read("docs/troubleshooting.md");
    let (_, symptoms) = symptoms.split_once("\n## The client gets").unwrap();
    let mut made = 0;
    for span in spans(runbook).chain(spans(symptoms)) {
        if let Some(report) = span.strip_prefix("tiergate report ") {
            let words: Vec<&str> = ["report"].into_iter().chain(report.split(' ')).collect();
            let done = run(folder.path(), &words);
            assert!(done.status.success(), "{span}: {done:?}");
            made += 1;
        } else if span.starts_with("jq ") {
            let fields = span
                .split(['(', '[', ' ', ',', ']'])
                .filter_map(|word| word.strip_prefix('.'));
            for field in fields {
                assert!(line.contains(&format!("\"{field}\":")), "{field} of {span}");
            }
        }
    }
    assert!(made > 5, "{made}");
}

/// Folders of the system below `root`, with those that systemd makes, and programs that do nothing in the place of its own.
fn pretend_system(root: &Path) {
    let folders = [
        "bin",
        "usr/bin",
        "usr/lib/systemd/system",
        "usr/lib/sysusers.d",
        "usr/lib/tmpfiles.d",
        "etc/logrotate.d",
        "run/tiergate",
        "var/log/tiergate",
    ];
    for folder in folders {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for program in ["systemd-sysusers", "systemd-tmpfiles", "systemctl"] {
        symlink("/bin/true", root.join("bin").join(program)).unwrap();
    }
}

#[test]
fn an_installation_without_a_package_is_one_that_the_unit_can_start() {
    let commands = blocks("docs/install.md", "sh").pop().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let system = folder.path().join("system");
    pretend_system(&system);
    symlink(root().join("systemd"), folder.path().join("systemd")).unwrap();
    let program = folder.path().join("tiergate");
    symlink(env!("CARGO_BIN_EXE_tiergate"), program).unwrap();
    let below = system.display();
    let commands = ["usr", "etc", "var", "run"]
        .iter()
        .fold(commands, |text, top| {
            text.replace(&format!(" /{top}/"), &format!(" {below}/{top}/"))
        });
    let done = Command::new("sh")
        .args(["-ec", &commands])
        .current_dir(folder.path())
        .env("PATH", format!("{below}/bin:{below}/usr/bin:/usr/bin:/bin"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");

    let unit = read("systemd/tiergate.service");
    let started = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/"));
    let (program, arguments) = started.unwrap().split_once(' ').unwrap();
    assert!(system.join(program).exists(), "{program}");
    let configuration = arguments.split_once(" /").unwrap().1;
    let checked = run(&system, &["check", "--config", configuration]);
    assert!(checked.status.success(), "{checked:?}");
    let configuration = fs::read_to_string(system.join(configuration)).unwrap();
    for path in ["/var/log/tiergate/access.log", "/run/tiergate/upgrade.sock"] {
        assert!(
            configuration.contains(&format!(" {below}{path}")),
            "{configuration}"
        );
    }
}

/// The command of a block that begins so, with the lines that it goes on in.
fn command_of(block: &str, beginning: &str) -> String {
    let lines = block
        .lines()
        .skip_while(|line| !line.starts_with(beginning));
    let mut goes_on = true;
    let lines = lines.take_while(|line| std::mem::replace(&mut goes_on, line.ends_with('\\')));
    let command: String = lines.map(|line| line.trim_end_matches('\\')).collect();
    assert!(!command.is_empty(), "no `{beginning}` in {block}");
    command
}

#[test]
fn the_upstreams_key_is_put_into_the_configuration_of_the_package() {
    let [_, _, block, ..] = &blocks("docs/install.md", "sh")[..] else {
        panic!("the third block has the upstream's key");
    };
    let folder = tempfile::tempdir().unwrap();
    for name in ["tiergate.yaml", "policy.yaml"] {
        let shipped = root().join("systemd/debian").join(name);
        fs::copy(shipped, folder.path().join(name)).unwrap();
    }
    let sed = command_of(block, "sed ").replace("/etc/tiergate/", "");
    let done = Command::new("sh")
        .args(["-ec", &sed])
        .current_dir(folder.path())
        .status();
    assert!(done.unwrap().success(), "{sed}");
    let shipped = read("systemd/debian/tiergate.yaml");
    let edited = fs::read_to_string(folder.path().join("tiergate.yaml")).unwrap();
    let changed = shipped.lines().zip(edited.lines());
    let changed: Vec<_> = changed.filter(|(before, after)| before != after).collect();
    // What the unit's LoadCredential of that name is for.
    let key = "    credential_file: /run/credentials/tiergate.service/openai";
    assert_eq!(changed, [("    credential_file: null", key)]);
    assert!(block.contains("\nLoadCredential=openai:"), "{block}");

    let [plain, admin] = free_ports();
    let here = edited
        .replace("127.0.0.1:8080", &plain.to_string())
        .replace("127.0.0.1:9464", &admin.to_string());
    fs::write(folder.path().join("tiergate.yaml"), here).unwrap();
    let arguments = ["check", "--without-secrets", "--config", "tiergate.yaml"];
    let checked = run(folder.path(), &arguments);
    assert!(checked.status.success(), "{checked:?}");
}

/// The service may write nowhere but in the folders that systemd makes for it.
#[test]
fn the_unit_has_the_folders_that_the_samples_write_to() {
    let unit = read("systemd/tiergate.service");
    let samples = ["conf/tiergate.yaml", "systemd/debian/tiergate.yaml"].map(read);
    for (folder, directive) in [
        ("/var/log/tiergate/", "LogsDirectory"),
        ("/var/lib/tiergate/", "StateDirectory"),
        ("/run/tiergate/", "RuntimeDirectory"),
    ] {
        assert!(
            samples.iter().all(|sample| sample.contains(folder)),
            "{folder}"
        );
        assert!(
            unit.contains(&format!("\n{directive}=tiergate\n")),
            "{directive}"
        );
    }
}
