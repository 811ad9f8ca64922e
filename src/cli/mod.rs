//! The command line: each command asks a function that answers, and says how it ends. Nothing here prints or exits: what is
//! said goes to [`Streams`], and the binary ends with the code.

mod admin_client;
mod arguments;
mod budget;
pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod embedded;
pub(crate) mod explain;
mod init;
mod keys;
pub(crate) mod probe;
pub(crate) mod reconcile;
mod reload;
pub mod report;
mod running;
mod same_file;
mod unpriced;

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use http::{HeaderName, HeaderValue};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use log::LevelFilter;

use crate::accounting::prices::Prices;
use crate::cli::arguments::{
    Arguments, BudgetArguments, CheckArguments, Command, ConfigArgument, DiffArguments,
    ExplainArguments, NewKeyArguments, ProbeArguments, ReconcileArguments, ReloadArguments,
    ReportArguments, RunArguments,
};
use crate::cli::check::{Secrets, check, check_config};
use crate::cli::diff::Diff;
use crate::cli::report::ReportError;
use crate::cli::report::filter::Window;
use crate::cli::report::table::Format;
use crate::cli::same_file::is_same_file;
use crate::config::diagnostic::Location;
use crate::config::{Config, Diagnostic, LogTarget};
use crate::policy::group::BudgetRule;
use crate::policy::{Group, Policy};
use crate::server::{Server, survive_early_signals};
use crate::state::StartError;

const DONE: u8 = 0;
const FAILED: u8 = 1;
const BAD_USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;

/// In the place of a file's name or a key: the standard input.
const STDIN: &str = "-";

/// Where a command reads and writes.
pub struct Streams<'s> {
    /// Standard input of the command.
    pub input: &'s mut dyn BufRead,
    /// What was asked for.
    pub out: &'s mut dyn Write,
    /// All else.
    pub err: &'s mut dyn Write,
    /// Whether somebody types the input.
    pub input_is_terminal: bool,
    /// Whether `out` is a terminal.
    pub out_is_terminal: bool,
    /// Whether `err` is a terminal.
    pub err_is_terminal: bool,
}

/// What was asked for on the command line.
pub struct Invocation(Result<Arguments, clap::Error>);

/// How a command ends: with a code, or with what stands in its way.
type Ended = Result<u8, Failure>;

/// Why a command did not do what it was asked.
enum Failure {
    Usage(String),
    Diagnostics(Vec<Diagnostic>),
    Other(String),
}

impl Invocation {
    /// Parses a command line, the program's name first. An error is kept until [`Invocation::run`] tells it.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Invocation {
        Invocation(Arguments::try_parse_from(arguments))
    }

    /// How much is to be logged, where the command line says it.
    pub fn log_level(&self) -> Option<LevelFilter> {
        self.0.as_ref().ok()?.log_level
    }

    /// Does it, and returns the exit code.
    pub fn run(self, streams: &mut Streams<'_>) -> u8 {
        let arguments = match self.0 {
            Ok(arguments) => arguments,
            Err(why) => return answer_without_command(&why, streams),
        };
        let command: &str = (&arguments.command).into();
        match dispatch(arguments.command, streams) {
            Ok(code) => code,
            Err(failure) => failure.tell(command, streams),
        }
    }
}

fn dispatch(command: Command, streams: &mut Streams<'_>) -> Ended {
    match command {
        Command::Run(arguments) => serve(&arguments),
        Command::Check(arguments) => tell_mistakes(&arguments, streams),
        Command::Health(config) => ask_health(&config, streams),
        Command::Reload(arguments) => run_reload(&arguments, streams),
        Command::Budget(arguments) => tell_budgets(&arguments, streams),
        Command::Explain(arguments) => explain(&arguments, streams),
        Command::Diff(arguments) => diff(&arguments, streams),
        Command::NewKey(arguments) => new_key(&arguments, streams),
        Command::HashKey => hash_keys(streams),
        Command::Init { folder } => run_init(&folder, streams),
        Command::Demo => run_demo(streams),
        Command::Probe(arguments) => run_probe(arguments, streams),
        Command::Report(arguments) => write_report(*arguments, streams),
        Command::Reconcile(arguments) => reconcile(&arguments, streams),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tiergate", &mut script);
            streams.print(&script)
        }
        Command::Man { dir } => manual(dir.as_deref(), streams),
    }
}

