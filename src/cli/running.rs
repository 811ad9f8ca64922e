//! The process that answers at an admin address, and which configuration it is for.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cli::admin_client::status_of;
use crate::cli::same_file::is_same_file;
use crate::config::{Config, SocketAddress};

/// What `/status` says of it.
#[derive(Deserialize)]
pub(super) struct Running {
    /// None where an older version does not say.
    configuration: Option<PathBuf>,
    listeners: Vec<Listener>,
}

#[derive(Deserialize)]
struct Listener {
    address: String,
}

impl Running {
    /// # Errors
    /// Where nobody answers, or another program.
    pub(super) fn at(admin: &SocketAddress) -> io::Result<Self> {
        Ok(serde_json::from_slice(&status_of(admin)?)?)
    }

    /// Whether it gives way to a process with this configuration: it has the same file, or a listener of the same address.
    pub(super) fn gives_way_to(&self, config: &Config) -> bool {
        let mut own = config.listen.iter().map(|own| own.address.to_string());
        let is_listening = own.any(|own| self.listeners.iter().any(|other| other.address == own));
        let file = self.configuration.as_deref();
        is_listening || file.is_some_and(|file| is_same_file(file, &config.path))
    }
}

/// # Errors
/// Where the process at the admin address says that it runs with another configuration than this one.
pub(super) fn expect(admin: &SocketAddress, path: &Path) -> Result<(), String> {
    let running = Running::at(admin).ok();
    match running.and_then(|running| running.configuration) {
        Some(other) if !is_same_file(&other, path) => Err(format!(
            "the process at {admin} runs with another configuration, {}",
            other.display()
        )),
        _ => Ok(()),
    }
}
