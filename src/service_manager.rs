//! What systemd is told (`sd_notify(3)`): ready, reloading, stopping, alive. Without a service manager nothing is.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpStream;

use crate::listen::Site;

/// How long a connection to the proxy itself may take to be accepted.
const ACCEPT_TIME: Duration = Duration::from_secs(1);
const ACCEPT_LOOK: Duration = Duration::from_millis(5);

/// Requests are taken. After a takeover this process is the service's main one.
pub fn ready() {
    tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
}

/// Files are being read anew; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(why) => log::warn!("the monotonic clock cannot be read: {why}"),
    }
}

/// Requests that run are still finished.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Feeds the watchdog, if there is one, for as long as new connections are accepted.
pub async fn feed_watchdog(site: &Site, address: Option<SocketAddr>) {
    let (Some(limit), Some(address)) = (sd_notify::watchdog_enabled(), address) else {
        return;
    };
    let mut beat = tokio::time::interval(limit / 3);
    loop {
        beat.tick().await;
        match tokio::time::timeout(ACCEPT_TIME, accepts(site, address)).await {
            Ok(Ok(())) => tell(&[NotifyState::Watchdog]),
            Ok(Err(why)) => {
                log::error!("the watchdog is not fed, no connection to {address}: {why}")
            }
            Err(_) => log::error!("the watchdog is not fed, {address} does not accept"),
        }
    }
}

/// A connection reaches the accepting task, not only the kernel's queue.
async fn accepts(site: &Site, address: SocketAddr) -> std::io::Result<()> {
    let before = site.accepted.load(Ordering::Relaxed);
    let _connection = TcpStream::connect(address).await?;
    while site.accepted.load(Ordering::Relaxed) == before {
        tokio::time::sleep(ACCEPT_LOOK).await;
    }
    Ok(())
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(why) = sd_notify::notify(states) {
        log::warn!("the service manager cannot be told {states:?}: {why}");
    }
}