impl Streams<'_> {
    /// Writes what was asked for.
    fn print(&mut self, text: impl AsRef<[u8]>) -> Ended {
        unless_closed(
            self.out
                .write_all(text.as_ref())
                .and_then(|()| self.out.flush()),
        )
    }
}

/// A reader that has seen enough, as `head` has, is no failure.
fn unless_closed(written: io::Result<()>) -> Ended {
    match written {
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(DONE),
        written => Ok(written.map(|()| DONE)?),
    }
}

/// Help and version are asked for; all else is wrong usage.
fn answer_without_command(why: &clap::Error, streams: &mut Streams<'_>) -> u8 {
    let (out, terminal, code) = if why.use_stderr() {
        (&mut *streams.err, streams.err_is_terminal, BAD_USAGE)
    } else {
        (&mut *streams.out, streams.out_is_terminal, DONE)
    };
    let text = why.render();
    // Nothing can be done where neither can be shown.
    let _ = if terminal && wants_colours() {
        write!(out, "{}", text.ansi())
    } else {
        write!(out, "{text}")
    };
    code
}

/// Whether a terminal may be sent colours.
fn wants_colours() -> bool {
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    has_colours(&variable("NO_COLOR"), &variable("TERM"))
}

/// The same by the variables that say so (<https://no-color.org>, and `TERM` of terminfo(5)).
fn has_colours(no_color: &OsStr, terminal: &OsStr) -> bool {
    no_color.is_empty() && terminal != "dumb"
}

impl Failure {
    /// Says why the command has failed, and returns the exit code.
    fn tell(self, command: &str, streams: &mut Streams<'_>) -> u8 {
        // Nothing can be done where it cannot be told.
        match self {
            Failure::Usage(why) => {
                let mut all = Arguments::command();
                // Whose usage is shown with it.
                all.build();
                let command = all.find_subcommand_mut(command);
                let command = command.expect("it has been run");
                let error = command.error(ErrorKind::ValueValidation, why);
                answer_without_command(&error, streams)
            }
            Failure::Diagnostics(diagnostics) => {
                for diagnostic in &diagnostics {
                    let _ = writeln!(streams.err, "{diagnostic}");
                }
                BAD_CONFIGURATION
            }
            Failure::Other(why) => {
                let _ = writeln!(streams.err, "tiergate: {why}");
                FAILED
            }
        }
    }
}

impl From<Vec<Diagnostic>> for Failure {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        Failure::Diagnostics(diagnostics)
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Failure::Other(why)
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
            StartError::Diagnostics(diagnostics) => Failure::Diagnostics(diagnostics),
            StartError::Io(what, why) => Failure::Other(format!("{what}: {why}")),
        }
    }
}

impl From<ReportError> for Failure {
    fn from(why: ReportError) -> Self {
        match why {
            ReportError::Column(why) => Failure::Usage(why),
            why => Failure::Other(why.to_string()),
        }
    }
}

fn serve(arguments: &RunArguments) -> Ended {
    survive_early_signals()?;
    let (config, warnings) = check_config(&arguments.config.config)?;
    warnings.iter().for_each(Diagnostic::log);
    Server::new(config, arguments.takeover)?.run()?;
    Ok(DONE)
}

fn tell_mistakes(arguments: &CheckArguments, streams: &mut Streams<'_>) -> Ended {
    let path = &arguments.config.config;
    let secrets = if arguments.without_secrets {
        Secrets::Unread
    } else {
        Secrets::Read
    };
    let lines = |diagnostics: &[Diagnostic]| -> String {
        let lines = diagnostics
            .iter()
            .map(|diagnostic| format!("{diagnostic}\n"));
        lines.collect()
    };
    match check(path, secrets) {
        Ok((config, policy, mut warnings)) => {
            warnings.extend(warnings_of_logs(&config, &arguments.logs, streams)?);
            streams.print(lines(&warnings))?;
            if arguments.strict && !warnings.is_empty() {
                return Ok(BAD_CONFIGURATION);
            }
            if let LogTarget::File(log) = &config.access_log.target
                && check::is_left_to_package(log)
            {
                writeln!(
                    streams.err,
                    "{}: its folder is not there yet, and a start needs it; the package or `LogsDirectory=` of systemd makes it",
                    log.display()
                )?;
            }
            writeln!(
                streams.err,
                "{}: no mistakes; upstreams: {}, groups: {}, keys: {}",
                path.display(),
                config.upstreams.len(),
                policy.groups().len(),
                policy.key_count()
            )?;
            Ok(DONE)
        }
        Err(diagnostics) => {
            streams.print(lines(&diagnostics))?;
            Ok(BAD_CONFIGURATION)
        }
    }
}

