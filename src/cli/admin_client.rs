//! Asks the admin address of a process that runs, by Pingora's own HTTP.

use std::io;
use std::time::Duration;

use http::{Method, header};
use pingora_core::protocols::http::v1::client::HttpSession;
use pingora_core::protocols::l4::stream::Stream;
use pingora_http::RequestHeader;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::SocketAddress;

/// How long the process has for a connection, for the head of its answer, and for each piece of the body.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// More than `/status` of a thousand groups has. What is beyond is not read.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// What was answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// The body of what is answered to `GET /status`.
pub(super) fn status_of(admin: &SocketAddress) -> io::Result<Vec<u8>> {
    get(admin, "/status").map(|answer| answer.body)
}

/// What is answered to a GET of this path.
///
/// # Errors
/// Where nobody answers in HTTP, and in time.
pub(super) fn get(admin: &SocketAddress, path: &str) -> io::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(ask(admin, path))
}

async fn ask(admin: &SocketAddress, path: &str) -> io::Result<Answer> {
    let (stream, host) = match admin {
        SocketAddress::Tcp(address) => {
            let stream = in_time(TcpStream::connect(address)).await?;
            (Stream::from(stream), address.to_string())
        }
        SocketAddress::Unix(socket) => {
            let stream = in_time(UnixStream::connect(socket)).await?;
            (Stream::from(stream), "localhost".to_owned())
        }
    };
    let mut request =
        RequestHeader::build(Method::GET, path.as_bytes(), None).map_err(io::Error::other)?;
    request
        .insert_header(header::HOST, host)
        .map_err(io::Error::other)?;
    let mut session = HttpSession::new(Box::new(stream));
    in_time(session.write_request_header(Box::new(request))).await?;
    in_time(session.read_response()).await?;
    let status = session.get_status().map_or(0, |status| status.as_u16());
    let mut body = Vec::new();
    while let Some(piece) = in_time(session.read_body_ref()).await?
        && body.len() < MAX_BODY_BYTES
    {
        body.extend_from_slice(piece);
    }
    Ok(Answer { status, body })
}

async fn in_time<T, E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    step: impl Future<Output = Result<T, E>>,
) -> io::Result<T> {
    timeout(ANSWER_TIME, step).await?.map_err(io::Error::other)
}
