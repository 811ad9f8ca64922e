//! What systemd is told (`sd_notify(3)`): ready, reloading, stopping, alive. Without a service manager nothing is. And whether
//! what stands on stderr goes to its journal.
//!
//! The crate `sd-notify` says what is told; it is sent here, because that crate knows no abstract sockets, which
//! `sd_notify(3)` allows for.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::net::{TcpStream, UnixStream};

use crate::config::SocketAddress;
use crate::server::listener::ServerContext;

/// How long a connection to the proxy itself may take to be accepted.
const ACCEPT_TIME: Duration = Duration::from_secs(1);
const ACCEPT_LOOK: Duration = Duration::from_millis(5);
/// How often within its time the watchdog is fed.
const BEATS: u32 = 3;
/// How often within that time it is looked whether the log's disk is waited for. A wait may begin just behind a beat and in
/// the midst of a look.
const LOOKS: u32 = 6;

/// Requests are taken. After a takeover this process is the service's main one.
pub fn ready() {
    notify(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
}

/// Files are being read anew; [`reloaded`] ends it.
pub fn reloading() {
    // The time lets systemd tell this reload from one it asked for later.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(why) => log::warn!("the service manager cannot be told of a reload: {why}"),
    }
}

/// Without the process: another one may be the main one by now.
pub fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// Requests that run are still finished.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Feeds the watchdog, if there is one, for as long as new connections are accepted, or none are to be, or all that serves
/// waits for the log's disk.
pub async fn feed_watchdog(context: &ServerContext, address: &SocketAddress) {
    let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
    let Some(limit) = limit else {
        return;
    };
    // The thread ends when this future does.
    let (_feeding, ended) = mpsc::channel();
    let state = context.state.clone();
    let watching = thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            let disk_time = || state.log.disk_time();
            let feed = || notify(&[NotifyState::Watchdog]);
            feed_while_disk_is_awaited(disk_time, limit / LOOKS, &ended, feed);
        });
    if let Err(why) = watching {
        log::error!("the watchdog is not fed while the access log's disk does not answer: {why}");
    }
    let mut beat = tokio::time::interval(limit / BEATS);
    loop {
        beat.tick().await;
        match tokio::time::timeout(ACCEPT_TIME, accepts(context, address)).await {
            Ok(Ok(())) => notify(&[NotifyState::Watchdog]),
            _ if context.state.is_draining()
                || context.connection_permits.available_permits() == 0 =>
            {
                notify(&[NotifyState::Watchdog]);
            }
            Ok(Err(why)) => {
                log::error!("the watchdog is not fed, no connection to {address}: {why}");
            }
            Err(_) => log::error!("the watchdog is not fed, {address} does not accept"),
        }
    }
}

/// Feeds the watchdog after each of these times of which the most went by in waiting for the log's disk. Threads that serve
/// stand still then, as they should: to end the process would lose the lines of what has reached an upstream. Returns when
/// the other end of `ended` is gone.
fn feed_while_disk_is_awaited(
    disk_time: impl Fn() -> Duration,
    look: Duration,
    ended: &Receiver<()>,
    mut feed: impl FnMut(),
) {
    let (mut looked, mut time) = (Instant::now(), disk_time());
    let mut was_awaited = false;
    while ended.recv_timeout(look) == Err(RecvTimeoutError::Timeout) {
        let passed = looked.elapsed();
        let awaited = disk_time().saturating_sub(time);
        (looked, time) = (looked + passed, time + awaited);
        let is_awaited = awaited > passed / 2;
        if is_awaited {
            feed();
        }
        match (was_awaited, is_awaited) {
            (false, true) => log::error!("the disk of the access log does not answer in time"),
            (true, false) => log::warn!("the disk of the access log answers again"),
            _ => {}
        }
        was_awaited = is_awaited;
    }
}

/// A connection reaches the accepting task, not only the kernel's queue.
async fn accepts(context: &ServerContext, address: &SocketAddress) -> io::Result<()> {
    let before = context.accepted.load(Ordering::Relaxed);
    let _connection = match address {
        SocketAddress::Tcp(address) => {
            OwnedFd::from(TcpStream::connect(address).await?.into_std()?)
        }
        SocketAddress::Unix(path) => OwnedFd::from(UnixStream::connect(path).await?.into_std()?),
    };
    while context.accepted.load(Ordering::Relaxed) == before {
        tokio::time::sleep(ACCEPT_LOOK).await;
    }
    Ok(())
}

/// Whether stderr is the stream that systemd connected to its journal. The variable alone does not say so: a process that has
/// its stderr elsewhere may have inherited it (`systemd.exec(5)`).
pub fn keeps_journal_of_stderr() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let found = stderr.and_then(|stderr| stderr.metadata());
    found.is_ok_and(|found| stream == format!("{}:{}", found.dev(), found.ino()))
}

/// Sends one datagram of `NAME=value` lines to the service manager, if one listens.
fn notify(states: &[NotifyState<'_>]) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
    if let Err(why) = send(path.as_bytes(), &lines.join("\n")) {
        log::warn!("the service manager cannot be told: {why}");
    }
}

fn send(path: &[u8], lines: &str) -> io::Result<()> {
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(lines.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(10);

    /// How often the watchdog is fed within 20 looks, of whose time this part goes by in waiting for the disk.
    fn fed(awaited: f64) -> usize {
        let (began, mut count) = (Instant::now(), 0);
        let (feeding, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            thread::sleep(20 * LOOK);
            drop(feeding);
        });
        let disk_time = || began.elapsed().mul_f64(awaited);
        feed_while_disk_is_awaited(disk_time, LOOK, &ended, || count += 1);
        count
    }

    #[test]
    fn a_process_that_waits_for_its_logs_disk_is_fed_and_one_that_hangs_is_not() {
        assert!(fed(1.0) > 0);
        assert!(fed(0.9) > 0);
        assert_eq!((fed(0.1), fed(0.0)), (0, 0));
    }
}
