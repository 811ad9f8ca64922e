//! What streams of events cost: the memory of one that is idle, and the delay that a proxy adds to an event.
//! `cargo bench --bench stream_sockets -- [IDLE [STREAMS [SECONDS]]]`. The proxies are those of `request.rs`, and so is what
//! runs on which of two cores; the same load goes to the upstream directly for comparison.

mod load;
mod samples;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use load::{Proxy, connect, now, number_after, quantile, read_head, read_message};
use samples::request;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep};

/// Events of one response, few so that there are many first ones, and the time between two of them: fifty a second, as fast
/// models write.
const EVENTS: usize = 10;
const PACE: Duration = Duration::from_millis(20);
/// Those of a stream that is silent afterwards.
const IDLE_EVENTS: usize = 5;
/// Streams that are open before memory is first looked at: what the first ones bring about is not theirs alone.
const BEFORE: usize = 50;
/// How long memory may take to be given back before it is looked at.
const SETTLE: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_millis(500);
/// Nanoseconds, as they stand in each event after this mark.
const MARK: &[u8] = b"\"sent\":\"";
const DIGITS: usize = 20;
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
    transfer-encoding: chunked\r\n\r\n";
/// The path of the requests, and what asks the upstream for a stream that is idle.
const PATH: &str = "/v1/responses";
const IDLE: &str = "?idle";
/// What is measured, in the order of [`Delays`].
const MEASURED: [&str; 3] = ["request to first event", "first event", "later events"];

/// From the request to the first event, and how long the first and later events were on their way, in nanoseconds.
type Delays = [Vec<u64>; 3];

fn main() -> io::Result<()> {
    load::pass_on_if_bare();
    let mut arguments = std::env::args().filter_map(|argument| argument.parse::<u32>().ok());
    let idle = arguments.next().unwrap_or(500) as usize;
    let streams = arguments.next().unwrap_or(200);
    let time = Duration::from_secs(arguments.next().unwrap_or(10).into());
    load::raise_descriptors();
    load::pin(std::process::id(), 1);
    let upstream = load::start_upstream(serve)?;
    let folder = tempfile::tempdir()?;
    let proxies = load::start_all(folder.path(), upstream, "proxy_buffering off;")?;
    let runtime = load::new_runtime()?;
    println!("resident memory of an idle stream, {idle} of them beside {BEFORE}");
    for proxy in &proxies {
        let each = runtime.block_on(measure_idle(proxy, idle))?;
        println!("  {:20} {each:8.1} KiB", proxy.name);
    }
    for streams in [1, streams] {
        println!("delay in µs, {streams} at once for {time:?}; what it is over that of direct");
        print_delays(&runtime.block_on(measure_delays(upstream, &proxies, streams, time))?);
    }
    Ok(())
}

/// KiB of each.
async fn measure_idle(proxy: &Proxy, count: usize) -> io::Result<f64> {
    let _first = open_idle(proxy.address, BEFORE).await?;
    sleep(SETTLE).await;
    let before = proxy.resident()?;
    let _others = open_idle(proxy.address, count).await?;
    sleep(SETTLE).await;
    Ok((proxy.resident()? - before) / count as f64)
}

/// Streams that have nothing more to say.
async fn open_idle(address: SocketAddr, count: usize) -> io::Result<Vec<Client>> {
    let request = asking(IDLE);
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = Client::open(address).await?;
        client.ask(&request).await?;
        for _ in 0..IDLE_EVENTS {
            client.read_event().await?;
        }
        clients.push(client);
    }
    Ok(clients)
}

async fn measure_delays(
    upstream: SocketAddr,
    proxies: &[Proxy],
    streams: u32,
    time: Duration,
) -> io::Result<Vec<(&'static str, Delays)>> {
    let proxies = proxies.iter().map(|proxy| (proxy.name, proxy.address));
    let mut measured = Vec::new();
    for (name, address) in [("direct", upstream)].into_iter().chain(proxies) {
        follow_all(address, streams, WARM_UP).await?;
        measured.push((name, follow_all(address, streams, time).await?));
    }
    Ok(measured)
}

/// Has so many clients ask for one response after the other.
async fn follow_all(address: SocketAddr, streams: u32, time: Duration) -> io::Result<Delays> {
    let end = Instant::now() + time;
    let mut clients = JoinSet::new();
    for number in 0..streams {
        clients.spawn(async move {
            let mut client = Client::open(address).await?;
            // Not all at the same moment.
            sleep(PACE * number / streams).await;
            client.follow(end).await
        });
    }
    let mut delays = Delays::default();
    while let Some(client) = clients.join_next().await {
        let taken = client.map_err(io::Error::other)??;
        for (delays, taken) in delays.iter_mut().zip(taken) {
            delays.extend(taken);
        }
    }
    delays.iter_mut().for_each(|delays| delays.sort_unstable());
    Ok(delays)
}

