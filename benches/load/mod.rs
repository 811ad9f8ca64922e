//! What the benchmarks of whole programs share: the proxies that are compared, each a process of its own, the clients that
//! load them, the upstream behind them, and how their figures are told.

// Each benchmark takes some of it.
#![allow(dead_code)]

mod bare;
pub mod http2;
// A benchmark that takes the support of the tests as well has this file twice; the others need only this one of it.
#[allow(clippy::duplicate_mod)]
#[path = "../../tests/support/tls.rs"]
mod tls;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::samples::{ANSWER, free_address, install};

/// Those that count.
pub const ROUNDS: usize = 3;
/// A policy of a million keys is read before the proxy listens.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of the clock in `/proc/PID/stat`, per second.
const TICKS: f64 = 100.0;
/// For this process and, by inheritance, the proxies.
const DESCRIPTORS: u64 = 65_536;
/// The first argument of this program where it is to be the bare Pingora.
const BARE: &str = "bare";
/// The last one then: how its upstream is spoken to.
const PLAIN: &str = "plain";
const HTTP2: &str = "http2";
/// The file of the authority that signed the upstream's certificate.
const AUTHORITY: &str = "authority.pem";

/// A contender, ended when dropped.
pub struct Proxy {
    pub name: &'static str,
    pub address: SocketAddr,
    process: Child,
}

impl Proxy {
    pub fn start(
        name: &'static str,
        address: SocketAddr,
        command: &mut Command,
    ) -> io::Result<Proxy> {
        let process = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        pin(process.id(), 0);
        let mut proxy = Proxy {
            name,
            address,
            process,
        };
        let begun = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            if proxy.process.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{name} does not listen")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(proxy)
    }

    /// Seconds of CPU so far.
    pub fn cpu(&self) -> io::Result<f64> {
        let stat = self.told("stat")?;
        // The second field is a name in brackets, which may hold anything; user and system time are 12 and 13 behind it.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let fields = fields.split_ascii_whitespace().skip(11).take(2);
        Ok(fields
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum::<f64>()
            / TICKS)
    }

    /// KiB of resident memory.
    pub fn resident(&self) -> io::Result<f64> {
        let status = self.told("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
            .ok_or_else(|| io::Error::other("no size"))
    }

    fn told(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.process.id()))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A Pingora without any filter, tiergate with one forced group, and nginx where it is installed, with these settings more.
pub fn start_all(folder: &Path, upstream: SocketAddr, nginx: &str) -> io::Result<Vec<Proxy>> {
    let address = install(folder, &format!("http://{upstream}"))?;
    let mut proxies = vec![
        start_bare(folder, upstream, PLAIN)?,
        start_tiergate(folder, address)?,
    ];
    if Command::new("nginx").arg("-v").output().is_ok() {
        proxies.push(start_nginx(folder, upstream, nginx)?);
    }
    Ok(proxies)
}

/// The first two of them before an upstream of HTTP/2 over TLS.
pub fn start_all_http2(folder: &Path, upstream: SocketAddr) -> io::Result<Vec<Proxy>> {
    fs::write(folder.join(AUTHORITY), &tls::certificates().authority)?;
    // The certificate is for the name.
    let url = format!("https://localhost:{}", upstream.port());
    let address = install(folder, &url)?;
    Ok(vec![
        start_bare(folder, upstream, HTTP2)?,
        start_tiergate(folder, address)?,
    ])
}

fn start_bare(folder: &Path, upstream: SocketAddr, how: &str) -> io::Result<Proxy> {
    let address = free_address()?;
    let mut bare = Command::new(std::env::current_exe()?);
    bare.args([BARE, &address.to_string(), &upstream.to_string(), how]);
    trust(&mut bare, folder);
    Proxy::start("Pingora, passing on", address, &mut bare)
}

/// Has a proxy trust the upstream's certificate, where it has one.
fn trust(proxy: &mut Command, folder: &Path) {
    let authority = folder.join(AUTHORITY);
    if authority.exists() {
        proxy.env("SSL_CERT_FILE", authority);
    }
}

/// Does not return where this program was started as the bare Pingora.
pub fn pass_on_if_bare() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [bare, address, upstream, how] = arguments.as_slice()
        && bare == BARE
    {
        let upstream = upstream.parse().expect("an address");
        bare::pass_on(address, upstream, how == HTTP2);
    }
}