/// What the logs have that has no price.
fn warnings_of_logs(
    config: &Config,
    logs: &[PathBuf],
    streams: &mut Streams<'_>,
) -> Result<Vec<Diagnostic>, Failure> {
    let prices = load_prices(config.prices.as_deref())?;
    Ok(match (&config.prices, prices) {
        _ if logs.is_empty() => Vec::new(),
        (Some(path), Some(prices)) => unpriced::warnings(&prices, path, logs, &mut streams.err)?,
        _ => {
            let message = "without `prices` nothing of the log has a price";
            vec![Diagnostic::warning(&config.path, Location::START, message)]
        }
    })
}

fn ask_health(argument: &ConfigArgument, streams: &mut Streams<'_>) -> Ended {
    // Mistakes that have come into the file since say nothing of the process that runs.
    let admin = Config::admin_address(&argument.config).map_err(|why| vec![why])?;
    let answer = admin_client::get(&admin, "/readyz")
        .map_err(|why| format!("no proxy answers at {admin}: {why}"))?;
    running::expect(&admin, &argument.config)?;
    streams.print(&answer.body)?;
    Ok(if answer.status == 200 { DONE } else { FAILED })
}

fn tell_budgets(arguments: &BudgetArguments, streams: &mut Streams<'_>) -> Ended {
    let (config, policy, _) = Policy::load_with_config(&arguments.config.config)?;
    let table = match &config.state {
        Some(state) => {
            budget::stored(state, &policy, Timestamp::now()).map_err(|why| why.to_string())?
        }
        None => {
            writeln!(
                streams.err,
                "without `state` sums are in the memory of the running process, which is asked at {}; \
                 of a budget by key the one that is used most is shown",
                config.admin
            )?;
            running::expect(&config.admin, &config.path)?;
            budget::of_process(&config)?
        }
    };
    unless_closed(table.write(arguments.format, &mut streams.out))
}

fn run_reload(arguments: &ReloadArguments, streams: &mut Streams<'_>) -> Ended {
    let path = &arguments.config.config;
    let (config, _) = Config::load(path)?;
    // Who asks for a process by its number knows which one that is.
    if arguments.pid.is_none() {
        running::expect(&config.admin, &config.path)?;
    }
    let reload = reload::run(&config.admin, arguments.pid)?;
    let restart_needed = &reload.restart_needed;
    if !restart_needed.is_empty() {
        let file = path.display();
        let names = restart_needed.join(", ");
        writeln!(
            streams.err,
            "{file}: warning: changes of {names} take effect at a restart or an upgrade"
        )?;
    }
    for failure in &reload.failures {
        writeln!(streams.err, "{failure}")?;
    }
    if !reload.failures.is_empty() {
        return Err(Failure::Other(
            "not reloaded; what was in force before goes on".to_owned(),
        ));
    }
    writeln!(streams.err, "reloaded")?;
    Ok(DONE)
}

fn explain(arguments: &ExplainArguments, streams: &mut Streams<'_>) -> Ended {
    let key_from_stdin = arguments.caller.key.as_deref() == Some(STDIN);
    if key_from_stdin && arguments.body.as_deref() == Some(Path::new(STDIN)) {
        let why = "only one of --key and --body can be read from stdin";
        return Err(Failure::Usage(why.to_owned()));
    }
    let key = match &arguments.caller.key {
        Some(key) => Some(read_key(key, streams)?),
        None => None,
    };
    let body = match &arguments.body {
        Some(body) => Some(read_input(body, streams)?),
        None => None,
    };
    let headers = arguments.headers.iter().map(|text| parse_header(text));
    let headers: Vec<_> = headers.collect::<Result<_, _>>().map_err(Failure::Usage)?;
    let (config, policy, _) = Policy::load_with_config(&arguments.config.config)?;
    let caller = match (key, &arguments.caller.name, &arguments.caller.digest) {
        (Some(key), ..) => Ok(explain::Caller::Key(key)),
        (None, Some(name), _) => explain::Caller::by_name(name, &policy),
        (None, None, digest) => explain::Caller::by_digest(digest.as_deref().unwrap_or_default()),
    };
    let request = caller.and_then(|caller| {
        explain::Request::new(caller, &arguments.method, &arguments.path, headers, body)
    });
    let request = request.map_err(Failure::Usage)?;
    let now = Timestamp::now();
    let spent = |group: &Group, rule: &BudgetRule, key: &[u8; 32]| {
        budget::of_request(&config, group, rule, key, now)
    };
    let explanation = explain::explain(&config, &policy, &request, &spent, now);
    streams.print(if arguments.json {
        json(&explanation.record)?
    } else {
        explanation.to_string()
    })?;
    let refused = arguments.exit_code && explanation.record.denied.is_some();
    Ok(if refused { FAILED } else { DONE })
}

