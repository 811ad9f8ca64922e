//! What a whole forced request costs in CPU, beside a Pingora that only passes the bytes on, and nginx doing the same where
//! it is installed: `cargo bench --bench request [SECONDS]`. On Linux, with two cores: the proxies take turns on the one,
//! upstream and clients share the other.

mod samples;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};
use samples::{ANSWER, free_address, install, request};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const SIZES: [(&str, &str); 4] = [
    ("1 KB", "agent_1k"),
    ("16 KB", "codex_16k"),
    ("256 KB", "codex_256k"),
    ("2 MB", "codex_2m"),
];
const CONNECTIONS: usize = 32;
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the clock in `/proc/PID/stat`, per second.
const TICKS: f64 = 100.0;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [bare, address, upstream] = arguments.as_slice()
        && bare == "bare"
    {
        pass_on(address, upstream.parse().expect("an address"));
    }
    let seconds = arguments.iter().find_map(|argument| argument.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(3));
    pin(std::process::id(), 1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let upstream = listener.local_addr()?;
    std::thread::spawn(move || runtime.block_on(answer_all(listener)));
    let folder = tempfile::tempdir()?;
    let proxies = start_all(folder.path(), upstream)?;
    println!(
        "CPU per request in µs, median of {ROUNDS} rounds (least to most); ratio to the first"
    );
    for (label, name) in SIZES {
        measure(label, &Arc::new(request(name)), &proxies, time)?;
    }
    Ok(())
}

/// A contender, ended when dropped.
struct Proxy {
    name: &'static str,
    address: SocketAddr,
    process: Child,
}

impl Proxy {
    fn start(name: &'static str, address: SocketAddr, command: &mut Command) -> io::Result<Proxy> {
        let process = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        pin(process.id(), 0);
        let begun = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{name} does not listen")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Proxy {
            name,
            address,
            process,
        })
    }

    /// Seconds of CPU so far.
    fn cpu(&self) -> io::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The second field is a name in brackets, which may hold anything; user and system time are 12 and 13 behind it.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let fields = fields.split_ascii_whitespace().skip(11).take(2);
        Ok(fields
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum::<f64>()
            / TICKS)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start_all(folder: &Path, upstream: SocketAddr) -> io::Result<Vec<Proxy>> {
    let this = std::env::current_exe()?;
    let address = free_address()?;
    let mut bare = Command::new(this);
    bare.args(["bare", &address.to_string(), &upstream.to_string()]);
    let mut proxies = vec![Proxy::start("Pingora, passing on", address, &mut bare)?];
    let address = install(folder, upstream)?;
    let mut tiergate = Command::new(env!("CARGO_BIN_EXE_tiergate"));
    tiergate
        .args(["run", "--config", "tiergate.yaml"])
        .current_dir(folder);
    proxies.push(Proxy::start("tiergate, forced", address, &mut tiergate)?);
    if Command::new("nginx").arg("-v").output().is_ok() {
        proxies.push(start_nginx(folder, upstream)?);
    }
    Ok(proxies)
}

fn start_nginx(folder: &Path, upstream: SocketAddr) -> io::Result<Proxy> {
    let address = free_address()?;
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr; events {{ worker_connections 1024; }}\n\
        http {{ access_log off; client_max_body_size 64m; client_body_buffer_size 4m; keepalive_requests 1000000000;\n\
        upstream up {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}\n\
        server {{ listen {address}; location / {{ proxy_pass http://up; proxy_http_version 1.1;\n\
        proxy_set_header Connection \"\"; }} }} }}\n"
    );
    fs::write(folder.join("nginx.conf"), config)?;
    let mut nginx = Command::new("nginx");
    nginx.arg("-p").arg(folder).args(["-c", "nginx.conf"]);
    Proxy::start("nginx, passing on", address, &mut nginx)
}

/// Keeps a process, with the threads that it will have, on one core. Where that cannot be, figures are less steady.
fn pin(process: u32, core: usize) {
    let _ = Command::new("taskset")
        .args(["-a", "-p", "-c", &core.to_string(), &process.to_string()])
        .output();
}

fn measure(
    label: &str,
    request: &Arc<Vec<u8>>,
    proxies: &[Proxy],
    time: Duration,
) -> io::Result<()> {
    let mut costs = vec![Vec::new(); proxies.len()];
    for round in 0..=ROUNDS {
        for (proxy, costs) in proxies.iter().zip(&mut costs) {
            let before = proxy.cpu()?;
            let requests = load(proxy.address, request, time)?;
            // The first round fills pools and caches.
            if round > 0 {
                costs.push((proxy.cpu()? - before) * 1e6 / requests as f64);
            }
        }
    }
    let mut first = None;
    for (proxy, costs) in proxies.iter().zip(&mut costs) {
        costs.sort_by(f64::total_cmp);
        let median = costs[ROUNDS / 2];
        let ratio = median / *first.get_or_insert(median);
        let (least, most) = (costs[0], costs[ROUNDS - 1]);
        println!(
            "{label:>7}  {:20} {median:8.1} ({least:.1} to {most:.1})  {ratio:.2}",
            proxy.name
        );
    }
    Ok(())
}

/// How many requests were answered in this time.
fn load(proxy: SocketAddr, request: &Arc<Vec<u8>>, time: Duration) -> io::Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (over, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    runtime.block_on(async {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let (request, over, answered) = (request.clone(), over.clone(), answered.clone());
                tokio::spawn(async move {
                    let mut stream = BufReader::new(TcpStream::connect(proxy).await?);
                    stream.get_ref().set_nodelay(true)?;
                    while !over.load(Ordering::Relaxed) {
                        stream.get_mut().write_all(&request).await?;
                        let status = read_message(&mut stream, &mut Vec::new()).await?;
                        if !status.contains(" 200 ") {
                            return Err(io::Error::other(status));
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, io::Error>(())
                })
            })
            .collect();
        tokio::time::sleep(time).await;
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.map_err(io::Error::other)??;
        }
        Ok::<_, io::Error>(())
    })?;
    Ok(answered.load(Ordering::Relaxed))
}

async fn answer_all(listener: tokio::net::TcpListener) {
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

/// The first line of one message with a `Content-Length`.
async fn read_message(stream: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> io::Result<String> {
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
    body.resize(length, 0);
    stream.read_exact(body).await?;
    Ok(first)
}

/// The least that can be called a proxy on Pingora.
struct Bare {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        _context: &mut (),
    ) -> pingora_core::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

fn pass_on(address: &str, upstream: SocketAddr) -> ! {
    let settings = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: 1024,
        work_stealing: false,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, settings);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare { upstream });
    service.add_tcp(address);
    server.add_service(service);
    server.run_forever()
}
