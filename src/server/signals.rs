//! What each signal to the process does.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use nix::sys::signal::Signal::SIGXFSZ;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::watch::Reloaded;
use crate::server::binary_upgrade::NewProcess;
use crate::server::reload::Reloads;
use crate::state::State;

/// The signals that the process acts on.
pub(super) struct Signals {
    hangup: Signal,
    reopen: Signal,
    upgrade: Signal,
    terminate: Signal,
    interrupt: Signal,
    /// A file has reached the process's limit of sizes. By default that ends the process; here the write fails, as on a
    /// full disk.
    _file_too_large: Signal,
}

/// Keeps those signals that ask for something else than the end from ending a process that does not serve yet. What they ask
/// for comes by the start itself, or has nobody to do it.
///
/// # Errors
/// Where the system does not let it.
pub fn survive_early_signals() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let _context = runtime.enter();
    // The system's handler stays when the receivers are gone.
    for kind in [
        SignalKind::hangup(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ] {
        drop(signal(kind)?);
    }
    Ok(())
}

impl Signals {
    /// From now on none of them ends the process by itself.
    ///
    /// # Errors
    /// Where the system does not let it.
    pub fn register() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            upgrade: signal(SignalKind::user_defined2())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _file_too_large: signal(SignalKind::from_raw(SIGXFSZ as i32))?,
        })
    }

    /// Acts on them for as long as the process lives. The first that asks for its end is told by `end`; SIGINT in a drain ends
    /// that.
    pub async fn act(
        mut self,
        state: Arc<State>,
        reloads: Arc<Reloads>,
        reload_now: Sender<Reloaded>,
        mut new_process: NewProcess,
        end: CancellationToken,
    ) {
        let ends = || end.is_cancelled() || state.is_draining();
        loop {
            tokio::select! {
                _ = self.hangup.recv() => if !ends() {
                    reloads.reload(&state.config, &reload_now).await;
                },
                _ = self.reopen.recv() => match state.log.reopen() {
                    Ok(()) => log::info!("access log reopened"),
                    Err(why) => log::error!("the access log cannot be reopened: {why}"),
                },
                _ = self.upgrade.recv() => if !ends() {
                    upgrade(&state, &mut new_process);
                },
                ended = new_process.failed() => match ended {
                    Ok(status) => log::error!("the new process does not take over ({status}), this one goes on"),
                    Err(why) => log::error!("the new process cannot be waited for: {why}"),
                },
                _ = self.terminate.recv() => end.cancel(),
                _ = self.interrupt.recv() => {
                    if ends() {
                        log::warn!("interrupted in a drain");
                        state.end_drain();
                    }
                    end.cancel();
                }
            }
        }
    }
}

/// Starts the process that is to take over. This one goes on until it has.
fn upgrade(state: &State, new_process: &mut NewProcess) {
    if state.config.server.upgrade_socket.is_none() {
        log::error!("no upgrade: the configuration has no `server.upgrade_socket`");
        return;
    }
    match new_process.start() {
        Ok(()) => log::info!("a new process is started to take over"),
        Err(why) => log::error!("no upgrade, a new process cannot be started: {why}"),
    }
}
