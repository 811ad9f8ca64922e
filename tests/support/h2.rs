//! HTTP/2 over TLS: a client towards the proxy, and an upstream behind it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::request::Builder;
use http::{HeaderMap, Method, Request, Response};
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::client::Answer;
use super::upstream::Received;
use super::{PATIENCE, eventually, tls};

/// How the body of a request is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// With a `content-length`.
    Length,
    /// Without one; the last data frame ends the stream.
    NoLength,
    /// Without one; an empty data frame ends the stream.
    EmptyEnd,
    /// Without one; trailers end the stream.
    Trailers,
    /// With a `content-length` of one byte more than is sent.
    StalledLength,
    /// Without one, and the stream does not end.
    StalledNoLength,
}

/// Sends one request over a connection of its own. A stream that is reset gives an answer that is not whole, and one
/// without a head the status 0.
pub fn post(
    address: SocketAddr,
    headers: &[(&str, &str)],
    path: &str,
    body: &[u8],
    framing: Framing,
) -> Answer {
    let exchange = async {
        let (sender, _connection) = connect(address).await;
        exchange(sender, address, headers, path, body, framing).await
    };
    runtime().block_on(async {
        let answer = timeout(PATIENCE, exchange).await;
        answer.expect("an answer in time")
    })
}

/// Asks for what a GET would be answered with, without its body.
pub fn head(address: SocketAddr, headers: &[(&str, &str)], path: &str) -> Answer {
    let exchange = async {
        let (mut sender, _connection) = connect(address).await;
        let request = request(address, headers, path).method(Method::HEAD);
        let request = request.body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        read_answer(answer.await.unwrap()).await
    };
    runtime().block_on(async {
        let answer = timeout(PATIENCE, exchange).await;
        answer.expect("an answer in time")
    })
}

/// The same behind bytes that are sent before TLS begins.
pub fn post_behind(
    before: &[u8],
    address: SocketAddr,
    headers: &[(&str, &str)],
    path: &str,
    body: &[u8],
) -> Answer {
    let exchange = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(before).await.unwrap();
        let (sender, _connection) = connect_over(socket).await;
        exchange(sender, address, headers, path, body, Framing::Length).await
    };
    runtime().block_on(async {
        let answer = timeout(PATIENCE, exchange).await;
        answer.expect("an answer in time")
    })
}

/// Sends a request beside another one on the same connection, of which as much is sent as is taken, and no end.
pub fn post_beside_upload(
    address: SocketAddr,
    upload_headers: &[(&str, &str)],
    headers: &[(&str, &str)],
    path: &str,
    body: &[u8],
) -> Answer {
    /// Nobody takes any more of an upload that waits for so long.
    const STALLED: Duration = Duration::from_millis(500);
    const PIECE: usize = 16 * 1024;
    let exchange = async {
        let (mut sender, _connection) = connect(address).await;
        let begun = request(address, upload_headers, path).body(()).unwrap();
        let (_answer, mut stream) = sender.send_request(begun, false).unwrap();
        loop {
            stream.reserve_capacity(PIECE);
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
            let Ok(room) = timeout(STALLED, room).await else {
                break;
            };
            let room = room.unwrap().unwrap();
            stream.send_data(vec![b' '; room].into(), false).unwrap();
        }
        exchange(sender, address, headers, path, body, Framing::Length).await
    };
    runtime().block_on(async {
        let answer = timeout(PATIENCE, exchange).await;
        answer.expect("an answer in time")
    })
}

/// Sends a request that never ends. Behind the head of its answer `pause` is waited for; the answer and how its stream ends
/// then are told.
pub fn post_without_end(
    address: SocketAddr,
    headers: &[(&str, &str)],
    path: &str,
    body: &[u8],
    pause: impl FnOnce(),
) -> (Answer, Option<h2::Reason>) {
    let exchange = async {
        let (mut sender, _connection) = connect(address).await;
        let request = request(address, headers, path).body(()).unwrap();
        let (answer, mut stream) = sender.send_request(request, false).unwrap();
        stream
            .send_data(Bytes::copy_from_slice(body), false)
            .unwrap();
        let answer = answer.await.unwrap();
        tokio::task::block_in_place(pause);
        let answer = read_answer(answer).await;
        let reset = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
        (answer, reset.ok())
    };
    runtime().block_on(async {
        let ended = timeout(PATIENCE, exchange).await;
        ended.expect("an end of the stream in time")
    })
}

