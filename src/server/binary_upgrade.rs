//! The process that comes after this one: the program as it lies on the disk by then, started with the same arguments
//! to take the sockets over. How they are handed to it is that of
//! [`socket_handover`](super::socket_handover).

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{PathBuf, absolute};
use std::process::ExitStatus;

use tokio::process::{Child, Command};

const TAKEOVER: &str = "--takeover";

/// How to start it, and the one that has been started.
pub struct NewProcess {
    program: PathBuf,
    arguments: Vec<OsString>,
    running: Option<Child>,
}

impl NewProcess {
    /// To be called before anything replaces the program or changes the working folder.
    ///
    /// # Errors
    /// Where it cannot be told what program this is.
    pub fn of_this_process() -> io::Result<Self> {
        let mut arguments = env::args_os();
        let called = arguments.next().unwrap_or_default();
        // Later runs have the argument already.
        let mut arguments: Vec<OsString> = arguments.filter(|given| given != TAKEOVER).collect();
        arguments.push(TAKEOVER.into());
        Ok(Self {
            program: locate(&called)?,
            arguments,
            running: None,
        })
    }

    /// Starts it, unless one is on its way.
    ///
    /// # Errors
    /// Where the program cannot be started.
    pub fn start(&mut self) -> io::Result<()> {
        if self.running.is_some() {
            return Err(io::Error::other("one is already starting"));
        }
        let child = Command::new(&self.program)
            .args(&self.arguments)
            // It names this process; the watchdog is for the whole service.
            .env_remove("WATCHDOG_PID")
            .spawn()?;
        self.running = Some(child);
        Ok(())
    }

    /// Returns when a process that was started has ended, which it does only if it cannot take over.
    ///
    /// # Errors
    /// Where it cannot be waited for.
    pub async fn failed(&mut self) -> io::Result<ExitStatus> {
        let Some(child) = &mut self.running else {
            return std::future::pending().await;
        };
        let status = child.wait().await;
        self.running = None;
        status
    }
}

/// The path by which the program was called. What the kernel says of it is no good: it names the file that a symlink
/// led to, or one that has been deleted, and an upgrade is about the file that has taken its place.
fn locate(called: &OsStr) -> io::Result<PathBuf> {
    if called.as_bytes().contains(&b'/') {
        return absolute(called);
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders)
        .map(|folder| folder.join(called))
        .find(|path| path.is_file());
    match found {
        Some(path) => absolute(path),
        None => env::current_exe(),
    }
}