/// One object on a line.
fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value).map_err(io::Error::from)?;
    Ok(text + "\n")
}

fn read_key(given: &str, streams: &mut Streams<'_>) -> Result<String, Failure> {
    if given != STDIN {
        return Ok(given.to_owned());
    }
    let line = if streams.input_is_terminal {
        keys::ask()?
    } else {
        let mut line = String::new();
        streams.input.read_line(&mut line)?;
        line
    };
    match line.trim_end_matches(['\r', '\n']) {
        "" => Err(Failure::Usage("stdin holds no key".to_owned())),
        key => Ok(key.to_owned()),
    }
}

fn read_input(path: &Path, streams: &mut Streams<'_>) -> Result<Vec<u8>, Failure> {
    let read = if path == Path::new(STDIN) {
        let mut bytes = Vec::new();
        streams.input.read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    Ok(read.map_err(|why| format!("cannot read `{}`: {why}", path.display()))?)
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

fn diff(arguments: &DiffArguments, streams: &mut Streams<'_>) -> Ended {
    let (config, _) = Config::load(&arguments.config.config)?;
    let load = |path: &Path| Policy::load(path, &config);
    let (old, new) = (load(&arguments.old)?.0, load(&arguments.new)?.0);
    let mut diff = Diff::between(&old, &new);
    let mut read = Ok(());
    if !arguments.logs.is_empty() {
        let prices = load_prices(arguments.prices.as_deref())?;
        read = diff.read_logs(
            [&old, &new],
            &arguments.logs,
            prices.as_ref(),
            &mut streams.err,
        );
        if let Err(why @ (ReportError::Open { .. } | ReportError::Write(_))) = read {
            return Err(why.into());
        }
    }
    streams.print(if arguments.json {
        json(&diff)?
    } else {
        diff.to_string()
    })?;
    read?;
    let differs = arguments.exit_code && !diff.is_empty();
    Ok(if differs { FAILED } else { DONE })
}

fn load_prices(path: Option<&Path>) -> Result<Option<Prices>, Failure> {
    Ok(path.map(Prices::load).transpose()?)
}

fn new_key(arguments: &NewKeyArguments, streams: &mut Streams<'_>) -> Ended {
    let key = keys::NewKey::generate()?;
    let line = key.policy_line(&arguments.group, arguments.name.as_deref());
    // The line first: a key without it would be of no use to anybody.
    writeln!(streams.err, "{}", line.map_err(Failure::Usage)?)?;
    streams.print(format!("{}\n", key.secret()))
}

fn hash_keys(streams: &mut Streams<'_>) -> Ended {
    if streams.input_is_terminal {
        let key = keys::ask()?;
        let digest = keys::hash(key.as_bytes()).map_err(str::to_owned)?;
        return streams.print(format!("{digest}\n"));
    }
    let mut ended = DONE;
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        if streams.input.read_until(b'\n', &mut line)? == 0 {
            if number == 1 {
                return Err(Failure::Usage("stdin holds no key".to_owned()));
            }
            break;
        }
        let key = line.strip_suffix(b"\n").unwrap_or(&line);
        match keys::hash(key.strip_suffix(b"\r").unwrap_or(key)) {
            Ok(digest) => drop(streams.print(format!("{digest}\n"))?),
            Err(why) => {
                writeln!(streams.err, "line {number}: {why}")?;
                ended = FAILED;
            }
        }
    }
    Ok(ended)
}

fn run_init(folder: &Path, streams: &mut Streams<'_>) -> Ended {
    let written = init::run(folder);
    streams.print(written.map_err(|why| format!("{}: {why}", folder.display()))?)
}

fn run_demo(streams: &mut Streams<'_>) -> Ended {
    // What the proxy says of itself would stand between the lines; what fails is returned.
    log::set_max_level(LevelFilter::Off);
    let highlight = streams.out_is_terminal && wants_colours();
    let screen = demo::run(highlight)?;
    streams.print(screen)
}

fn run_probe(mut arguments: ProbeArguments, streams: &mut Streams<'_>) -> Ended {
    // What the proxy says of itself is not asked for; what fails is in the table.
    log::set_max_level(LevelFilter::Off);
    let (config, policy, _) = Policy::load_with_config(&arguments.config.config)?;
    arguments.options.key = read_key(&arguments.options.key, streams)?;
    let findings = probe::run(&config, &policy, &arguments.options)?;
    for note in &findings.notes {
        writeln!(streams.err, "{note}")?;
    }
    unless_closed(findings.table.write(arguments.format, &mut streams.out))?;
    Ok(if findings.failed { FAILED } else { DONE })
}

/// The page takes the place of nothing that the report is made from.
fn check_page(arguments: &ReportArguments) -> Result<(), Failure> {
    let Some(page) = &arguments.html else {
        return Ok(());
    };
    if page == Path::new("-") {
        let why = "--html names the file of the page; stdout has the report";
        return Err(Failure::Usage(why.to_owned()));
    }
    let inputs = arguments.logs.iter().chain(&arguments.prices);
    let mut inputs = inputs.chain(&arguments.premium);
    match inputs.find(|input| is_same_file(page, input)) {
        None => Ok(()),
        Some(input) => Err(Failure::Usage(format!(
            "--html would overwrite `{}`, which the report reads; name another file for the page",
            input.display()
        ))),
    }
}

fn write_report(arguments: ReportArguments, streams: &mut Streams<'_>) -> Ended {
    check_page(&arguments)?;
    let zone = TimeZone::get(&arguments.time_zone).map_err(|_| {
        let zone = &arguments.time_zone;
        Failure::Usage(format!(
            "unknown time zone `{zone}`; expected one as `Europe/Berlin`"
        ))
    })?;
    let now = Zoned::new(Timestamp::now(), zone.clone());
    let window = match &arguments.month {
        Some(month) => Window::month(month, &zone),
        None => Window::new(arguments.since.as_deref(), arguments.until.as_deref(), &now),
    };
    let options = report::Options {
        logs: arguments.logs,
        by: arguments.by,
        filters: arguments.filters,
        window: window.map_err(Failure::Usage)?,
        time_zone: zone,
        prices: load_prices(arguments.prices.as_deref())?,
        premium: load_prices(arguments.premium.as_deref())?,
        rates: arguments.rates,
        columns: arguments.columns,
        sort: arguments.sort,
        top: arguments.top,
        format: arguments.format,
        html: arguments.html,
    };
    let mut out = io::BufWriter::new(&mut streams.out);
    match report::run(&options, &mut out, &mut streams.err) {
        Ok(()) => Ok(DONE),
        Err(ReportError::Write(why)) => unless_closed(Err(why)),
        Err(why) => Err(why.into()),
    }
}

fn reconcile(arguments: &ReconcileArguments, streams: &mut Streams<'_>) -> Ended {
    let found = reconcile::run(&arguments.options, &mut streams.err)?;
    let table = match arguments.format {
        Format::Table => found.table_for_people(),
        Format::Csv | Format::Json => found.table,
    };
    unless_closed(table.write(arguments.format, &mut streams.out))?;
    Ok(if found.agrees { DONE } else { FAILED })
}

fn manual(folder: Option<&Path>, streams: &mut Streams<'_>) -> Ended {
    let command = Arguments::command();
    match folder {
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            clap_mangen::generate_to(command, folder)?;
            Ok(DONE)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            streams.print(page)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_no_colours_gets_none() {
        let has =
            |no_color: &str, terminal: &str| has_colours(no_color.as_ref(), terminal.as_ref());
        assert!(has("", "xterm") && has("", ""));
        assert!(!has("1", "xterm") && !has("", "dumb"));
    }
}
