//! What `/status` and `/readyz` say.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::accounting::history::History;
use crate::config::StateStore;
use crate::config::watch::{Load, LoadStatus};
use crate::server::admin::overview::Overview;
use crate::server::reload::LastReload;
use crate::state::State;
use crate::upstream::Address;

/// The body of `/readyz` while requests can be served and billed. A file that could not be taken does not keep the proxy from
/// it, and is told all the same.
pub(super) fn readiness(state: &State) -> String {
    let policy = match state.policy.load_status().newest {
        Load::Taken => None,
        Load::Failed(why) => Some(why),
        Load::Held(why) => Some(format!("{why}; SIGHUP takes it all the same")),
    };
    let prices = state.prices.as_ref().map(|prices| prices.load_status());
    let prices = prices.and_then(|status| status.error().map(str::to_owned));
    let mut errors: Vec<String> = [("policy", policy), ("prices", prices)]
        .into_iter()
        .filter_map(|(what, error)| Some(format!("ok, with the last good {what}:\n{}\n", error?)))
        .collect();
    let faults = state.load_faults.all().into_iter();
    errors.extend(faults.map(|(what, why)| format!("ok, with the last good {what}:\n{why}\n")));
    let fault = state.store_fault();
    errors.extend(fault.map(|why| format!("ok, with the last known sums of budgets:\n{why}\n")));
    if errors.is_empty() {
        return "ok\n".to_owned();
    }
    errors.concat()
}

/// The body of `/readyz` while they cannot be, with what the operator alone is told of why.
pub(super) fn unreadiness(state: &State, why: &str) -> String {
    match state.log.fault().filter(|_| !state.is_draining()) {
        Some(fault) => format!("{why}: {fault}\n"),
        None => format!("{why}\n"),
    }
}

/// How loading a file went: when what is in force was loaded, and what is wrong with what the file holds by now.
fn loading(status: &LoadStatus) -> [(&'static str, Value); 4] {
    [
        ("loaded_at", json!(time(status.loaded_at))),
        ("tried_at", json!(time(status.tried_at))),
        ("outcome", json!(status.outcome())),
        ("last_error", json!(status.error())),
    ]
}

fn policy(state: &State) -> Value {
    let policy = state.policy.current();
    let mut told = json!({
        "revision": policy.revision(),
        "groups": policy.groups().len(),
        "keys": policy.key_count(),
    });
    for (name, value) in loading(&state.policy.load_status()) {
        told[name] = value;
    }
    told
}

/// Null without a price file.
fn prices(state: &State) -> Value {
    let Some(prices) = &state.prices else {
        return Value::Null;
    };
    let mut told = json!({"path": state.config.prices});
    for (name, value) in loading(&prices.load_status()) {
        told[name] = value;
    }
    told
}

/// Where sums outlive the process, and why they do not; null without such a place.
fn store(state: &State) -> Value {
    let Some(store) = &state.config.state else {
        return Value::Null;
    };
    let kind = match store {
        StateStore::File(_) => "file",
        StateStore::Redis(_) => "redis",
    };
    json!({"kind": kind, "last_error": state.store_fault()})
}

/// How the last reload went that SIGHUP asked for. Files that were seen to change have their own members.
fn reload(last: &LastReload) -> Value {
    json!({
        "count": last.count,
        "at": last.at.and_then(time),
        "failures": last.failures,
        "restart_needed": last.restart_needed,
    })
}

/// What each group of the policy has done since the start. Others are gone from it, or refused before theirs was known.
fn groups(state: &State) -> serde_json::Map<String, Value> {
    let mut sums = state.metrics.by_group();
    for group in state.policy.current().groups() {
        sums.entry(group.name.to_string()).or_default();
    }
    let told = sums.into_iter().map(|(name, sums)| {
        let in_flight = state.in_flight.of_group(&name);
        let told = json!({
            "outcomes": sums.outcomes,
            "service_tiers": sums.service_tiers,
            "tokens": sums.tokens,
            "downgraded": sums.downgraded,
            "in_flight": in_flight,
        });
        (name, told)
    });
    told.collect()
}

/// Where clients connect, and until when the certificate there is good; null without TLS.
fn listeners(state: &State) -> Vec<Value> {
    let listeners = state.config.listen.iter();
    let told = listeners.map(|listen| {
        let expiry = listen.tls.as_ref().and_then(|_| {
            let seconds = state.metrics.certificate_expiry(&listen.address).get();
            jiff::Timestamp::from_second(seconds).ok()
        });
        json!({
            "address": listen.address.to_string(),
            "certificate_expires_at": expiry.map(|time| time.to_string()),
        })
    });
    told.collect()
}

/// How an address fares.
fn told(address: &Address) -> Value {
    let told = address.health.snapshot();
    let last_error = told.last_error;
    json!({
        "address": address.socket.to_string(),
        "url": address.origin.url.to_string(),
        "healthy": told.healthy,
        "failures": told.failures,
        "ejected_until": told.ejected_until.and_then(time),
        "check_passes": told.check_passes,
        "last_error": last_error.map(|error| json!({"at": time(error.at), "what": error.what})),
    })
}

fn time(at: SystemTime) -> Option<String> {
    let at = jiff::Timestamp::try_from(at).ok()?;
    Some(at.to_string())
}

/// The body of `/status`, a JSON object.
pub(super) fn status(state: &State, last: &LastReload, history: &History) -> String {
    let overview = Overview::new(state, history);
    let upstreams: serde_json::Map<String, Value> = state
        .upstreams()
        .map(|upstream| {
            let addresses = upstream.addresses();
            let addresses: Vec<_> = addresses.iter().map(|address| told(address)).collect();
            let kind = upstream.config.kind.as_str();
            (
                upstream.config.name.clone(),
                json!({"kind": kind, "addresses": addresses}),
            )
        })
        .collect();
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "configuration": std::path::absolute(&state.config.path).ok(),
        "problems": overview.problems(last),
        "uptime_seconds": state.started.elapsed().as_secs(),
        "draining": state.is_draining(),
        "policy": policy(state),
        "prices": prices(state),
        "reload": reload(last),
        "groups": groups(state),
        "budgets": overview.budgets(),
        "state": store(state),
        "spent_today": overview.spent_today(),
        "last_minute": overview.last_minute(),
        "history": overview.history(),
        "listeners": listeners(state),
        "upstreams": upstreams,
        "connections": state.metrics.connections.get(),
        "requests_in_flight": state.metrics.in_flight.get(),
        "buffered_bytes": state.body_memory.used(),
        "access_log": {"errors": state.log.errors(), "written": !state.log.is_stalled()},
    });
    format!("{value}\n")
}
