//! The program as a command that is run to its end.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// The program in this folder, without what the environment of the tests would tell it.
pub fn command(folder: impl AsRef<Path>, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tiergate"));
    command
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .env_remove("TIERGATE_CONFIG");
    command
}

/// Ends the process with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What it says and how it ends.
pub fn run(folder: impl AsRef<Path>, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// The same of a command that is told something.
pub fn run_with_stdin(mut command: Command, stdin: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may be gone by now.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

pub fn stdout(done: &Output) -> String {
    String::from_utf8(done.stdout.clone()).unwrap()
}

pub fn stderr(done: &Output) -> String {
    String::from_utf8(done.stderr.clone()).unwrap()
}
