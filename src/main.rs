//! The binary: it prints what the commands say and ends with their exit code. All else is in the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn)
        .filter_module("tiergate", log::LevelFilter::Info)
        // Pingora's own lines below errors quote request heads, and with them keys.
        .filter_module("pingora", log::LevelFilter::Off)
        // Any peer could fill the log with what it does in a handshake.
        .filter_module("rustls", log::LevelFilter::Off)
        .format_target(false)
        .init();
    tiergate::cli::run(std::env::args_os())
}