/// With the files that were installed in this folder.
pub fn start_tiergate(folder: &Path, address: SocketAddr) -> io::Result<Proxy> {
    let mut tiergate = Command::new(env!("CARGO_BIN_EXE_tiergate"));
    tiergate
        .args(["run", "--config", "tiergate.yaml"])
        .current_dir(folder);
    trust(&mut tiergate, folder);
    Proxy::start("tiergate, forced", address, &mut tiergate)
}

fn start_nginx(folder: &Path, upstream: SocketAddr, settings: &str) -> io::Result<Proxy> {
    let address = free_address()?;
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr; events {{ worker_connections 16384; }}\n\
        http {{ access_log off; client_max_body_size 64m; client_body_buffer_size 4m; keepalive_requests 1000000000;\n\
        upstream up {{ server {upstream}; keepalive 1024; keepalive_requests 1000000000; }}\n\
        server {{ listen {address}; location / {{ proxy_pass http://up; proxy_http_version 1.1;\n\
        proxy_set_header Connection \"\"; {settings} }} }} }}\n"
    );
    fs::write(folder.join("nginx.conf"), config)?;
    let mut nginx = Command::new("nginx");
    nginx.arg("-p").arg(folder).args(["-c", "nginx.conf"]);
    Proxy::start("nginx, passing on", address, &mut nginx)
}

/// Keeps a process, with the threads that it will have, on one core. Where that cannot be, figures are less steady.
pub fn pin(process: u32, core: usize) {
    let _ = Command::new("taskset")
        .args(["-a", "-p", "-c", &core.to_string(), &process.to_string()])
        .output();
}

#[allow(unsafe_code)]
pub fn raise_descriptors() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls only read or write the struct that they are given.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max.min(DESCRIPTORS);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

/// All that happens in it shares one thread, and so a core with whoever else is pinned there.
pub fn new_runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Has a thread serve a listener until the program ends. Where it listens.
pub fn start_upstream<S: Future<Output = ()>>(
    serve: impl FnOnce(TcpListener) -> S + Send + 'static,
) -> io::Result<SocketAddr> {
    let runtime = new_runtime()?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || runtime.block_on(serve(listener)));
    Ok(address)
}

/// Answers every request with the same JSON.
pub async fn answer_all(listener: TcpListener) {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{ANSWER}",
        ANSWER.len()
    );
    let answer: Arc<str> = answer.into();
    while let Ok((stream, _)) = listener.accept().await {
        let answer = answer.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let mut stream = BufReader::with_capacity(64 << 10, stream);
            let mut body = Vec::new();
            while read_message(&mut stream, &mut body).await.is_ok() {
                if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// What a time of load came to.
pub struct Load {
    /// Seconds of CPU that the proxy took.
    cpu: f64,
    /// Of each request that was answered, from its sending to the end of its answer; the shortest first.
    pub durations: Vec<Duration>,
}

impl Load {
    pub fn answered(&self) -> usize {
        self.durations.len()
    }

    /// CPU per request, in µs.
    pub fn cost(&self) -> f64 {
        self.cpu * 1e6 / self.answered() as f64
    }
}

/// Has so many connections send this request, each again as soon as it is answered.
pub fn load(
    proxy: &Proxy,
    request: &Arc<Vec<u8>>,
    connections: usize,
    time: Duration,
) -> io::Result<Load> {
    new_runtime()?.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(connect(proxy.address).await?);
        }
        // A first request on each, so that opening connections on either side of the proxy is not counted.
        let (clients, _) = ask_all(clients, request, Duration::ZERO).await?;
        let before = proxy.cpu()?;
        let (clients, mut durations) = ask_all(clients, request, time).await?;
        let cpu = proxy.cpu()? - before;
        // Nor is closing them.
        drop(clients);
        durations.sort_unstable();
        Ok(Load { cpu, durations })
    })
}

pub async fn connect(address: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

type Asked<C> = io::Result<(C, Vec<Duration>)>;

async fn ask_all(
    clients: Vec<BufReader<TcpStream>>,
    request: &Arc<Vec<u8>>,
    time: Duration,
) -> Asked<Vec<BufReader<TcpStream>>> {
    let end = Instant::now() + time;
    let asking: Vec<_> = clients
        .into_iter()
        .map(|client| tokio::spawn(ask(client, request.clone(), end)))
        .collect();
    let (mut clients, mut durations) = (Vec::new(), Vec::new());
    for client in asking {
        let (client, taken) = client.await.map_err(io::Error::other)??;
        clients.push(client);
        durations.extend(taken);
    }
    Ok((clients, durations))
}

/// Asks once at least.
async fn ask(
    mut client: BufReader<TcpStream>,
    request: Arc<Vec<u8>>,
    end: Instant,
) -> Asked<BufReader<TcpStream>> {
    let mut durations = Vec::new();
    let mut begun = Instant::now();
    loop {
        client.get_mut().write_all(&request).await?;
        let status = read_message(&mut client, &mut Vec::new()).await?;
        if !status.contains(" 200 ") {
            return Err(io::Error::other(status));
        }
        let ended = Instant::now();
        durations.push(ended - begun);
        if ended >= end {
            return Ok((client, durations));
        }
        begun = ended;
    }
}

/// The first line of one message with a `Content-Length`.
pub async fn read_message(
    stream: &mut BufReader<TcpStream>,
    body: &mut Vec<u8>,
) -> io::Result<String> {
    let (first, length) = read_head(stream).await?;
    body.resize(length, 0);
    stream.read_exact(body).await?;
    Ok(first)
}

/// The first line of a head, and the length that it tells.
pub async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<(String, usize)> {
    let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
    while stream.read_line(&mut line).await? > 2 {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if first.is_empty() {
            first.clone_from(&line);
        }
        line.clear();
    }
    if first.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((first, length))
}

/// What is measured of each contender in each round that counts. They take turns.
pub fn in_turns<C, M>(
    contenders: &[C],
    mut measure: impl FnMut(&C) -> io::Result<M>,
) -> io::Result<Vec<Vec<M>>> {
    let mut measured: Vec<_> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        for (contender, measured) in contenders.iter().zip(&mut measured) {
            let found = measure(contender)?;
            // The first round fills pools and caches.
            if round > 0 {
                measured.push(found);
            }
        }
    }
    Ok(measured)
}

/// A line for each contender, with what it cost in each round.
pub fn print_costs(names: &[String], costs: Vec<Vec<f64>>) {
    let mut first = None;
    for (name, mut costs) in names.iter().zip(costs) {
        costs.sort_by(f64::total_cmp);
        let median = costs[ROUNDS / 2];
        let ratio = median / *first.get_or_insert(median);
        let (least, most) = (costs[0], costs[ROUNDS - 1]);
        println!("{name} {median:8.1} ({least:.1} to {most:.1})  {ratio:.2}");
    }
}

/// Of what is sorted: the value that this share of all does not exceed.
pub fn quantile<T: Copy>(sorted: &[T], share: f64) -> T {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// Nanoseconds since the first call.
pub fn now() -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    BEGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// The number of so many digits behind this mark.
pub fn number_after(text: &[u8], mark: &[u8], digits: usize) -> u64 {
    let at = memchr::memmem::find(text, mark).expect("a number") + mark.len();
    let digits = std::str::from_utf8(&text[at..at + digits]).unwrap();
    digits.parse().unwrap()
}
