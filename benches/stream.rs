//! What observation adds to the CPU time of a proxied stream: `cargo bench --bench stream [EVENTS]`. The same stream goes
//! through the program from a path whose answers are observed and from one whose are not, in turns.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const OBSERVED: &str = "/v1/responses";
const NOT_OBSERVED: &str = "/v1/other";
const ROUNDS: usize = 40;
/// What observation may add.
const MOST: f64 = 1.05;
const PATIENCE: Duration = Duration::from_secs(20);

/// As long as those of the API are.
const DELTA: &str = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\
    \"sequence_number\":4,\"item_id\":\"msg_68aa00026b1c81a1b2c3d4e5f6a7b8c9\",\"output_index\":0,\"content_index\":0,\
    \"delta\":\" token\",\"logprobs\":[],\"obfuscation\":\"aB3xYz09\"}\n\n";
const COMPLETED: &str = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\",\
    \"service_tier\":\"default\",\"usage\":{\"input_tokens\":9,\"output_tokens\":8}}}\n\n";

fn main() {
    let events = std::env::args()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(2_000);
    let (upstream, orders) = upstream();
    let proxy = Proxy::start(upstream);
    let ratios = [
        // As a model writes: the next event comes when the one before has been passed on.
        measure(&proxy, &orders, events, Pace::OneByOne),
        // As fast as it goes: the proxy reads many events at once, and there is the least beside observation.
        measure(&proxy, &orders, events * 20, Pace::AtOnce),
    ];
    if ratios[0] > MOST {
        eprintln!("observation costs more than {MOST} of the stream without it");
        std::process::exit(1);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    OneByOne,
    AtOnce,
}

/// How the next stream goes: what the upstream is told of it.
struct Order {
    events: usize,
    /// Tells of each event that has arrived; none where nobody waits for that.
    arrived: Option<Receiver<()>>,
}

/// The ratio of CPU time with observation to that without.
fn measure(proxy: &Proxy, orders: &Sender<Order>, events: usize, pace: Pace) -> f64 {
    let run = |path: &str| {
        let before = proxy.cpu();
        stream(proxy.address, path, orders, events, pace);
        // The end of the answer is the last that the proxy has to do with it, but for its line.
        (proxy.cpu() - before).as_secs_f64() * 1e6 / events as f64
    };
    run(OBSERVED);
    run(NOT_OBSERVED);
    let mut with = Vec::new();
    let mut without = Vec::new();
    for _ in 0..ROUNDS {
        without.push(run(NOT_OBSERVED));
        with.push(run(OBSERVED));
    }
    let [with, without] = [least(with), least(without)];
    let ratio = with / without;
    println!(
        "{pace:?}: {with:.3} µs of CPU an event with observation, {without:.3} without: {ratio:.3}"
    );
    ratio
}

/// Other programs of the machine only ever add to the time of a round.
fn least(values: Vec<f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

/// Asks for a stream and reads it to its end.
fn stream(address: SocketAddr, path: &str, orders: &Sender<Order>, events: usize, pace: Pace) {
    let (arrived, arrivals) = channel();
    let waits = pace == Pace::OneByOne;
    orders
        .send(Order {
            events,
            arrived: waits.then_some(arrivals),
        })
        .expect("the upstream runs");
    let mut socket = TcpStream::connect(address).expect("the proxy listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let body = r#"{"model":"m-1","stream":true}"#;
    write!(
        socket,
        "POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("the proxy reads");
    let mut reader = BufReader::with_capacity(1 << 16, socket);
    let mut line = String::new();
    let mut blank = 0;
    // Each event ends with an empty line, and so do the head and the body; each chunk adds the end of its own.
    while line != "0\r\n" {
        line.clear();
        assert!(reader.read_line(&mut line).expect("the stream goes on") > 0);
        if waits && line == "\n" {
            blank += 1;
            let _ = arrived.send(());
        }
    }
    assert!(!waits || blank == events + 1, "{blank} events");
}

/// Streams as it is ordered to, one stream after another.
fn upstream() -> (SocketAddr, Sender<Order>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    let (sender, orders) = channel::<Order>();
    let orders = Arc::new(Mutex::new(orders));
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let orders = orders.clone();
            std::thread::spawn(move || while serve(&socket, &orders).is_some() {});
        }
    });
    (address, sender)
}

fn serve(mut socket: &TcpStream, orders: &Mutex<Receiver<Order>>) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    // The body is short, and its end is the only closing brace.
    while byte != *b"}" {
        socket.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let order = orders.lock().expect("no other has panicked").recv().ok()?;
    let _ = socket.set_nodelay(true);
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).ok()?;
    let delta = chunk(DELTA);
    for _ in 0..order.events {
        socket.write_all(&delta).ok()?;
        if let Some(arrived) = &order.arrived {
            arrived.recv().ok()?;
        }
    }
    let end = [chunk(COMPLETED), chunk("")].concat();
    socket.write_all(&end).ok()
}

fn chunk(piece: &str) -> Vec<u8> {
    format!("{:x}\r\n{piece}\r\n", piece.len()).into_bytes()
}

/// The program with a configuration of its own; killed when dropped.
struct Proxy {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Proxy {
    fn start(upstream: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [address, admin] = free_addresses();
        let write = |name: &str, text: &str| {
            fs::write(folder.path().join(name), text).expect("a file is written")
        };
        write(
            "tiergate.yaml",
            &format!(
                "listen: {address}\nadmin: {admin}\npolicy: policy.yaml\naccess_log: {{path: access.log}}\n\
                 upstreams: {{u: {{url: 'http://{upstream}'}}}}\n"
            ),
        );
        write(
            "policy.yaml",
            "version: 1\ngroups: {g: {platform: openai}}\nkeys: {sk-1: g}\n",
        );
        let process = Command::new(env!("CARGO_BIN_EXE_tiergate"))
            .args(["run", "--config", "tiergate.yaml"])
            .current_dir(folder.path())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let proxy = Self {
            process,
            address,
            _folder: folder,
        };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the proxy does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        proxy
    }

    /// CPU time of all its threads so far. `utime` and `stime` would be the same in hundredths of a second.
    fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("it runs");
        let times = tasks.flatten().map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let first = text.split(' ').next().and_then(|time| time.parse().ok());
            first.unwrap_or(0)
        });
        Duration::from_nanos(times.sum())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_addresses() -> [SocketAddr; 2] {
    let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("its address"))
}
