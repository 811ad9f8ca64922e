//! A proxy within a command: on loopback, with files of its own, for as long as the command takes.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::codec::websocket::{Opcode, ServerEvent, ServerReader, close_frame, text_frame};
use crate::config::{Config, Listen, LogFormat, LogSettings, LogTarget, ServerOptions};
use crate::server::Server;

/// All requests have their answers by then.
const DRAIN: Duration = Duration::from_secs(1);
/// The head of a handshake's answer, and one message of a WebSocket, in bytes.
const MOST_HELD: usize = 1 << 20;
/// Nobody here checks what it is answered with (RFC 6455 §4.1).
const HANDSHAKE_KEY: &str = "AAECAwQFBgcICQoLDA0ODw==";
const NORMAL_CLOSURE: u16 = 1000;

/// A temporary folder with the command's files, removed when dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> io::Result<Folder> {
        let path = std::env::temp_dir().join(format!("tiergate-{}", Uuid::now_v7()));
        fs::create_dir(&path)?;
        Ok(Folder(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It lies in the system's folder for such things, which is swept.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Has a configuration touch nothing but this folder and loopback ports that are free.
pub(crate) fn confine(config: &mut Config, folder: &Path) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.listen = vec![Listen::plain(address)];
    config.admin = address;
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

/// Serves until `play` has returned and the proxy has drained: every request then has its line.
pub(crate) fn while_serving<T>(
    server: Server,
    play: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = std::thread::spawn(move || {
        server.run_until(async {
            // Ready when the other end is dropped.
            let _ = stopped.await;
        })
    });
    let played = play();
    drop(stop);
    let served = serving.join();
    served.map_err(|_| io::Error::other("the proxy panicked"))?;
    played
}

/// The whole answer to a request, on a connection of its own. `headers`: lines with their ends.
pub(crate) async fn post(
    proxy: SocketAddr,
    path: &str,
    headers: &str,
    body: &str,
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(proxy).await?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: tiergate\r\n{headers}content-type: application/json\r\n\
        content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Sends one message over a WebSocket of its own, and listens until a message of the other side is the last one. It also
/// returns where no WebSocket is opened, or it ends before.
pub(crate) async fn converse(
    proxy: SocketAddr,
    path: &str,
    headers: &str,
    message: &str,
    is_last: fn(&[u8]) -> bool,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(proxy).await?;
    let handshake = format!(
        "GET {path} HTTP/1.1\r\nhost: tiergate\r\n{headers}connection: Upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: {HANDSHAKE_KEY}\r\n\r\n"
    );
    stream.write_all(handshake.as_bytes()).await?;
    let Some(early) = opened(&mut stream).await? else {
        return Ok(());
    };
    let mask = random_mask();
    stream.write_all(&text_frame(message, Some(mask))).await?;
    listen(early, &mut stream, is_last).await?;
    let close = close_frame(NORMAL_CLOSURE, "", Some(mask));
    stream.write_all(&close).await
}

/// What has come behind the head of the handshake's answer; none where it says no.
async fn opened(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    const HEAD_END: &[u8] = b"\r\n\r\n";
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = memchr::memmem::find(&bytes, HEAD_END) {
            let early = bytes.split_off(end + HEAD_END.len());
            return Ok(bytes.starts_with(b"HTTP/1.1 101 ").then_some(early));
        }
        if bytes.len() > MOST_HELD || stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Reads messages until the last one, or the end of them. `bytes`: what has come already.
async fn listen(
    mut bytes: Vec<u8>,
    stream: &mut (impl AsyncRead + Unpin),
    is_last: fn(&[u8]) -> bool,
) -> io::Result<()> {
    let (mut reader, mut message, mut done) = (ServerReader::new(), Vec::new(), false);
    while !done {
        reader.feed(&bytes, |event| match event {
            ServerEvent::Payload(piece) => message.extend_from_slice(piece),
            ServerEvent::MessageEnd { .. } => {
                done |= is_last(&message);
                message.clear();
            }
            ServerEvent::Control(frame) => done |= frame.opcode == Opcode::Close,
            ServerEvent::Stopped(_) => done = true,
            ServerEvent::MessageStart(_) => {}
        });
        bytes.clear();
        let more = !done && message.len() <= MOST_HELD && stream.read_buf(&mut bytes).await? > 0;
        done = !more;
    }
    Ok(())
}

fn random_mask() -> [u8; 4] {
    let id = Uuid::now_v7();
    // Its last 62 bits are random.
    let [.., a, b, c, d] = *id.as_bytes();
    [a, b, c, d]
}
