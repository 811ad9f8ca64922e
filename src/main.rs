//! The binary: it prints what the commands say and ends with their exit code. All else is in the library.

use std::io::{self, BufReader, IsTerminal};
use std::process::ExitCode;

use tiergate::cli::{Invocation, Streams};
use tiergate::server::logging;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut stderr = logging::init();
    let invocation = Invocation::parse(std::env::args_os());
    if let Some(level) = invocation.log_level() {
        logging::set_level(level);
    }
    let code = invocation.run(&mut Streams {
        input: &mut BufReader::new(io::stdin()),
        out: &mut io::stdout(),
        err: &mut stderr,
        input_is_terminal: io::stdin().is_terminal(),
        out_is_terminal: io::stdout().is_terminal(),
        err_is_terminal: io::stderr().is_terminal(),
    });
    log::logger().flush();
    code.into()
}
