//! A proxy within a command: on loopback, with files of its own, for as long as the command takes.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::config::{Config, Listen, LogFormat, LogSettings, LogTarget, ServerOptions};
use crate::server::Server;

/// All requests have their answers by then.
const DRAIN: Duration = Duration::from_secs(1);

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
