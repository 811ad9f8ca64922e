//! A proxy within a command: on loopback, with files of its own, for as long as the command takes; and the client that asks it,
//! by Pingora's own HTTP.

use std::fs::Permissions;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use http::{Method, header};
use pingora_core::protocols::http::v1::client::HttpSession;
use pingora_core::protocols::l4::stream::Stream;
use pingora_http::RequestHeader;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::codec::websocket::{Opcode, ServerEvent, ServerReader, close_frame, text_frame};
use crate::config::{
    Config, Listen, LogFormat, LogSettings, LogTarget, ServerOptions, SocketAddress,
};
use crate::server::Server;

/// For the owner alone, whatever the umask is: the files tell what is asked.
const FOLDER_MODE: u32 = 0o700;
/// All requests have their answers by then.
const DRAIN: Duration = Duration::from_secs(1);
/// One message of a WebSocket, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// Nobody here checks what it is answered with (RFC 6455 §4.1).
const HANDSHAKE_KEY: &str = "AAECAwQFBgcICQoLDA0ODw==";
const NORMAL_CLOSURE: u16 = 1000;
const SWITCHING_PROTOCOLS: u16 = 101;

/// A folder for the command's files, closed to other users, and removed when dropped.
pub(crate) fn temporary_folder() -> io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix("tiergate-")
        .permissions(Permissions::from_mode(FOLDER_MODE))
        .tempdir()
}

/// Has a configuration touch nothing but this folder and loopback ports that are free.
pub(crate) fn isolate(config: &mut Config, folder: &Path) {
    let address = SocketAddress::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    config.listen = vec![Listen::plain(address.clone())];
    config.admin = address;
    config.traces = None;
    config.policy = folder.join("policy.yaml");
    config.access_log = LogSettings {
        target: LogTarget::File(folder.join("access.log")),
        format: LogFormat::Json,
    };
    config.server = ServerOptions {
        threads: 1,
        drain: DRAIN,
        upgrade_socket: None,
    };
}

/// Serves until `play`, which gets the proxy's address, has ended and the proxy has drained: every request then has its line.
///
/// # Errors
/// Those of `play`, a listener or runtime that is not to be had, and a panic of the proxy.
pub(crate) fn while_serving<T>(
    server: Server,
    play: impl AsyncFnOnce(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let proxy = server.address()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = std::thread::spawn(move || {
        server.run_until(async {
            // Ready when the other end is dropped.
            let _ = stopped.await;
        })
    });
    let played = runtime.block_on(play(proxy));
    drop(stop);
    let served = serving.join();
    served.map_err(|_| io::Error::other("the proxy panicked"))?;
    played
}

/// What a request was answered with.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
}

/// Headers of a request, beside those that say how it is carried.
pub(crate) type Headers<'h> = &'h [(&'static str, &'h str)];

/// Of a step towards the proxy, whatever it was.
type Step<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Posts JSON on a connection of its own, and reads the answer to its end.
///
/// # Errors
/// Where the proxy cannot be reached, or the answer is cut.
pub(crate) async fn post(
    proxy: SocketAddr,
    path: &str,
    headers: Headers<'_>,
    body: &str,
) -> Step<Answer> {
    let mut request = request(Method::POST, path, headers)?;
    request.insert_header(header::CONTENT_TYPE, "application/json")?;
    request.insert_header(header::CONTENT_LENGTH, body.len())?;
    let mut session = connect(proxy).await?;
    session.write_request_header(Box::new(request)).await?;
    session.write_body(body.as_bytes()).await?;
    session.finish_body().await?;
    session.read_response().await?;
    let answer = Answer {
        status: session.get_status().map_or(0, |status| status.as_u16()),
        content_type: String::from_utf8_lossy(session.get_header_bytes(header::CONTENT_TYPE))
            .into(),
    };
    while session.read_body_ref().await?.is_some() {}
    Ok(answer)
}

/// Sends one message over a WebSocket of its own, and listens until a message of the other side is the last one. It also
/// returns where no WebSocket is opened, or it ends before.
///
/// # Errors
/// Where the proxy cannot be reached, or the connection breaks.
pub(crate) async fn websocket_request(
    proxy: SocketAddr,
    path: &str,
    headers: Headers<'_>,
    message: &str,
    is_last: fn(&[u8]) -> bool,
) -> Step<()> {
    let mut handshake = request(Method::GET, path, headers)?;
    handshake.insert_header(header::CONNECTION, "Upgrade")?;
    handshake.insert_header(header::UPGRADE, "websocket")?;
    handshake.insert_header(header::SEC_WEBSOCKET_VERSION, "13")?;
    handshake.insert_header(header::SEC_WEBSOCKET_KEY, HANDSHAKE_KEY)?;
    let mut session = connect(proxy).await?;
    session.write_request_header(Box::new(handshake)).await?;
    session.read_response().await?;
    if session
        .get_status()
        .is_none_or(|status| status.as_u16() != SWITCHING_PROTOCOLS)
    {
        return Ok(());
    }
    session.maybe_upgrade_body_writer();
    let mask = random_mask();
    let text = text_frame(message, Some(mask));
    session.write_body(&text).await?;
    listen(&mut session, is_last).await?;
    let close = close_frame(NORMAL_CLOSURE, "", Some(mask));
    session.write_body(&close).await?;
    Ok(())
}

async fn connect(proxy: SocketAddr) -> io::Result<HttpSession> {
    let stream = TcpStream::connect(proxy).await?;
    Ok(HttpSession::new(Box::new(Stream::from(stream))))
}

fn request(method: Method, path: &str, headers: Headers<'_>) -> Step<RequestHeader> {
    let mut request = RequestHeader::build(method, path.as_bytes(), None)?;
    request.insert_header(header::HOST, "tiergate")?;
    for (name, value) in headers {
        request.insert_header(*name, *value)?;
    }
    Ok(request)
}

/// Reads messages until the last one, or the end of them.
async fn listen(session: &mut HttpSession, is_last: fn(&[u8]) -> bool) -> Step<()> {
    let (mut reader, mut message, mut done) = (ServerReader::new(), Vec::new(), false);
    while !done && message.len() <= MAX_MESSAGE {
        let Some(bytes) = session.read_body_ref().await? else {
            break;
        };
        reader.feed(bytes, |event| match event {
            ServerEvent::Payload(piece) => message.extend_from_slice(piece),
            ServerEvent::MessageEnd { .. } => {
                done |= is_last(&message);
                message.clear();
            }
            ServerEvent::Control(frame) => done |= frame.opcode == Opcode::Close,
            ServerEvent::Stopped(_) => done = true,
            ServerEvent::MessageStart { .. } => {}
        });
    }
    Ok(())
}

fn random_mask() -> [u8; 4] {
    let id = Uuid::now_v7();
    // Its last 62 bits are random.
    let [.., a, b, c, d] = *id.as_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_temporary_folder_is_closed_to_other_users() {
        let folder = temporary_folder().unwrap();
        let mode = folder.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
