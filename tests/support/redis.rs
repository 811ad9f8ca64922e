//! The real server of Redis or Valkey, for `state` that is shared.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{eventually, upstream};

pub struct Redis {
    child: Child,
    program: &'static str,
    options: String,
    pub address: SocketAddr,
    folder: TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// None, and a word about it, where neither server is installed.
pub fn redis() -> Option<Redis> {
    redis_with(|port, _| format!("--port {port}"))
}

/// The same with what stands on its command line, for a server on this port in this folder.
pub fn redis_with(options: impl Fn(u16, &Path) -> String) -> Option<Redis> {
    let is_there = |program: &&&str| {
        let asked = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    };
    let Some(program) = ["redis-server", "valkey-server"].iter().find(is_there) else {
        eprintln!("skipped: there is no `redis-server` or `valkey-server` here");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    // A port that was free may be taken by the time the server binds it.
    for _ in 0..5 {
        let address = upstream::nobody();
        let options = options(address.port(), folder.path());
        if let Some(child) = start(program, &options, address, folder.path()) {
            return Some(Redis {
                child,
                program,
                options,
                address,
                folder,
            });
        }
    }
    panic!("`{program}` does not start");
}

/// None where it has ended at once.
fn start(program: &str, options: &str, address: SocketAddr, folder: &Path) -> Option<Child> {
    let mut child = Command::new(program)
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(options.split(' '))
        .current_dir(folder)
        .stdout(fs::File::create(folder.join("stdout")).unwrap())
        .spawn()
        .unwrap();
    let ended = eventually("the server listens", || {
        let ended = child.try_wait().unwrap();
        let listens = TcpStream::connect(address).is_ok();
        (listens || ended.is_some()).then_some(ended)
    });
    ended.is_none().then_some(child)
}

impl Redis {
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn client(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_connection().unwrap()
    }

    /// It forgets everything.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn start_again(&mut self) {
        let folder = self.folder.path();
        let child = start(self.program, &self.options, self.address, folder);
        self.child = child.expect("its port is still free");
    }

    /// The server has refused this program nothing.
    pub fn assert_no_denials(&self) {
        let denials: Vec<redis::Value> = redis::cmd("ACL")
            .arg("LOG")
            .query(&mut self.client())
            .unwrap();
        assert!(denials.is_empty(), "{denials:?}");
    }

    #[allow(unsafe_code)]
    pub fn signal(&self, signal: i32) {
        let id = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the child has not been waited for, so the id is still its own; sending a signal touches no memory.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
    }
}
