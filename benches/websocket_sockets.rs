//! What WebSockets cost: the memory of one that is idle, and the delay that the proxy adds to a frame while many are
//! busy. `cargo bench --bench websocket_sockets -- [IDLE [BUSY [SECONDS]]]`. Both ends are in this process, on loopback,
//! and the same load goes to the upstream directly for comparison.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use load::{now, number_after, raise_descriptors};
use support::proxy::{self, Proxy};
use tiergate::codec::websocket::{Opcode, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

mod load;
mod samples;
#[path = "../tests/support/mod.rs"]
mod support;

/// Events of one response, and the time between two of them: fifty a second, as fast models write.
const EVENTS: usize = 50;
const PACE: Duration = Duration::from_millis(20);
/// The payload of a client's message.
const CREATE_BYTES: usize = 2048;
/// How long memory may take to be given back before it is looked at.
const SETTLE: Duration = Duration::from_secs(1);
/// Nanoseconds, as they stand in each payload after this mark.
const MARK: &[u8] = b"\"sent\":\"";
const DIGITS: usize = 20;
/// It leaves the payload as it is, so that the ends have less to do than the proxy.
const NO_MASK: Option<[u8; 4]> = Some([0; 4]);

/// How long frames were on their way, in nanoseconds.
type Delays = Arc<Mutex<Vec<u64>>>;

/// Those of both directions, taken at the end that reads.
#[derive(Clone, Default)]
struct Measured {
    messages: Delays,
    events: Delays,
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().filter_map(|argument| argument.parse::<u32>().ok());
    let idle = arguments.next().unwrap_or(2000);
    let busy = arguments.next().unwrap_or(200);
    let time = Duration::from_secs(arguments.next().unwrap_or(10).into());
    raise_descriptors();
    let measured = Measured::default();
    let upstream = serve(measured.clone()).await;
    let proxy = tokio::task::block_in_place(|| proxy::new().upstream(&upstream).run());
    talk(proxy.address, 20, Duration::from_millis(200), &measured).await;
    let sockets = measure_idle(&proxy, idle).await;
    println!("a frame's delay, {busy} busy sockets beside {idle} idle ones, {time:?} each way:");
    let before = proxy.memory("VmRSS:");
    for (name, address) in [("direct", upstream), ("proxied", proxy.address)] {
        measured.clear();
        talk(address, busy, time, &measured).await;
        report(name, "messages of the client", &measured.messages);
        report(name, "events of the server", &measured.events);
    }
    let more = proxy.memory("VmRSS:").saturating_sub(before);
    println!("resident: {} KiB more with the busy ones gone", more / 1024);
    drop(sockets);
    sleep(SETTLE).await;
    println!(
        "resident: {} KiB with all gone",
        proxy.memory("VmRSS:") / 1024
    );
}

/// Opens sockets that then have nothing to say: as they are, and after a short turn each.
async fn measure_idle(proxy: &Proxy, count: u32) -> Vec<BufReader<TcpStream>> {
    let begin = proxy.memory("VmRSS:");
    println!("resident: {} KiB at the beginning", begin / 1024);
    let each = || (proxy.memory("VmRSS:") - begin) as f64 / 1024.0 / f64::from(count);
    let mut sockets = Vec::new();
    for _ in 0..count {
        sockets.push(open(proxy.address).await);
    }
    sleep(SETTLE).await;
    println!(
        "an idle socket, {count} of them: {:.1} KiB when new",
        each()
    );
    for socket in &mut sockets {
        socket.write_all(&create(1)).await.unwrap();
        while !is_last(&read_frame(socket).await.unwrap_or_else(|| {
            panic!(
                "{}",
                proxy
                    .log_lines()
                    .iter()
                    .rev()
                    .take(3)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join("\n")
            )
        })) {}
    }
    sleep(SETTLE).await;
    println!(
        "an idle socket, {count} of them: {:.1} KiB after a turn",
        each()
    );
    sockets
}

/// Has so many sockets run turn after turn.
async fn talk(address: SocketAddr, sockets: u32, time: Duration, measured: &Measured) {
    let mut tasks = JoinSet::new();
    let end = Instant::now() + time;
    for number in 0..sockets {
        let delays = measured.events.clone();
        tasks.spawn(async move {
            let mut socket = open(address).await;
            // Not all at the same moment.
            sleep(PACE * number / sockets).await;
            let mut taken = Vec::new();
            while Instant::now() < end {
                socket.write_all(&create(EVENTS)).await.unwrap();
                loop {
                    let event = read_frame(&mut socket).await.unwrap();
                    if is_last(&event) {
                        break;
                    }
                    taken.push(now() - number_after(&event, MARK, DIGITS));
                }
            }
            delays.lock().unwrap().append(&mut taken);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

async fn open(address: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut socket = BufReader::new(stream);
    let head = "GET /v1/responses HTTP/1.1\r\nHost: proxy.test\r\nAuthorization: Bearer sk-fast\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let answer = read_head(&mut socket).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{answer:?}");
    socket
}

async fn serve(measured: Measured) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let delays = measured.messages.clone();
            // A client that goes ends it.
            tokio::spawn(serve_socket(BufReader::new(stream), delays));
        }
    });
    address
}

