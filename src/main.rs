//! The binary: it prints what the commands say and ends with their exit code. All else is in the library.

use std::process::ExitCode;

use tiergate::server::logging;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    logging::init();
    let code = tiergate::cli::run(std::env::args_os());
    // What was said again and again may wait to be counted.
    log::logger().flush();
    code
}
