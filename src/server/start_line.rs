//! What a process says when it serves.

use crate::config::LogTarget;
use crate::config::units::counted;
use crate::state::State;

/// What runs, in one line.
pub(super) fn start_line(state: &State) -> String {
    let config = &state.config;
    let listeners = config.listen.iter().map(|listen| match &listen.tls {
        Some(_) => format!("{} (TLS)", listen.address),
        None => listen.address.to_string(),
    });
    let upstreams = config.upstreams.iter().map(|upstream| {
        let urls: Vec<String> = upstream.urls.iter().map(ToString::to_string).collect();
        format!("{} {}", upstream.name, urls.join(" "))
    });
    let prices = match (&config.prices, &state.prices) {
        (Some(path), Some(prices)) => {
            format!("{} {}", path.display(), prices.current().revision())
        }
        _ => "none".to_owned(),
    };
    let access_log = match &config.access_log.target {
        LogTarget::Stdout => "stdout".to_owned(),
        LogTarget::File(path) => path.display().to_string(),
        LogTarget::Socket(path) => format!("unix:{}", path.display()),
    };
    let policy = state.policy.current();
    format!(
        "tiergate {} serves on {}; admin {}; configuration {}; policy {} {}, {}, {}; upstreams {}; \
         prices {prices}; access log {access_log}",
        env!("CARGO_PKG_VERSION"),
        listeners.collect::<Vec<_>>().join(", "),
        config.admin,
        config.path.display(),
        config.policy.display(),
        policy.revision(),
        counted(policy.groups().len() as u64, "group"),
        counted(policy.key_count() as u64, "key"),
        upstreams.collect::<Vec<_>>().join(", "),
    )
}
