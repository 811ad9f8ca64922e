//! `tiergate check`: loads everything that a start would load, looks whether it could serve, and throws it away. What it
//! opens it closes again; it leaves no file behind.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::path::Path;

use jiff::Timestamp;

use crate::accounting::prices::Prices;
use crate::accounting::store::{Store, StoreError};
use crate::cli::running::Running;
use crate::cli::same_file::is_same_file;
use crate::config::diagnostic::{Diagnostic, Location};
use crate::config::file::{DEFAULT_ACCESS_LOG, ParsedConfig, ReferencedFile};
use crate::config::redis::read_password;
use crate::config::secret_file::{self, FileBytes};
use crate::config::traces::read_headers;
use crate::config::{Config, StateStore, pem};
use crate::policy::Policy;
use crate::policy::api_key::digest;
use crate::policy::endpoint::{Endpoint, classify};
use crate::server::socket::ListeningSocket;
use crate::server::{socket, tls};
use crate::upstream::Upstream;
use crate::upstream::tls::UpstreamTlsConfig;

/// The unit's `RuntimeDirectory=`.
const RUNTIME_FOLDER: &str = "/run/tiergate";
/// Whether keys and certificates are read. Credentials of systemd can be read by the service, and not by the command of its
/// `ExecReload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    Read,
    Unread,
}

/// The configuration, the policy, and warnings about both.
///
/// # Errors
/// Every mistake of these and of every other file that the configuration names, and what else would keep it from serving.
pub fn check(
    path: &Path,
    secrets: Secrets,
) -> Result<(Config, Policy, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut parsed = read(path, secrets)?;
    add_faults(&mut parsed, |file| match file {
        ReferencedFile::AccessLog(file) => log_fault(file),
        _ => None,
    });
    add_faults(&mut parsed, |file| match file {
        ReferencedFile::State(file) => store_fault(file),
        _ => None,
    });
    check_addresses(&mut parsed);
    let credentials = match secrets {
        Secrets::Read => credentials(&parsed),
        Secrets::Unread => Vec::new(),
    };
    let (config, policy, mut warnings) = Policy::load_with_parsed(parsed)?;
    for (location, digest) in credentials {
        if policy.lists_key(&digest) {
            let message = "the key of this upstream is listed in the policy too: a client that has it needs no proxy";
            warnings.push(Diagnostic::warning(path, location, message));
        }
    }
    warnings.extend(warnings_of_budgets(&config, &policy));
    Ok((config, policy, warnings))
}

/// Tells what is wrong with files at the settings that name them.
fn add_faults(parsed: &mut ParsedConfig, fault: impl Fn(&ReferencedFile) -> Option<String>) {
    let faults = parsed.files.iter().filter_map(|(location, file)| {
        let message = fault(file)?;
        Some(Diagnostic::new(&parsed.config.path, *location, message))
    });
    parsed.diagnostics.extend(faults);
}

/// Budgets that nothing is ever counted against, by the prices of today.
fn warnings_of_budgets(config: &Config, policy: &Policy) -> Vec<Diagnostic> {
    let Some(prices) = config.prices.as_deref() else {
        // That is told where the policy is read.
        return Vec::new();
    };
    let prices = Prices::load(prices);
    if prices.is_ok_and(|prices| prices.has_fast_tier(Timestamp::now())) {
        return Vec::new();
    }
    let groups = policy.groups().iter();
    let with_budget = groups.filter(|group| group.budget.is_some());
    let told = with_budget.map(|group| {
        let message = "no model has a price of tier `priority` today: the budget of this group is never used up";
        Diagnostic::warning(policy.path(), group.location, message)
    });
    told.collect()
}

/// The SHA-256 of each upstream's key, with the place of the setting.
fn credentials(parsed: &ParsedConfig) -> Vec<(Location, [u8; 32])> {
    let files = parsed.files.iter().filter_map(|(location, file)| {
        let ReferencedFile::Credential(file) = file else {
            return None;
        };
        let bytes = FileBytes::read(file).ok()?;
        Some((*location, digest(bytes.trim_ascii())))
    });
    files.collect()
}

/// The configuration alone and warnings about it: a start reads the policy later.
///
/// # Errors
/// Every mistake of it and of the files that it names, but for the policy.
pub fn check_config(path: &Path) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
    read(path, Secrets::Read)?.finish()
}

