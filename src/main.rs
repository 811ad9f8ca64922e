//! The binary: it prints what the commands say and ends with their exit code. All else is in the library.

use std::io::{self, BufReader, IsTerminal, Write};
use std::process::ExitCode;

use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Record};
use tiergate::cli::logging::{Levels, SILENT};
use tiergate::cli::{Invocation, Streams};
use tiergate::server::systemd;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let invocation = Invocation::parse(std::env::args_os());
    let rust_log = std::env::var("RUST_LOG").ok();
    start_logger(Levels::new(invocation.log_level(), rust_log.as_deref()));
    let code = invocation.run(&mut Streams {
        // None of them is locked: the logger writes to stderr, and a log may be read from stdin.
        input: &mut BufReader::new(io::stdin()),
        out: &mut io::stdout(),
        err: &mut io::stderr(),
        input_is_terminal: io::stdin().is_terminal(),
        out_is_terminal: io::stdout().is_terminal(),
        err_is_terminal: io::stderr().is_terminal(),
    });
    code.into()
}

fn start_logger(levels: Levels) {
    let mut logger = env_logger::Builder::new();
    logger
        .filter_level(levels.others)
        .filter_module("tiergate", levels.own)
        .format_target(false);
    for module in SILENT {
        logger.filter_module(module, LevelFilter::Off);
    }
    if systemd::keeps_journal_of_stderr() {
        logger.format(journal_line);
    }
    logger.init();
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