async fn serve_socket(mut socket: BufReader<TcpStream>, delays: Delays) -> Option<()> {
    read_head(&mut socket).await?;
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    socket.write_all(head.as_bytes()).await.ok()?;
    loop {
        let message = read_frame(&mut socket).await?;
        let arrived = now();
        let delay = arrived - number_after(&message, MARK, DIGITS);
        delays.lock().unwrap().push(delay);
        let events = number_after(&message, b"\"events\":\"", 4);
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..events {
            ticks.tick().await;
            socket.write_all(&delta()).await.ok()?;
        }
        let completed = r#"{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":1,"output_tokens":1}}}"#;
        let completed = encode(true, Opcode::Text, None, completed.as_bytes());
        socket.write_all(&completed).await.ok()?;
    }
}

async fn read_head(socket: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    Some(head)
}

/// The payload of a frame that is not masked, or by a mask that changes nothing.
async fn read_frame(socket: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    socket.read_u8().await.ok()?;
    let second = socket.read_u8().await.ok()?;
    let length = match second & 0x7f {
        126 => socket.read_u16().await.ok()?.into(),
        short => usize::from(short),
    };
    if second & 0x80 != 0 {
        socket.read_u32().await.ok()?;
    }
    let mut payload = vec![0; length];
    socket.read_exact(&mut payload).await.ok()?;
    Some(payload)
}

/// A message that asks for a response of so many events.
fn create(events: usize) -> Vec<u8> {
    let start = format!(
        r#"{{"type":"response.create","events":"{events:04}","sent":"{:020}","input":""#,
        now()
    );
    let text = format!("{start:x<CREATE_BYTES$}\"}}");
    encode(true, Opcode::Text, NO_MASK, text.as_bytes())
}

fn delta() -> Vec<u8> {
    let text = format!(
        r#"{{"type":"response.output_text.delta","sequence_number":7,"item_id":"msg_0123456789","output_index":0,"content_index":0,"sent":"{:020}","delta":" token","obfuscation":"aB3xYz"}}"#,
        now()
    );
    encode(true, Opcode::Text, None, text.as_bytes())
}

fn is_last(event: &[u8]) -> bool {
    event.starts_with(br#"{"type":"response.completed""#)
}

impl Measured {
    fn clear(&self) {
        self.messages.lock().unwrap().clear();
        self.events.lock().unwrap().clear();
    }
}

fn report(way: &str, what: &str, delays: &Delays) {
    let mut delays = delays.lock().unwrap();
    delays.sort_unstable();
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize] as f64 / 1e6;
    println!(
        "  {way:8} {what:22} {:7}: median {:.3} ms, p99 {:.3} ms",
        delays.len(),
        at(0.5),
        at(0.99)
    );
}