/// A configuration that has the mistakes of the files it names as well, at the settings that name them where a file has no
/// lines.
fn read(path: &Path, secrets: Secrets) -> Result<ParsedConfig, Vec<Diagnostic>> {
    let mut parsed = ParsedConfig::read(path)?;
    for (location, file) in &parsed.files {
        let fault = match file {
            ReferencedFile::Prices(prices) => {
                match Prices::load_with_warnings(prices) {
                    Ok((_, warnings)) => parsed.warnings.extend(warnings),
                    Err(diagnostics) => parsed.diagnostics.extend(diagnostics),
                }
                continue;
            }
            ReferencedFile::State(file) => state_fault(file),
            ReferencedFile::AccessLog(_) => None,
            ReferencedFile::UpgradeSocket(file) => upgrade_socket_fault(file),
            _ if secrets == Secrets::Unread => None,
            ReferencedFile::Tls(files) => {
                warn_of_validity(&files.cert, path, *location, &mut parsed.warnings);
                tls::check(files).err().map(|why| why.to_string())
            }
            ReferencedFile::UpstreamTls(settings) => {
                if let Some(files) = &settings.identity {
                    warn_of_validity(&files.cert, path, *location, &mut parsed.warnings);
                }
                let loaded = UpstreamTlsConfig::load(settings);
                loaded.err().map(|why| why.to_string())
            }
            ReferencedFile::Credential(file) => credential_fault(file, &parsed.config),
            ReferencedFile::TraceHeaders(file) => {
                read_headers(file).err().map(|why| why.to_string())
            }
            ReferencedFile::RedisPassword(file) => {
                read_password(file).err().map(|why| why.to_string())
            }
        };
        let diagnostic = fault.map(|message| Diagnostic::new(path, *location, message));
        parsed.diagnostics.extend(diagnostic);
    }
    check_written_files(&mut parsed);
    check_health_path(&mut parsed);
    Ok(parsed)
}

fn warn_of_validity(
    certificate: &Path,
    config: &Path,
    location: Location,
    warnings: &mut Vec<Diagnostic>,
) {
    let fault = pem::validity_fault(certificate);
    warnings.extend(fault.map(|fault| Diagnostic::warning(config, location, fault)));
}

/// The log and the state are written to, and a process that takes over connects to a socket: none is a file that something is
/// read from, a socket that clients connect to, or another one of these.
fn check_written_files(parsed: &mut ParsedConfig) {
    let config = &parsed.config;
    let mut read = vec![
        ("the configuration", config.path.as_path()),
        ("`policy`", config.policy.as_path()),
    ];
    let listened = parsed.addresses.iter();
    let listened = listened.filter_map(|(_, address)| address.unix_path());
    read.extend(listened.map(|socket| ("the socket of a listener", socket)));
    let mut written = Vec::new();
    for (location, file) in &parsed.files {
        if file.is_written() {
            let named = file.paths().into_iter();
            written.extend(named.map(|(name, file)| (*location, name, file)));
        } else {
            read.extend(file.paths());
        }
    }
    let faults = written
        .iter()
        .enumerate()
        .filter_map(|(at, (location, name, file))| {
            let others = written[..at].iter().map(|(_, name, file)| (*name, *file));
            let mut others = read.iter().copied().chain(others);
            let (other, _) = others.find(|(_, other)| is_same_file(file, other))?;
            let message = format!("{name} and {other} are the same file");
            Some(Diagnostic::new(&config.path, *location, message))
        });
    parsed.diagnostics.extend(faults);
}

/// What is answered there without a key hides what an upstream serves.
fn check_health_path(parsed: &mut ParsedConfig) {
    let Some(path) = &parsed.config.health_path else {
        return;
    };
    let named = classify(path.as_bytes(), &parsed.config.tier_paths);
    let is_of_api = path.to_ascii_lowercase().starts_with("/v1/");
    if named.endpoint != Endpoint::Other || named.batches || is_of_api {
        let message = "requests to this path are for an upstream; expected a path like `/healthz`";
        let diagnostic = Diagnostic::new(&parsed.config.path, parsed.health_path_at, message);
        parsed.diagnostics.push(diagnostic);
    }
}

fn told(file: &Path, why: &io::Error) -> String {
    format!("{}: {why}", file.display())
}

/// Why a process that takes over could not be offered the listening sockets here.
fn upgrade_socket_fault(file: &Path) -> Option<String> {
    if is_left_to_systemd(file) {
        return None;
    }
    let why = socket::check_path(file).err()?;
    // The service may do what its operator may not.
    (why.kind() != ErrorKind::PermissionDenied)
        .then(|| format!("`upgrade_socket` {}", told(file, &why)))
}

