//! Reloads that are asked for by SIGHUP: every followed file is read anew, `tiergate.yaml` is compared with what runs, and how
//! it went is kept for `/status`, where `tiergate reload` waits for it.

use std::sync::mpsc::Sender;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::config::redis::read_password;
use crate::config::traces::read_headers;
use crate::config::watch::Reloaded;
use crate::config::{Config, Diagnostic, StateStore};
use crate::server::systemd;

/// How many reloads were asked for, and how the last one went.
#[derive(Default)]
pub struct Reloads {
    last: Mutex<LastReload>,
}

/// How a reload went.
#[derive(Clone, Debug, Default)]
pub struct LastReload {
    /// Reloads since the start, this one included.
    pub count: u64,
    /// None before the first.
    pub at: Option<SystemTime>,
    /// What could not be loaded, with its mistakes.
    pub failures: Vec<String>,
    /// Settings of `tiergate.yaml` that differ from those the process runs with.
    pub restart_needed: Vec<&'static str>,
}

impl Reloads {
    /// The last one.
    pub fn last(&self) -> LastReload {
        self.last.lock().clone()
    }

    /// Has every followed file read anew, good or bad.
    pub async fn reload(&self, running: &Config, reload_now: &Sender<Reloaded>) {
        systemd::reloading();
        let (done, waits) = oneshot::channel();
        let mut failures = match reload_now.send(done) {
            Ok(()) => waits.await.unwrap_or_default(),
            // The reload thread is gone, and with it what there was to wait for.
            Err(_) => Vec::new(),
        };
        failures.extend(unusable_files(running));
        let restart_needed = match compare(running) {
            Ok(restart_needed) => restart_needed,
            Err(diagnostics) => {
                failures.extend(diagnostics);
                Vec::new()
            }
        };
        let mut last = self.last.lock();
        *last = LastReload {
            count: last.count + 1,
            at: Some(SystemTime::now()),
            failures,
            restart_needed,
        };
        drop(last);
        systemd::reloaded();
    }
}

/// What is wrong with files that are read whenever they are needed, and so are followed by nobody.
fn unusable_files(running: &Config) -> Vec<String> {
    let traces = running.traces.as_ref();
    let headers = traces.and_then(|traces| traces.headers_file.as_deref());
    let password = match &running.state {
        Some(StateStore::Redis(server)) => server.password_file.as_deref(),
        _ => None,
    };
    let headers = headers.and_then(|file| read_headers(file).err());
    let password = password.and_then(|file| read_password(file).err());
    let faults = [("headers_file", headers), ("password_file", password)];
    let faults = faults.into_iter().filter_map(|(setting, why)| {
        let told = format!("{setting} {}", why?);
        log::error!("{told}");
        Some(told)
    });
    faults.collect()
}

/// Says where `tiergate.yaml` differs from what runs: it is read at start only.
fn compare(running: &Config) -> Result<Vec<&'static str>, Vec<String>> {
    let path = running.path.display();
    match Config::load(&running.path) {
        Ok((written, _)) => {
            let differing = written.differences(running);
            if !differing.is_empty() {
                let how = match running.server.upgrade_socket {
                    Some(_) => "at a restart or an upgrade (SIGUSR2)",
                    None => "at a restart",
                };
                let settings = differing.join(", ");
                log::warn!("{path} has changed ({settings}): that takes effect {how}");
            }
            Ok(differing)
        }
        Err(diagnostics) => {
            diagnostics.iter().for_each(Diagnostic::log);
            log::error!("{path} has mistakes: this process goes on, and a restart would fail");
            Err(diagnostics.iter().map(ToString::to_string).collect())
        }
    }
}
