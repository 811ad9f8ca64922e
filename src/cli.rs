//! The command line: what can be asked of the program, and which function answers.

use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sha2::{Digest, Sha256};

use crate::config::{Config, Mistake};
use crate::policy::Policy;
use crate::server::Server;
use crate::state::StartError;

const FAILED: u8 = 1;
const BAD_USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;

/// A reverse proxy that decides, per group of API keys, on which service tier every request runs.
#[derive(Parser)]
#[command(version, subcommand_required = true, arg_required_else_help = false)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until told to stop.
    Run {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Take the listening sockets over from the process that serves on the same `upgrade_socket`; it then drains and ends.
        #[arg(long)]
        takeover: bool,
    },
    /// Load everything that `run` would load, and print every mistake as `path:line:column: message`.
    Check {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Read API keys from stdin, one to a line, and print their digests for the policy file.
    HashKey,
}

pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(why) => {
            // Help and version are asked for; all else is wrong usage. Nothing can be done where neither can be shown.
            let _ = why.print();
            return if why.use_stderr() {
                BAD_USAGE.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let result = match arguments.command {
        Command::Run { config, takeover } => serve(&config, takeover),
        Command::Check { config } => check(&config),
        Command::HashKey => hash_keys(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Why a command did not do what it was asked.
enum Failure {
    Mistakes(Vec<Mistake>),
    Other(String),
}

impl Failure {
    fn report(self) -> ExitCode {
        match self {
            Failure::Mistakes(mistakes) => {
                mistakes.iter().for_each(|mistake| eprintln!("{mistake}"));
                BAD_CONFIGURATION.into()
            }
            Failure::Other(why) => {
                eprintln!("tiergate: {why}");
                FAILED.into()
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(why: io::Error) -> Self {
        Failure::Other(why.to_string())
    }
}

fn serve(path: &Path, takeover: bool) -> Result<(), Failure> {
    let (config, warnings) = Config::load(path).map_err(Failure::Mistakes)?;
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    let server = Server::new(config, takeover).map_err(|why| match why {
        StartError::Mistakes(mistakes) => Failure::Mistakes(mistakes),
        StartError::Io(what, why) => Failure::Other(format!("{what}: {why}")),
    })?;
    Ok(server.run()?)
}

fn check(path: &Path) -> Result<(), Failure> {
    let (_, _, warnings) = Policy::load_with_config(path).map_err(|mistakes| {
        mistakes.iter().for_each(|mistake| println!("{mistake}"));
        Failure::Mistakes(Vec::new())
    })?;
    warnings.iter().for_each(|warning| println!("{warning}"));
    Ok(())
}

fn hash_keys() -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let key = line.trim_end_matches('\r');
        writeln!(out, "sha256:{:x}", Sha256::digest(key.as_bytes()))?;
    }
    Ok(())
}
