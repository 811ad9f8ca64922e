//! What the work on a request costs in instructions, which the load of the machine does not touch: `cargo bench --bench
//! instructions` counts them by valgrind's callgrind and fails where one of them has grown by more than a twentieth over
//! `instructions.txt`. With `-- --accept` the file is written anew.

mod samples;

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use http::HeaderMap;
use samples::{ANSWER, body, install, request, responses_events};
use tiergate::accounting::usage::ResponseObserver;
use tiergate::codec::service_tier::{Edit, Edits, Rewriter, Tier};
use tiergate::policy::endpoint::Endpoint;

const ACCEPTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
/// What each figure may grow by.
const MOST: f64 = 1.05;
/// What comes before what is counted: the process itself, and whatever a first time costs.
const WARM_UP: u64 = 10;
const TIMES: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(120);
const DEPTH: usize = 512;

/// Work of the library alone; the other figure is of whole requests through the program.
const LEAVES: [(&str, fn()); 4] = [
    ("rewrite_chat_1k", || rewrite("chat_1k")),
    ("rewrite_codex_256k", || rewrite("codex_256k")),
    ("observe_json", || {
        observe(false, || vec![ANSWER.to_owned()])
    }),
    ("observe_stream", || observe(true, responses_events)),
];
const REQUEST: &str = "forced_request_1k";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [run, leaf, times] = arguments.as_slice()
        && run == "run"
    {
        repeat(leaf, times.parse().expect("a number of times"));
        return ExitCode::SUCCESS;
    }
    let counts: BTreeMap<&str, u64> = LEAVES
        .iter()
        .map(|(leaf, _)| (*leaf, per_time(|times| count_leaf(leaf, times))))
        .chain([(REQUEST, per_time(count_requests))])
        .collect();
    if arguments.iter().any(|argument| argument == "--accept") {
        accept(&counts);
        return ExitCode::SUCCESS;
    }
    compare(&counts)
}

fn repeat(leaf: &str, times: u64) {
    let found = LEAVES.iter().find(|(name, _)| *name == leaf);
    let (_, work) = found.expect("a leaf of the table");
    (0..times).for_each(|_| work());
}

// A process counts one leaf, and what it is given is made once.
fn rewrite(name: &str) {
    static BODY: OnceLock<Vec<u8>> = OnceLock::new();
    let body = BODY.get_or_init(|| body(name));
    let mut rewriter = Rewriter::new(DEPTH, body.len());
    rewriter.push(body).expect("a valid body");
    black_box(
        rewriter
            .finish(Edits::tier(Edit::Set(Tier::Priority)))
            .expect("a whole body"),
    );
}

fn observe(event_stream: bool, pieces: fn() -> Vec<String>) {
    static PIECES: OnceLock<Vec<String>> = OnceLock::new();
    let pieces = PIECES.get_or_init(pieces);
    let headers = HeaderMap::new();
    let mut observer = ResponseObserver::new(Endpoint::Responses, event_stream, &headers)
        .expect("answers of this endpoint are observed");
    pieces
        .iter()
        .for_each(|piece| observer.feed(piece.as_bytes()));
    black_box(observer.finish());
}

fn per_time(count: impl Fn(u64) -> u64) -> u64 {
    (count(WARM_UP + TIMES) - count(WARM_UP)) / TIMES
}

fn accept(counts: &BTreeMap<&str, u64>) {
    let lines = counts
        .iter()
        .map(|(name, count)| format!("{name} {count}\n"));
    fs::write(ACCEPTED, lines.collect::<String>()).expect("the file of figures can be written");
}

fn compare(counts: &BTreeMap<&str, u64>) -> ExitCode {
    let accepted = fs::read_to_string(ACCEPTED).unwrap_or_default();
    let mut grown = false;
    for (name, count) in counts {
        let before = accepted
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let ratio = *count as f64 / before.unwrap_or(0) as f64;
        println!("{name:20} {count:>10}  {ratio:.3} of the figure that was accepted");
        // Also where there was none.
        grown |= ratio > MOST;
    }
    if grown {
        eprintln!("more instructions than {MOST} of what was accepted");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn count_leaf(leaf: &str, times: u64) -> u64 {
    let this = std::env::current_exe().expect("a program knows itself");
    let mut command = callgrind(this.to_str().expect("a path in UTF-8"));
    let counted = command.args(["run", leaf, &times.to_string()]).spawn();
    collected(counted.expect("valgrind is installed"))
}

/// Instructions of the whole program for this many forced requests, one after the other.
fn count_requests(times: u64) -> u64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let upstream = listener.local_addr().expect("a bound address");
    std::thread::spawn(move || answer_all(&listener));
    let address =
        install(folder.path(), &format!("http://{upstream}")).expect("new files and free ports");
    let mut command = callgrind(env!("CARGO_BIN_EXE_tiergate"));
    let proxy = command
        .args(["run", "--config", "tiergate.yaml"])
        .current_dir(folder.path())
        .spawn()
        .expect("valgrind is installed");
    ask(address, times).expect("every request has its answer");
    let stop = Command::new("kill").arg(proxy.id().to_string()).status();
    assert!(stop.expect("there is a `kill`").success());
    collected(proxy)
}

fn callgrind(program: &str) -> Command {
    let mut command = Command::new("valgrind");
    command
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            program,
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// What callgrind says at the end.
fn collected(mut process: Child) -> u64 {
    let said = process.stderr.take().map(io::read_to_string);
    let said = said.expect("stderr is a pipe").expect("readable text");
    process.wait().expect("it was started here");
    let count = said
        .lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    count.unwrap_or_else(|| panic!("no count in: {said}"))
}

/// Sends the same request again and again on one connection.
fn ask(proxy: SocketAddr, times: u64) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut client = loop {
        match TcpStream::connect(proxy) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            connected => break BufReader::new(connected?),
        }
    };
    client.get_ref().set_read_timeout(Some(PATIENCE))?;
    let request = request("agent_1k");
    for _ in 0..times {
        client.get_mut().write_all(&request)?;
        read_message(&mut client)?;
    }
    Ok(())
}

fn answer_all(listener: &TcpListener) {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{ANSWER}",
        ANSWER.len()
    );
    for proxy in listener.incoming().flatten() {
        let mut proxy = BufReader::new(proxy);
        while read_message(&mut proxy).is_ok() {
            let _ = proxy.get_mut().write_all(answer.as_bytes());
        }
    }
}

/// Reads one message with a `Content-Length`.
fn read_message(stream: &mut BufReader<TcpStream>) -> io::Result<()> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if line.is_empty() {
            break;
        }
    }
    stream.read_exact(&mut vec![0; length])
}
