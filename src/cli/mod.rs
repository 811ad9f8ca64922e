//! The command line: what can be asked of the program, and which function answers.

pub mod check;
pub mod demo;
pub mod diff;
pub mod embedded;
pub mod explain;
pub mod probe;
pub mod report;

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;

use crate::accounting::access_log::line::Field;
use crate::accounting::prices::Prices;
use crate::cli::check::{Secrets, check, check_config};
use crate::cli::diff::Diff;
use crate::cli::explain::Explanation;
use crate::cli::report::table::Format;
use crate::cli::report::{ReportError, parse_time};
use crate::config::{Config, Mistake, Url};
use crate::policy::{Policy, hash_key};
use crate::server::Server;
use crate::state::StartError;

const FAILED: u8 = 1;
const BAD_USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;

/// [`report::DEFAULT_BY`] as it would be given.
const DEFAULT_BY: &str = "group,key,service_tier_billed";

/// In the place of a file's name: the standard input.
const STDIN: &str = "-";

/// A reverse proxy that decides, per group of API keys, on which service tier every request runs.
#[derive(Parser)]
#[command(
    version,
    subcommand_required = true,
    arg_required_else_help = false,
    after_help = "Begin with `tiergate demo`.\n\n\
        Exit codes: 0 done, 1 failed at run time, 2 wrong usage, 78 bad configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until told to stop.
    Run {
        /// The server configuration; it names the policy.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Take the listening sockets over from the process that serves on the same `upgrade_socket`; it then drains and ends.
        #[arg(long)]
        takeover: bool,
    },
    /// Load everything that `run` would load, and print every mistake as `path:line:column: message`; warnings have the word
    /// `warning:` before the message.
    Check {
        /// The server configuration; it names the policy.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Leave keys and certificates unread: systemd shows the service's credentials to the service alone.
        #[arg(long)]
        without_secrets: bool,
        /// Fail on warnings too.
        #[arg(long)]
        strict: bool,
    },
    /// Say what would happen to a request, and which line of which file decides it. Uses no network.
    Explain(ExplainArguments),
    /// Say what another policy would change: for which groups and keys, and for how much of a log.
    Diff(DiffArguments),
    /// Read API keys from stdin, one to a line, and print their digests for the policy file.
    HashKey,
    /// Show what the proxy does: a few requests through it to an upstream of its own. Needs no file and no network.
    Demo,
    /// Send four small real requests to each group's upstream, and say what it made of the tier. They cost money.
    Probe(ProbeArguments),
    /// Sum requests, tokens and cost out of access logs, by any of their fields.
    Report(ReportArguments),
}

#[derive(Args)]
struct ExplainArguments {
    /// The server configuration; it names the policy.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The client's API key; `-` reads it from stdin, so that it is in no shell history.
    #[arg(long, value_name = "KEY|-")]
    key: String,
    /// The method of the request.
    #[arg(long, default_value = "POST")]
    method: Method,
    /// The path as the client would send it.
    #[arg(long, default_value = "/v1/responses")]
    path: String,
    /// A header of the request; may be given several times.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The request's body; `-` reads it from stdin. Without it the body is `{}`, or none with GET and its like.
    #[arg(long, value_name = "FILE|-")]
    body: Option<PathBuf>,
    /// Print one JSON object with the access log's field names, and `denied`: an error code or null.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct DiffArguments {
    /// The policy as it is.
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The policy as it would be.
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// The server configuration; it has the upstreams.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// An access log: how much of it would have been touched. May be given several times.
    #[arg(long = "log", value_name = "FILE")]
    logs: Vec<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ProbeArguments {
    /// The server configuration; it names the policy.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The API key to ask with; `-` reads it from stdin. The upstream gets it, unless it has a `credential_file`.
    #[arg(long, value_name = "KEY|-")]
    key: String,
    /// Only this group's upstream.
    #[arg(long, value_name = "NAME", conflicts_with = "through")]
    group: Option<String>,
    /// Ask the tiergate that runs at this URL, as a client with this key would, and not the upstreams. The policy says whether
    /// it has to force the tier for the key.
    #[arg(long, value_name = "URL", value_parser = Url::parse)]
    through: Option<Url>,
    /// The model to ask.
    #[arg(long)]
    model: String,
    /// table, csv or json.
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Args)]
struct ReportArguments {
    /// Access logs, also rotated and compressed ones (.gz, .zst); `-` is stdin.
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
    /// The fields to group by.
    #[arg(long, value_name = "FIELD,...", value_delimiter = ',', default_value = DEFAULT_BY)]
    by: Vec<Field>,
    /// Price every request by this file, and not by the cost that its line holds.
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Only requests that began at this time or later: a date, or RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Only requests that began before this time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// table, csv or json.
    #[arg(long, default_value = "table")]
    format: Format,
}

pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(why) => return answer_without_command(&why),
    };
    let result = match arguments.command {
        Command::Run { config, takeover } => serve(&config, takeover),
        Command::Check {
            config,
            without_secrets,
            strict,
        } => tell_mistakes(&config, without_secrets, strict),
        Command::Explain(arguments) => explain(&arguments),
        Command::Diff(arguments) => diff(&arguments),
        Command::HashKey => hash_keys(),
        Command::Demo => run_demo(),
        Command::Probe(arguments) => run_probe(&arguments),
        Command::Report(arguments) => write_report(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Help and version are asked for; all else is wrong usage.
fn answer_without_command(why: &clap::Error) -> ExitCode {
    // Nothing can be done where neither can be shown.
    let _ = why.print();
    if why.use_stderr() {
        BAD_USAGE.into()
    } else {
        ExitCode::SUCCESS
    }
}

/// Why a command did not do what it was asked.
enum Failure {
    Usage(String),
    Mistakes(Vec<Mistake>),
    Other(String),
}

impl Failure {
    fn report(self) -> ExitCode {
        match self {
            Failure::Usage(why) => {
                answer_without_command(&Arguments::command().error(ErrorKind::ValueValidation, why))
            }
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

impl From<StartError> for Failure {
    fn from(why: StartError) -> Self {
        match why {
            StartError::Mistakes(mistakes) => Failure::Mistakes(mistakes),
            StartError::Io(what, why) => Failure::Other(format!("{what}: {why}")),
        }
    }
}

fn serve(path: &Path, takeover: bool) -> Result<(), Failure> {
    let (config, warnings) = check_config(path).map_err(Failure::Mistakes)?;
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    Ok(Server::new(config, takeover)?.run()?)
}

fn tell_mistakes(path: &Path, without_secrets: bool, strict: bool) -> Result<(), Failure> {
    let secrets = if without_secrets {
        Secrets::Unread
    } else {
        Secrets::Read
    };
    let told = |mistakes: &[Mistake]| {
        let lines = mistakes.iter();
        print(
            &lines
                .map(|mistake| format!("{mistake}\n"))
                .collect::<String>(),
        )
    };
    match check(path, secrets) {
        Ok((config, policy, warnings)) => {
            told(&warnings)?;
            if strict && !warnings.is_empty() {
                return Err(Failure::Mistakes(Vec::new()));
            }
            eprintln!(
                "{}: no mistakes; upstreams: {}, groups: {}, keys: {}",
                path.display(),
                config.upstreams.len(),
                policy.groups().len(),
                policy.key_count()
            );
            Ok(())
        }
        Err(mistakes) => {
            told(&mistakes)?;
            Err(Failure::Mistakes(Vec::new()))
        }
    }
}

fn explain(arguments: &ExplainArguments) -> Result<(), Failure> {
    let both = arguments.key == STDIN && arguments.body.as_deref() == Some(Path::new(STDIN));
    if both {
        let why = "only one of --key and --body can be read from stdin";
        return Err(Failure::Usage(why.to_owned()));
    }
    let request = request(arguments)?;
    let (config, policy, _) =
        Policy::load_with_config(&arguments.config).map_err(Failure::Mistakes)?;
    let explanation = explain::explain(&config, &policy, &request);
    print(&if arguments.json {
        json(&explanation)
    } else {
        explanation.to_string()
    })
}

fn json(explanation: &Explanation) -> String {
    // The record's fields are texts and numbers.
    let object = serde_json::to_string(&explanation.record).expect("a record is valid JSON");
    object + "\n"
}

fn request(arguments: &ExplainArguments) -> Result<explain::Request, Failure> {
    let key = read_key(&arguments.key)?;
    let body = arguments.body.as_deref().map(read_input).transpose()?;
    let headers = arguments.headers.iter().map(|text| parse_header(text));
    let headers: Result<_, _> = headers.collect();
    headers
        .and_then(|headers| {
            explain::Request::new(&key, &arguments.method, &arguments.path, headers, body)
        })
        .map_err(Failure::Usage)
}

fn read_key(given: &str) -> Result<String, Failure> {
    match given {
        STDIN => first_line(io::stdin().lock()),
        key => Ok(key.to_owned()),
    }
}

fn first_line(mut input: impl BufRead) -> Result<String, Failure> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    match line.trim_end_matches(['\r', '\n']) {
        "" => Err(Failure::Usage("stdin holds no key".to_owned())),
        key => Ok(key.to_owned()),
    }
}

fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = if path == Path::new(STDIN) {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|why| Failure::Other(format!("cannot read `{}`: {why}", path.display())))
}

/// The messages quote nothing: a header may hold a key.
fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected `name: value`")?;
    let name =
        HeaderName::try_from(name.trim()).map_err(|_| "the name of the header is not valid")?;
    let value =
        HeaderValue::try_from(value.trim()).map_err(|_| "the value of the header is not valid")?;
    Ok((name, value))
}

fn diff(arguments: &DiffArguments) -> Result<(), Failure> {
    let (config, _) = Config::load(&arguments.config).map_err(Failure::Mistakes)?;
    let load = |path: &Path| Policy::load(path, &config).map_err(Failure::Mistakes);
    let (old, new) = (load(&arguments.old)?.0, load(&arguments.new)?.0);
    let mut diff = Diff::between(&old, &new);
    if !arguments.logs.is_empty() {
        diff.read_logs(&arguments.logs).map_err(|(path, why)| {
            Failure::Other(format!("cannot read `{}`: {why}", path.display()))
        })?;
    }
    print(&if arguments.json {
        // Texts and numbers under names that are texts.
        serde_json::to_string(&diff).expect("a difference is valid JSON") + "\n"
    } else {
        diff.to_string()
    })
}

fn hash_keys() -> Result<(), Failure> {
    for line in io::stdin().lock().lines() {
        let line = line?;
        let key = line.trim_end_matches('\r');
        print(&format!("{}\n", hash_key(key.as_bytes())))?;
    }
    Ok(())
}

fn run_demo() -> Result<(), Failure> {
    // What the proxy says of itself would stand between the lines; what fails is returned.
    log::set_max_level(log::LevelFilter::Off);
    let highlight = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let screen = demo::run(highlight)?;
    print(&screen)
}

fn run_probe(arguments: &ProbeArguments) -> Result<(), Failure> {
    // What the proxy says of itself is not asked for; what fails is in the table.
    log::set_max_level(log::LevelFilter::Off);
    let (config, policy, _) =
        Policy::load_with_config(&arguments.config).map_err(Failure::Mistakes)?;
    let key = read_key(&arguments.key)?;
    let options = probe::Options {
        group: arguments.group.as_deref(),
        key: &key,
        model: &arguments.model,
        through: arguments.through.as_ref(),
    };
    let table = probe::run(&config, &policy, &options)?;
    unless_closed(table.write(arguments.format, &mut io::stdout().lock()))
}

fn write_report(arguments: ReportArguments) -> Result<(), Failure> {
    let prices = arguments.prices.as_deref().map(Prices::load).transpose();
    let options = report::Options {
        logs: arguments.logs,
        by: arguments.by,
        prices: prices.map_err(Failure::Mistakes)?,
        since: arguments.since,
        until: arguments.until,
        format: arguments.format,
        progress: io::stderr().is_terminal(),
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    match report::run(&options, &mut out, &mut io::stderr().lock()) {
        Ok(()) => Ok(()),
        Err(ReportError::Write(why)) => unless_closed(Err(why)),
        Err(why) => Err(Failure::Other(why.to_string())),
    }
}

/// Writes to stdout.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    unless_closed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// A reader that has seen enough, as `head` has, is no failure.
fn unless_closed(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_groups_by_the_default_fields_where_none_are_given() {
        let arguments = Arguments::try_parse_from(["tiergate", "report", "x"]).unwrap();
        let Command::Report(arguments) = arguments.command else {
            panic!("another command")
        };
        assert_eq!(arguments.by, report::DEFAULT_BY);
    }
}
