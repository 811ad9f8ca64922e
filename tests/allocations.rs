//! How often a small request makes the proxy ask for memory. It has the process, and so its allocator, to itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tiergate::config::Config;
use tiergate::server::Server;
use tokio::sync::oneshot;

/// What a request may ask for, in calls. Where Pingora only passed bytes on, it asked 68 times.
const MOST: u64 = 135;
const WARM_UP: u64 = 50;
const REQUESTS: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(20);

const BODY: &str = r#"{"model":"gpt-5.5","service_tier":"flex","input":[{"role":"user","content":"hello"}],"stream":false}"#;
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 116\r\n\r\n\
    {\"id\":\"resp_1\",\"model\":\"gpt-5.5\",\"service_tier\":\"priority\",\"usage\":{\"input_tokens\":9,\"output_tokens\":8},\"output\":[]}";
const ANSWER_BODY: usize = 116;
/// The member in place of the client's, which is blanked; its own comma is the first byte that is not.
const SENT_BODY: usize = BODY.len() + r#""service_tier":"priority","#.len();

/// Counts the calls.
struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on as it is; it is only counted.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads a message whose body has this length. Nothing is allocated.
fn read_message(stream: &mut TcpStream, body: usize) {
    let mut buffer = [0; 16 << 10];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).unwrap();
        assert!(read > 0, "the connection ended");
        filled += read;
        let head = buffer[..filled]
            .windows(4)
            .position(|end| end == b"\r\n\r\n");
        if head.is_some_and(|head| filled >= head + 4 + body) {
            return;
        }
    }
}

/// Answers every request on one connection.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut proxy, _) = listener.accept().unwrap();
        for _ in 0..WARM_UP + REQUESTS {
            read_message(&mut proxy, SENT_BODY);
            proxy.write_all(ANSWER.as_bytes()).unwrap();
        }
    });
    address
}

fn server(folder: &std::path::Path) -> Server {
    let config = format!(
        "policy: policy.yaml\nupstreams: {{up: {{url: \"http://{}\"}}}}\n\
        access_log: {{path: access.log}}\nserver: {{threads: 1, drain: 1s}}\n",
        upstream()
    );
    let policy = "version: 1\ngroups: {fast: {platform: openai, force_fast_mode: true}}\nkeys: {sk-fast: fast}\n";
    fs::write(folder.join("tiergate.yaml"), config).unwrap();
    fs::write(folder.join("policy.yaml"), policy).unwrap();
    let (mut config, _) = Config::load(&folder.join("tiergate.yaml")).unwrap();
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    (config.listen[0].address, config.admin) = (free.into(), free.into());
    Server::new(config, false).unwrap_or_else(|_| panic!("the proxy does not start"))
}

// One test, so that nothing else allocates beside it.
#[test]
fn a_small_forced_request_asks_for_memory_no_more_often_than_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let address = server.address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = std::thread::spawn(move || {
        server.run_until(async {
            // Ready when the other end is dropped.
            let _ = stopped.await;
        })
    });
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "POST /v1/responses HTTP/1.1\r\nhost: tiergate\r\nauthorization: Bearer sk-fast\r\n\
        content-type: application/json\r\nuser-agent: test/1.0\r\naccept: */*\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut ask = |times: u64| {
        for _ in 0..times {
            client.write_all(request.as_bytes()).unwrap();
            read_message(&mut client, ANSWER_BODY);
        }
    };
    ask(WARM_UP);
    let before = CALLS.load(Relaxed);
    ask(REQUESTS);
    let calls = (CALLS.load(Relaxed) - before) / REQUESTS;
    drop(stop);
    serving.join().unwrap();
    let log = fs::read_to_string(folder.path().join("access.log")).unwrap();
    let forced = log.matches(r#""service_tier":"priority","service_tier_client":"flex""#);
    assert_eq!(forced.count() as u64, WARM_UP + REQUESTS);
    assert!(calls <= MOST, "{calls} calls for a request");
    assert!(
        calls + 10 > MOST,
        "{calls} calls for a request: `MOST` can be lowered"
    );
}