/// How a client leaves that has got the first piece of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It resets the stream, and the connection goes on.
    Stream,
    Connection,
}

/// Sends one request and leaves in mid-answer.
pub fn leave(address: SocketAddr, headers: &[(&str, &str)], path: &str, body: &[u8], how: Leaving) {
    let leave = async {
        let (mut sender, connection) = connect(address).await;
        let request = request(address, headers, path).header("content-length", body.len());
        let (answer, mut stream) = sender
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        stream
            .send_data(Bytes::copy_from_slice(body), true)
            .unwrap();
        let mut answer = answer.await.unwrap().into_body();
        answer.data().await.unwrap().unwrap();
        match how {
            Leaving::Connection => connection.abort(),
            // It outlives this future, in the runtime.
            Leaving::Stream => stream.send_reset(h2::Reason::CANCEL),
        }
        // The sender keeps the connection open.
        if how == Leaving::Stream {
            std::mem::forget(sender);
        }
    };
    runtime().block_on(async { timeout(PATIENCE, leave).await.expect("an answer in time") });
}

/// A connection of its own, and the task that drives it.
async fn connect(address: SocketAddr) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    connect_over(TcpStream::connect(address).await.unwrap()).await
}

async fn connect_over(
    socket: TcpStream,
) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let connector = TlsConnector::from(tls::client_config(b"h2"));
    let name = ServerName::from(socket.peer_addr().unwrap().ip());
    let stream = connector.connect(name, socket).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn request(address: SocketAddr, headers: &[(&str, &str)], path: &str) -> Builder {
    let mut request = Request::post(format!("https://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
}

async fn exchange(
    mut sender: SendRequest<Bytes>,
    address: SocketAddr,
    headers: &[(&str, &str)],
    path: &str,
    body: &[u8],
    framing: Framing,
) -> Answer {
    let mut request = request(address, headers, path);
    let announced = match framing {
        Framing::Length => Some(body.len()),
        Framing::StalledLength => Some(body.len() + 1),
        _ => None,
    };
    if let Some(length) = announced {
        request = request.header("content-length", length);
    }
    let request = request.body(()).unwrap();
    let (answer, mut stream) = sender.send_request(request, false).unwrap();
    let end = matches!(framing, Framing::Length | Framing::NoLength);
    // A refused request may be answered, and its stream ended, before all of it was sent.
    let _ = stream.send_data(Bytes::copy_from_slice(body), end);
    if framing == Framing::EmptyEnd {
        let _ = stream.send_data(Bytes::new(), true);
    }
    if framing == Framing::Trailers {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", http::HeaderValue::from_static("1"));
        let _ = stream.send_trailers(trailers);
    }
    let answer = match answer.await {
        Ok(answer) => read_answer(answer).await,
        Err(_) => Answer {
            status: 0,
            headers: Vec::new(),
            body: Vec::new(),
            whole: false,
        },
    };
    if matches!(framing, Framing::StalledLength | Framing::StalledNoLength) {
        // Dropped, it would be reset.
        std::mem::forget(stream);
    }
    answer
}

/// Its trailers stand behind its headers.
async fn read_answer(answer: Response<RecvStream>) -> Answer {
    let (head, mut stream) = answer.into_parts();
    let (body, whole) = read_all(&mut stream).await;
    let trailers = stream.trailers().await.ok().flatten().unwrap_or_default();
    let headers = head.headers.iter().chain(&trailers).map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.to_string(), value)
    });
    Answer {
        status: head.status.as_u16(),
        headers: headers.collect(),
        body,
        whole,
    }
}

async fn read_all(stream: &mut RecvStream) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(piece) = stream.data().await {
        let Ok(piece) = piece else {
            return (body, false);
        };
        body.extend_from_slice(&piece);
        let _ = stream.flow_control().release_capacity(piece.len());
    }
    (body, true)
}

/// An upstream that speaks HTTP/2 over TLS. It agrees to HTTP/1.1 too, but then says nothing.
pub struct Upstream {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
}