/// Why sums could not be kept in this file.
fn state_fault(file: &Path) -> Option<String> {
    if file.metadata().is_ok_and(|found| !found.is_file()) {
        return Some(format!("{}: not a regular file", file.display()));
    }
    appendable(file).err().map(|why| told(file, &why))
}

/// Why an upstream could not take its key from this file.
fn credential_fault(file: &Path, config: &Config) -> Option<String> {
    let mut upstreams = config.upstreams.iter();
    let settings = upstreams.find(|upstream| upstream.credential_file.as_deref() == Some(file))?;
    let upstream = Upstream::new(settings.clone()).ok()?;
    let why = upstream.load_credential(FileBytes::read(file)).err()?;
    Some(secret_file::told(file, &why))
}

/// Whether this is the default of the access log, and its folder is still to be made, by the package or by systemd.
pub(super) fn is_left_to_package(log: &Path) -> bool {
    log == Path::new(DEFAULT_ACCESS_LOG) && !log.parent().is_some_and(Path::exists)
}

/// Why a start could not open the access log.
fn log_fault(file: &Path) -> Option<String> {
    if is_left_to_package(file) {
        return None;
    }
    let why = appendable(file).err()?;
    Some(format!(
        "the access log cannot be written: {}",
        told(file, &why)
    ))
}

/// Why a start could not use the state file. One that is not there yet, or is empty, is left for the start to make.
fn store_fault(file: &Path) -> Option<String> {
    let found = file.metadata().ok()?;
    if !found.is_file() || found.len() == 0 || appendable(file).is_err() {
        return None;
    }
    match Store::open(&StateStore::File(file.to_owned())) {
        Err(why @ (StoreError::File(_) | StoreError::FileDamaged | StoreError::Server(_))) => {
            Some(format!("{}: {why}", file.display()))
        }
        // A process that runs may hold it for a moment.
        _ => None,
    }
}

/// Whether a file can be written to, or made where there is none yet. A pipe is not opened: it may have no reader now.
fn appendable(file: &Path) -> io::Result<()> {
    // A link that leads nowhere has its file made where it leads.
    if let (Ok(to), false) = (file.read_link(), file.exists()) {
        return appendable(&file.parent().unwrap_or(Path::new("")).join(to));
    }
    match file.metadata() {
        Ok(found) if found.is_file() => OpenOptions::new().append(true).open(file).map(drop),
        Ok(found) if found.is_dir() => Err(ErrorKind::IsADirectory.into()),
        Ok(_) => Ok(()),
        Err(why) if why.kind() == ErrorKind::NotFound => {
            let folder = file
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            tempfile::tempfile_in(folder.unwrap_or(Path::new("."))).map(drop)
        }
        Err(why) => Err(why),
    }
}

/// Whether a start could listen: each address is free of other programs and of the addresses before it, or has a proxy that
/// could hand it over or be replaced.
fn check_addresses(parsed: &mut ParsedConfig) {
    let config = &parsed.config;
    let mut held = Vec::new();
    for (location, address) in &parsed.addresses {
        if address.unix_path().is_some_and(is_left_to_systemd) {
            continue;
        }
        let why = match ListeningSocket::check(address, config.leaves_ipv4(address)) {
            Ok(socket) => {
                held.extend(socket);
                continue;
            }
            Err(why) => why,
        };
        let message = format!("cannot listen on {address}: {why}");
        match why.kind() {
            ErrorKind::AddrInUse if is_ours(config) => {}
            // The service may do what its operator may not.
            ErrorKind::PermissionDenied => {
                let message = message + "; the user who runs the proxy needs the right to";
                let warning = Diagnostic::warning(&config.path, *location, message);
                parsed.warnings.push(warning);
            }
            _ => {
                let diagnostic = Diagnostic::new(&config.path, *location, message);
                parsed.diagnostics.push(diagnostic);
            }
        }
    }
}

/// Whether a socket is to be in the folder that systemd makes for the service and that goes with it.
fn is_left_to_systemd(socket: &Path) -> bool {
    let folder = Path::new(RUNTIME_FOLDER);
    socket.starts_with(folder) && !folder.exists()
}

/// Whether the process that answers at the admin address is one that a process with this configuration would take the place
/// of.
fn is_ours(config: &Config) -> bool {
    Running::at(&config.admin).is_ok_and(|running| running.gives_way_to(config))
}
