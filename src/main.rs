//! The binary: it prints what the commands say and ends with their exit code. All else is in the library.

use std::io::{self, Write};
use std::process::ExitCode;

use env_logger::fmt::Formatter;
use log::{Level, Record};
use tiergate::server::systemd;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut logger = env_logger::Builder::new();
    logger
        .filter_level(log::LevelFilter::Warn)
        .filter_module("tiergate", log::LevelFilter::Info)
        // Pingora's own lines below errors quote request heads, and with them keys.
        .filter_module("pingora", log::LevelFilter::Off)
        // Any peer could fill the log with what it does in a handshake.
        .filter_module("rustls", log::LevelFilter::Off)
        .format_target(false);
    if systemd::keeps_journal_of_stderr() {
        logger.format(journal_line);
    }
    logger.init();
    tiergate::cli::run(std::env::args_os())
}

/// The journal takes the level from the front of the line (`sd-daemon(3)`), so that `journalctl -p warning` finds it.
fn journal_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    writeln!(out, "<{priority}>{}", record.args())
}
