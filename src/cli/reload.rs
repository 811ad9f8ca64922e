//! `tiergate reload`: sends SIGHUP to the process that serves, and waits until it says on its admin listener how that went.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::cli::admin_client::status_of;
use crate::config::SocketAddress;

/// How long the process may take. A policy of 100,000 keys takes about a second.
const RELOAD_TIME: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What `/status` says of the process and of its last reload.
#[derive(Deserialize)]
struct Status {
    pid: u32,
    draining: bool,
    reload: Reload,
}

/// How a reload went.
#[derive(Deserialize)]
pub(super) struct Reload {
    count: u64,
    /// What could not be loaded, with its mistakes.
    pub(super) failures: Vec<String>,
    /// Settings that take effect at a restart only.
    pub(super) restart_needed: Vec<String>,
}

/// Reloads the process `pid`, or whichever answers at this address and is not about to end.
///
/// # Errors
/// Where there is none, it cannot be sent a signal, or does not say in time how the reload went.
pub(super) fn run(admin: &SocketAddress, pid: Option<u32>) -> Result<Reload, String> {
    let number = |pid: u32| i32::try_from(pid).map(Pid::from_raw);
    let is_gone = |pid| {
        number(pid).is_err() || number(pid).is_ok_and(|pid| kill(pid, None) == Err(Errno::ESRCH))
    };
    if let Some(pid) = pid.filter(|pid| is_gone(*pid)) {
        return Err(format!("there is no process {pid}"));
    }
    let until = Instant::now() + RELOAD_TIME;
    let is_meant = |status: &Status| pid.map_or(!status.draining, |pid| pid == status.pid);
    let before = await_status(admin, until, is_meant)?;
    let process = i32::try_from(before.pid).map_err(|_| "no such process".to_owned())?;
    if name_of(&process.to_string()) != name_of("self") {
        return Err(format!(
            "process {process}, which the proxy at {admin} says it is, is another program here: the proxy may be in a container, and is reloaded from there"
        ));
    }
    kill(Pid::from_raw(process), Signal::SIGHUP)
        .map_err(|why| format!("process {process} cannot be sent SIGHUP: {why}"))?;
    let is_done =
        |status: &Status| status.pid == before.pid && status.reload.count > before.reload.count;
    Ok(await_status(admin, until, is_done)?.reload)
}

/// By what name the kernel knows a process (`proc(5)`); none where there is no such one, or it is not told.
fn name_of(process: &str) -> Option<Vec<u8>> {
    std::fs::read(format!("/proc/{process}/comm")).ok()
}

/// Two processes may answer at one address, while the old one of an upgrade drains.
fn await_status(
    admin: &SocketAddress,
    until: Instant,
    is_wanted: impl Fn(&Status) -> bool,
) -> Result<Status, String> {
    loop {
        let told = status_of(admin).map_err(|why| format!("no proxy answers at {admin}: {why}"))?;
        let status: Status = serde_json::from_slice(&told).map_err(|_| {
            format!("what answers at {admin} is not this program, or another version")
        })?;
        if is_wanted(&status) {
            return Ok(status);
        }
        if Instant::now() > until {
            return Err(format!(
                "the process does not say within {RELOAD_TIME:?} how the reload went"
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
