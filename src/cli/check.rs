//! `tiergate check`: loads everything that a start would load, and throws it away. It opens no socket and writes nothing.

use std::path::Path;

use crate::accounting::prices::Prices;
use crate::config::Config;
use crate::config::diagnostic::{Mistake, Place};
use crate::config::file::{Draft, NamedFile};
use crate::config::secret_file::FileBytes;
use crate::http1::idle::Room;
use crate::policy::Policy;
use crate::server::tls;
use crate::upstream::Upstream;
use crate::upstream::tls::UpstreamTlsConfig;

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
/// Every mistake of these and of every other file that the configuration names.
pub fn check(
    path: &Path,
    secrets: Secrets,
) -> Result<(Config, Policy, Vec<Mistake>), Vec<Mistake>> {
    Policy::load_with_draft(read(path, secrets)?)
}

/// The configuration alone and warnings about it: a start reads the policy later.
///
/// # Errors
/// Every mistake of it and of the files that it names, but for the policy.
pub fn check_config(path: &Path) -> Result<(Config, Vec<Mistake>), Vec<Mistake>> {
    let draft = read(path, Secrets::Read)?;
    if draft.mistakes.is_empty() {
        Ok((draft.config, draft.warnings))
    } else {
        Err(draft.mistakes)
    }
}

/// A draft that has the mistakes of the files it names as well, at the settings that name them where a file has no lines.
fn read(path: &Path, secrets: Secrets) -> Result<Draft, Vec<Mistake>> {
    let mut draft = Draft::read(path)?;
    for (place, file) in &draft.files {
        let fault = match file {
            NamedFile::Prices(prices) => {
                let told = Prices::load(prices).err();
                draft.mistakes.extend(told.unwrap_or_default());
                continue;
            }
            _ if secrets == Secrets::Unread => continue,
            NamedFile::Tls(files) => tls::check(files).err().map(|why| why.to_string()),
            NamedFile::UpstreamTls(settings) => UpstreamTlsConfig::load(settings)
                .err()
                .map(|why| why.to_string()),
            NamedFile::Credential(file) => credential_fault(file, &draft.config),
        };
        let told = fault.map(|message| mistake_at(*place, path, message));
        draft.mistakes.extend(told);
    }
    Ok(draft)
}

/// Why an upstream could not take its key from this file.
fn credential_fault(file: &Path, config: &Config) -> Option<String> {
    let mut upstreams = config.upstreams.iter();
    let settings = upstreams.find(|upstream| upstream.credential_file.as_deref() == Some(file))?;
    let upstream = Upstream::new(settings.clone(), &Room::new(0)).ok()?;
    let why = upstream.load_credential(FileBytes::read(file)).err()?;
    Some(format!("{}: {why}", file.display()))
}

fn mistake_at(place: Place, path: &Path, message: String) -> Mistake {
    Mistake {
        path: path.to_owned(),
        line: place.line,
        column: place.column,
        message,
    }
}
