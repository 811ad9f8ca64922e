//! What a start loads of the files that a configuration names, and what follows each of them.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::StartError;
use crate::accounting::prices::Prices;
use crate::accounting::store::Store;
use crate::config::secret_file::FileBytes;
use crate::config::watch::{FileWatcher, HotReloaded, LoadFaults, Review, WatchedFile};
use crate::config::{Config, Diagnostic, StateStore, pem};
use crate::policy::{Policy, changes};
use crate::upstream::Upstream;

/// The policy, read now and whenever its file changes.
pub(super) fn load_policy(
    config: &Config,
    followers: &mut Vec<FileWatcher>,
) -> Result<Arc<HotReloaded<Policy>>, StartError> {
    let (path, settings) = (config.policy.clone(), config.clone());
    let parse = move |bytes: &[u8]| Policy::parse(&path, bytes, &settings);
    follow("policy", &config.policy, parse, changes::review, followers)
}

/// The prices, read now and whenever their file changes; none where none are configured.
pub(super) fn load_prices(
    config: &Config,
    followers: &mut Vec<FileWatcher>,
) -> Result<Option<Arc<HotReloaded<Prices>>>, StartError> {
    let Some(file) = &config.prices else {
        return Ok(None);
    };
    let path = file.clone();
    let parse = move |bytes: &[u8]| Ok((Prices::parse(&path, bytes)?, Vec::new()));
    let summary = file.display().to_string();
    let review = move |_: &Prices, _: &Prices| Review {
        held: None,
        summary: summary.clone(),
    };
    follow("prices", file, parse, review, followers).map(Some)
}

/// What a file holds, read now and whenever it changes.
fn follow<T: Send + Sync + 'static>(
    what: &'static str,
    path: &Path,
    parse: impl Fn(&[u8]) -> Result<(T, Vec<Diagnostic>), Vec<Diagnostic>> + Send + 'static,
    review: impl Fn(&T, &T) -> Review + Send + 'static,
    followers: &mut Vec<FileWatcher>,
) -> Result<Arc<HotReloaded<T>>, StartError> {
    let (mut watch, file) = (WatchedFile::new(path), path.to_owned());
    let parse = move |content: io::Result<FileBytes>| match content {
        Ok(bytes) => parse(&bytes),
        Err(why) => Err(vec![Diagnostic::unreadable(&file, &why)]),
    };
    let content = match watch.read_first() {
        // It gets better by trying again, as no mistake in the file does.
        Err(why) if why.kind() == io::ErrorKind::ResourceBusy => {
            return Err(StartError::Io(path.display().to_string(), why));
        }
        content => content,
    };
    let (first, warnings) = parse(content).map_err(StartError::Diagnostics)?;
    warnings.iter().for_each(Diagnostic::log);
    let live = HotReloaded::new(first);
    let follows = live.clone();
    followers.push(FileWatcher::new(watch, move |read| {
        follows.publish(what, parse(read.content), read.requested, &review)
    }));
    Ok(live)
}

/// Where sums outlive the process.
pub(super) fn open_store(config: &Config) -> Result<Option<Store>, StartError> {
    let Some(settings) = &config.state else {
        return Ok(None);
    };
    let store = Store::open(settings).map_err(|why| {
        let what = match settings {
            StateStore::File(path) => format!("state {}", path.display()),
            StateStore::Redis(_) => "state".to_owned(),
        };
        StartError::Io(what, io::Error::other(why))
    });
    store.map(Some)
}

pub(super) type Upstreams = HashMap<String, Arc<Upstream>>;

/// The upstreams by their names, with their keys and TLS files, which are read now and whenever they change.
pub(super) fn load_upstreams(
    config: &Config,
    faults: &Arc<LoadFaults>,
    followers: &mut Vec<FileWatcher>,
) -> Result<Upstreams, StartError> {
    let mut upstreams = HashMap::new();
    for settings in &config.upstreams {
        let upstream = Upstream::new(settings.clone())
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))
            .map_err(StartError::io(format!("upstream `{}`", settings.name)))?;
        let upstream = Arc::new(upstream);
        followers.extend(follow_tls(&upstream, faults)?);
        if let Some(file) = &settings.credential_file {
            followers.push(follow_credential(&upstream, file, faults)?);
        }
        upstreams.insert(settings.name.clone(), upstream);
    }
    Ok(upstreams)
}

/// The upstream's authorities and certificate, read now and whenever one of their files changes.
fn follow_tls(
    upstream: &Arc<Upstream>,
    faults: &Arc<LoadFaults>,
) -> Result<Vec<FileWatcher>, StartError> {
    let watches: Vec<WatchedFile> = upstream.config.tls.files().map(WatchedFile::new).collect();
    let what = format!("tls of upstream `{}`", upstream.config.name);
    upstream.load_tls().map_err(StartError::io(what.as_str()))?;
    let followers = watches.into_iter().map(|watch| {
        let upstream = upstream.clone();
        faults.watch(what.clone(), watch, move |_| reload_tls(&upstream))
    });
    Ok(followers.collect())
}

fn reload_tls(upstream: &Upstream) -> Result<(), String> {
    let name = &upstream.config.name;
    if let Err(why) = upstream.load_tls() {
        // Certificate and key are two files: between the first and the second they do not fit.
        let told = format!("upstream `{name}`: tls not loaded, the last good one stays: {why}");
        log::warn!("{told}");
        return Err(told);
    }
    log::info!("upstream `{name}`: tls loaded");
    let identity = upstream.config.tls.identity.as_ref();
    if let Some(fault) = identity.and_then(|files| pem::validity_fault(&files.cert)) {
        log::warn!("upstream `{name}`: {fault}");
    }
    Ok(())
}

/// The upstream's key, read now and whenever its file changes.
fn follow_credential(
    upstream: &Arc<Upstream>,
    file: &Path,
    faults: &Arc<LoadFaults>,
) -> Result<FileWatcher, StartError> {
    let watch = WatchedFile::new(file);
    upstream
        .load_credential(FileBytes::read(file))
        .map_err(StartError::io(format!(
            "credential_file {}",
            file.display()
        )))?;
    let what = format!("key of upstream `{}`", upstream.config.name);
    let (upstream, file) = (upstream.clone(), file.to_owned());
    Ok(faults.watch(what, watch, move |read| {
        reload_credential(&upstream, &file, read.content)
    }))
}

fn reload_credential(
    upstream: &Upstream,
    file: &Path,
    content: io::Result<FileBytes>,
) -> Result<(), String> {
    let name = &upstream.config.name;
    if let Err(why) = upstream.load_credential(content) {
        let file = file.display();
        let told =
            format!("upstream `{name}`: credential_file {file}: {why}; the last good key stays");
        log::error!("{told}");
        return Err(told);
    }
    log::info!("upstream `{name}`: key loaded");
    Ok(())
}