/// A connection on which streams are read.
struct Client {
    socket: BufReader<TcpStream>,
    /// The beginning of an event: a proxy may cut chunks as it likes.
    pending: Vec<u8>,
}

impl Client {
    async fn open(address: SocketAddr) -> io::Result<Client> {
        Ok(Client {
            socket: connect(address).await?,
            pending: Vec::new(),
        })
    }

    async fn follow(&mut self, end: Instant) -> io::Result<Delays> {
        let request = asking("");
        let mut delays = Delays::default();
        let [waits, firsts, others] = &mut delays;
        while Instant::now() < end {
            let asked = now();
            self.ask(&request).await?;
            for number in 0..EVENTS {
                let event = self.read_event().await?;
                let arrived = now();
                let delay = arrived - number_after(&event, MARK, DIGITS);
                if number == 0 {
                    waits.push(arrived - asked);
                    firsts.push(delay);
                } else {
                    others.push(delay);
                }
            }
            self.read_end().await?;
        }
        Ok(delays)
    }

    async fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.socket.get_mut().write_all(request).await?;
        let (status, _) = read_head(&mut self.socket).await?;
        if !status.contains(" 200 ") {
            return Err(io::Error::other(status));
        }
        Ok(())
    }

    async fn read_event(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.pending, b"\n\n") {
                return Ok(self.pending.drain(..end + 2).collect());
            }
            if !self.read_chunk().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn read_end(&mut self) -> io::Result<()> {
        while self.read_chunk().await? {}
        self.pending.clear();
        Ok(())
    }

    /// False where it is the last one.
    async fn read_chunk(&mut self) -> io::Result<bool> {
        let mut line = String::new();
        self.socket.read_line(&mut line).await?;
        let length = usize::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        let begin = self.pending.len();
        self.pending.resize(begin + length + 2, 0);
        self.socket.read_exact(&mut self.pending[begin..]).await?;
        self.pending.truncate(begin + length);
        Ok(length > 0)
    }
}

/// A forced request of 1 KB.
fn asking(query: &str) -> Vec<u8> {
    let request = String::from_utf8(request("agent_1k")).expect("a request in UTF-8");
    request
        .replacen(PATH, &format!("{PATH}{query}"), 1)
        .into_bytes()
}

async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        // A proxy that goes ends it.
        tokio::spawn(answer(BufReader::new(stream)));
    }
}

async fn answer(mut stream: BufReader<TcpStream>) -> io::Result<()> {
    let mut body = Vec::new();
    loop {
        let first = read_message(&mut stream, &mut body).await?;
        let socket = stream.get_mut();
        socket.write_all(HEAD.as_bytes()).await?;
        if first.contains(IDLE) {
            for _ in 0..IDLE_EVENTS {
                socket.write_all(&delta()).await?;
            }
            // No other request comes before this response has ended: here it is silent.
            continue;
        }
        // Not `interval`: its first tick may come a millisecond late.
        let mut ticks = interval_at(tokio::time::Instant::now() + PACE, PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..EVENTS {
            socket.write_all(&delta()).await?;
            ticks.tick().await;
        }
        socket.write_all(&completed()).await?;
    }
}

fn delta() -> Vec<u8> {
    let data = format!(
        r#"{{"type":"response.output_text.delta","sequence_number":7,"item_id":"msg_0123456789","output_index":0,"content_index":0,"sent":"{:020}","delta":" token","obfuscation":"aB3xYz"}}"#,
        now()
    );
    chunk(&format!(
        "event: response.output_text.delta\ndata: {data}\n\n"
    ))
}

fn completed() -> Vec<u8> {
    let data = r#"{"type":"response.completed","response":{"id":"r","service_tier":"priority","usage":{"input_tokens":1,"output_tokens":1}}}"#;
    let last = chunk(&format!("event: response.completed\ndata: {data}\n\n"));
    [last.as_slice(), b"0\r\n\r\n"].concat()
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

fn print_delays(measured: &[(&str, Delays)]) {
    let quantiles = |delays: &[u64]| [0.5, 0.99].map(|share| quantile(delays, share) as f64 / 1e3);
    println!(
        "  {:22}  {:20} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "", "count", "p50", "p99", "p50 over", "p99 over"
    );
    for (index, what) in MEASURED.iter().enumerate() {
        let direct = quantiles(&measured[0].1[index]);
        for (name, delays) in measured {
            let [median, high] = quantiles(&delays[index]);
            println!(
                "  {what:22}  {name:20} {:8} {median:8.0} {high:8.0} {:8.0} {:8.0}",
                delays[index].len(),
                median - direct[0],
                high - direct[1]
            );
        }
    }
}
