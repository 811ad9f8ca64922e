//! How fast a report reads and how much memory it takes: `cargo bench --bench report [MEGABYTES]`, on a synthetic log, plain and
//! compressed.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use tiergate::cli::report::table::Format;
use tiergate::cli::report::{Options, run};

fn main() {
    let megabytes = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .next()
        .unwrap_or(200);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = folder.path().join("access.log");
    let lines = write_log(&log, megabytes * 1_000_000);
    let time = |name: &str, log: &Path| {
        let begun = Instant::now();
        report(log.to_owned());
        let seconds = begun.elapsed().as_secs_f64();
        let (speed, peak) = (megabytes as f64 / seconds, peak_memory());
        println!(
            "{name}: {lines} lines in {seconds:.2} s, {speed:.0} MB/s of log, {peak} so far at the most"
        );
    };
    time("plain", &log);
    time("plain", &log);
    time("zst", &zstd(&log));
    time("gz", &gzip(&log));
}

/// Writes lines of the usual length, by forty keys in four groups, and returns how many.
fn write_log(path: &Path, bytes: usize) -> u64 {
    let mut file = BufWriter::new(File::create(path).expect("a new file"));
    let (mut seq, mut written) = (0, 0);
    while written < bytes {
        let line = line(seq);
        file.write_all(line.as_bytes()).expect("room for the log");
        written += line.len();
        seq += 1;
    }
    file.flush().expect("room for the log");
    seq
}

fn line(seq: u64) -> String {
    let (key, group) = (seq * 7 % 40, seq * 7 % 4);
    let tier = if group < 2 { "priority" } else { "default" };
    let (second, microsecond) = (seq / 1000 % 60, seq % 1000 * 1000);
    let id = format!(
        "019a5b2c-{:04x}-7{:03x}-9abc-{seq:012x}",
        seq >> 12 & 0xffff,
        seq & 0xfff
    );
    format!(
        r#"{{"schema":1,"event_id":"{id}#0","seq":{seq},"instance":"019a5b2c-0000-7000-8000-000000000001","time":"2026-11-01T08:00:{second:02}.{microsecond:06}Z","duration_ms":8123.456,"ttfb_ms":412.125,"request_id":"{id}","turn":0,"client":"10.1.2.{key}","user_agent":"codex_cli_rs/0.98.0 (Ubuntu 24.4.0; x86_64) xterm-256color","key":"developer-{key}","group":"team-{group}","platform":"openai","policy":"sha256:5b2f0c91a3de","method":"POST","path":"/v1/responses","endpoint":"responses","transport":"sse","model":"gpt-5.5","service_tier":"{tier}","service_tier_client":null,"service_tier_served":"{tier}","service_tier_billed":"{tier}","tier_reason":"group_force","tier_billed_by":"served","downgraded":false,"upstream":"openai","upstream_status":200,"upstream_request_id":"req_{seq:032x}","response_id":"resp_{seq:048x}","status":200,"outcome":"ok","error":null,"usage_state":"final","terminal_event":"response.completed","input_tokens":{},"cached_input_tokens":{},"cache_write_tokens":0,"output_tokens":{},"reasoning_tokens":128,"cost_usd":"0.{:06}","request_bytes":182345,"upstream_request_bytes":182372,"response_bytes":23456}}
"#,
        40_000 + seq % 1000,
        30_000 + seq % 900,
        500 + seq % 777,
        10_000 + seq % 5000,
    )
}

fn report(log: PathBuf) {
    let options = Options {
        logs: vec![log],
        format: Format::Csv,
        ..Options::default()
    };
    run(&options, &mut std::io::sink(), &mut std::io::stderr()).expect("a report");
}

fn zstd(log: &Path) -> PathBuf {
    let path = log.with_extension("zst");
    let packed = File::create(&path).expect("a new file");
    zstd::stream::copy_encode(File::open(log).expect("the log"), packed, 3)
        .expect("room for the log");
    path
}

fn gzip(log: &Path) -> PathBuf {
    let path = log.with_extension("gz");
    let packed = File::create(&path).expect("a new file");
    let mut encoder = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    std::io::copy(&mut File::open(log).expect("the log"), &mut encoder).expect("room for the log");
    encoder.finish().expect("room for the log");
    path
}

/// The most memory this process has held, as the kernel tells it.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.map_or("memory unknown".to_owned(), |peak| peak.trim().to_owned())
}