/// What the upstream does once a request is here.
#[derive(Clone, Debug)]
pub enum Reply {
    Json(String),
    /// The same with these headers.
    JsonWith(Vec<(&'static str, &'static str)>, String),
    /// A piece of an event stream, then a reset.
    Cut(String),
    /// A piece of an event stream, and after a while the rest.
    Paused(String, Duration, String),
    /// Nothing, for as long as the client waits.
    Silence,
}

pub fn upstream(reply: Reply) -> Upstream {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let upstream = Upstream {
        address: listener.local_addr().unwrap(),
        received: Arc::default(),
    };
    runtime().spawn(accept(listener, reply, upstream.received.clone()));
    upstream
}

impl Upstream {
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The one request that arrived, and arrived whole.
    pub fn request(&self) -> Received {
        let mut received = eventually("a request at the upstream", || {
            Some(self.received()).filter(|received| !received.is_empty())
        });
        assert!(received.len() == 1 && received[0].whole, "{received:?}");
        received.remove(0)
    }
}

async fn accept(
    listener: std::net::TcpListener,
    reply: Reply,
    received: Arc<Mutex<Vec<Received>>>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    let acceptor = TlsAcceptor::from(tls::server_config(&[b"h2", b"http/1.1"]));
    for number in 0.. {
        let Ok((socket, _)) = listener.accept().await else {
            return;
        };
        let (acceptor, reply, received) = (acceptor.clone(), reply.clone(), received.clone());
        tokio::spawn(async move {
            let mut stream = acceptor.accept(socket).await.ok()?;
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                tokio::io::copy(&mut stream, &mut tokio::io::sink())
                    .await
                    .ok()?;
                return None;
            }
            let mut connection = h2::server::handshake(stream).await.ok()?;
            while let Some(Ok((request, stream))) = connection.accept().await {
                tokio::spawn(serve(
                    request,
                    stream,
                    number,
                    reply.clone(),
                    received.clone(),
                ));
            }
            Some(())
        });
    }
}

async fn serve(
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    connection: usize,
    reply: Reply,
    received: Arc<Mutex<Vec<Received>>>,
) {
    let (head, mut body) = request.into_parts();
    let (body, whole) = read_all(&mut body).await;
    received.lock().unwrap().push(Received {
        connection,
        head: head_text(
            &format!("{} {} HTTP/2", head.method, head.uri),
            &head.headers,
        ),
        body,
        whole,
    });
    match reply {
        // The stream is open for as long as its two halves are.
        Reply::Silence => std::future::poll_fn(|context| respond.poll_reset(context))
            .await
            .map_or((), drop),
        Reply::Json(text) => drop(answer(&mut respond, "application/json", &text, true)),
        Reply::JsonWith(headers, text) => {
            let mut head = Response::builder().header("content-type", "application/json");
            for (name, value) in headers {
                head = head.header(name, value);
            }
            if let Ok(mut stream) = respond.send_response(head.body(()).unwrap(), false) {
                let _ = stream.send_data(Bytes::from(text), true);
            }
        }
        Reply::Paused(first, pause, last) => {
            if let Some(mut stream) = answer(&mut respond, "text/event-stream", &first, false) {
                tokio::time::sleep(pause).await;
                // It may have been reset.
                let _ = stream.send_data(last.into(), true);
            }
        }
        Reply::Cut(text) => {
            if let Some(mut stream) = answer(&mut respond, "text/event-stream", &text, false) {
                // The piece is to leave before the reset does.
                tokio::time::sleep(Duration::from_millis(100)).await;
                stream.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        }
    }
}

fn answer(
    respond: &mut h2::server::SendResponse<Bytes>,
    kind: &str,
    text: &str,
    end: bool,
) -> Option<SendStream<Bytes>> {
    let head = Response::builder()
        .header("content-type", kind)
        .body(())
        .unwrap();
    let mut stream = respond.send_response(head, false).ok()?;
    stream.send_data(Bytes::from(text.to_owned()), end).ok()?;
    Some(stream)
}

fn head_text(line: &str, headers: &HeaderMap) -> String {
    let lines = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes())));
    format!("{line}\r\n{}\r\n", lines.collect::<String>())
}

/// All HTTP/2 of the tests runs here. The other peers are plain threads.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    })
}
