//! What all requests of the process share. It holds and hands out; it decides nothing.

mod load;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use jiff::Timestamp;
use parking_lot::Mutex;
use rust_decimal::Decimal;
use tokio_util::sync::CancellationToken;

use crate::accounting::access_log::AccessLog;
use crate::accounting::background::BackgroundResponses;
use crate::accounting::metrics::{FileSnapshot, Metrics, Snapshot, UpstreamSnapshot};
use crate::accounting::prices::Prices;
use crate::accounting::record::Ledger;
use crate::accounting::store::{Store, StoreError};
use crate::accounting::traces::Traces;
use crate::codec::body_memory::BodyMemory;
use crate::config::units::counted;
use crate::config::watch::{FileWatcher, HotReloaded, LoadFaults};
use crate::config::{Config, Diagnostic, Limits};
use crate::policy::budget::{Budgets, Standing};
use crate::policy::in_flight::InFlight;
use crate::policy::{Group, Policy};
use crate::upstream::Upstream;
use load::{Upstreams, load_policy, load_prices, load_upstreams, open_store};

/// How long a drain waits for the handshakes and the first heads of connections that were accepted before it.
pub(crate) const DRAIN_WAIT: Duration = Duration::from_secs(1);

/// What all requests of a process share.
pub struct State {
    /// The configuration as it was when the process started.
    pub config: Config,
    /// Limits of sizes, times and numbers, from the configuration.
    pub limits: Arc<Limits>,
    /// The policy in force, read anew when its file changes.
    pub policy: Arc<HotReloaded<Policy>>,
    /// The price file in force, read anew when it changes; none where none is configured.
    pub prices: Option<Arc<HotReloaded<Prices>>>,
    /// Keys and certificates whose files could not be taken.
    pub load_faults: Arc<LoadFaults>,
    /// The access log.
    pub log: AccessLog,
    /// The metrics that `/metrics` renders.
    pub metrics: Metrics,
    /// Responses that are made in the background and are still to be billed.
    pub background: BackgroundResponses,
    /// Memory for request bodies that are held, in bytes.
    pub body_memory: Arc<BodyMemory>,
    /// What was spent on the fast tier.
    pub budgets: Budgets,
    /// Where spans of requests go, if anywhere.
    pub traces: Option<Traces>,
    store: Option<Store>,
    store_fault: Mutex<Option<StoreFault>>,
    /// Requests that run, and how many may.
    pub in_flight: InFlight,
    /// When the process started, on the monotonic clock.
    pub started: Instant,
    upstreams: Upstreams,
    /// Cancelled when no further request is to be taken.
    draining: CancellationToken,
    /// Cancelled when those that run have had their time.
    drain_over: CancellationToken,
}

/// Why the store cannot be used, and for how many exchanges by now.
struct StoreFault {
    why: String,
    failures: u64,
}

/// Why a process cannot start.
#[derive(Debug)]
pub enum StartError {
    /// Mistakes in the configuration, policy or price file.
    Diagnostics(Vec<Diagnostic>),
    /// What could not be done, and why.
    Io(String, io::Error),
}

impl StartError {
    /// The error of an operation, which is named by `what`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
        move |why| StartError::Io(what.into(), why)
    }
}

impl State {
    /// Loads all that a configuration names. The followers are to be run by [`crate::config::watch::follow`].
    ///
    /// # Errors
    /// Every mistake of the files, or what else is in the way.
    pub fn load(config: Config) -> Result<(Arc<Self>, Vec<FileWatcher>), StartError> {
        let mut followers = Vec::new();
        let load_faults = Arc::new(LoadFaults::default());
        let upstreams = load_upstreams(&config, &load_faults, &mut followers)?;
        let policy = load_policy(&config, &mut followers)?;
        let prices = load_prices(&config, &mut followers)?;
        let store = open_store(&config)?;
        let log =
            AccessLog::open(config.access_log.clone()).map_err(StartError::io("access log"))?;
        let state = Self {
            limits: Arc::new(config.limits.clone()),
            policy,
            prices,
            load_faults,
            log,
            metrics: Metrics::default(),
            background: match &store {
                Some(_) => BackgroundResponses::with_store(),
                None => BackgroundResponses::default(),
            },
            body_memory: BodyMemory::new(config.limits.buffered),
            budgets: Budgets::default(),
            traces: config.traces.as_ref().map(Traces::new),
            store,
            store_fault: Mutex::default(),
            in_flight: InFlight::new(config.limits.requests_in_flight),
            started: Instant::now(),
            upstreams,
            draining: CancellationToken::new(),
            drain_over: CancellationToken::new(),
            config,
        };
        Ok((Arc::new(state), followers))
    }

    /// The upstream of that name. A policy names only those of the configuration it was loaded with.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.get(name)
    }

    /// All upstreams, in the order of the configuration.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.config
            .upstreams
            .iter()
            .filter_map(|settings| self.upstreams.get(&settings.name))
    }

    /// What records are written to, and what they are priced by at this moment.
    pub fn ledger(&self) -> Ledger<'_> {
        Ledger {
            log: &self.log,
            metrics: &self.metrics,
            prices: self.prices.as_ref().map(|prices| prices.current()),
            background: &self.background,
            budgets: &self.budgets,
            traces: self.traces.as_ref(),
            store: self.store.as_ref(),
        }
    }

    /// What the metrics tell of values that live elsewhere.
    pub fn snapshot(&self) -> Snapshot {
        let upstreams = self.upstreams().map(|upstream| {
            let mut addresses = BTreeMap::new();
            for address in upstream.addresses().iter() {
                // Two URLs may lead to the same one, by another host or path.
                *addresses.entry(address.socket.to_string()).or_insert(true) &=
                    address.health.snapshot().healthy;
            }
            UpstreamSnapshot {
                name: upstream.config.name.clone(),
                ejections: upstream.ejections(),
                retries: upstream.retries(),
                addresses,
            }
        });
        let policy = self.policy.current();
        Snapshot {
            policy: file_snapshot(&self.policy, policy.revision()),
            prices: self.prices.as_ref().map(|prices| {
                let current = prices.current();
                file_snapshot(prices, current.revision())
            }),
            buffered_bytes: self.body_memory.used(),
            buffered_limit: self.limits.buffered,
            access_log_errors: self.log.errors(),
            is_access_log_stalled: self.log.is_stalled(),
            files_not_loaded: self.files_not_loaded(),
            upstreams: upstreams.collect(),
            groups: policy
                .groups()
                .iter()
                .map(|group| (group.name.to_string(), group.upstream.name.clone()))
                .collect(),
            budgets: self
                .budgets(&policy)
                .into_iter()
                .map(|(group, used)| (group.name.to_string(), used.used_ratio()))
                .collect(),
        }
    }

    /// How many files hold what could not be taken.
    fn files_not_loaded(&self) -> usize {
        let policy = self.policy.load_status().error().is_some();
        let prices = self.prices.as_ref();
        let prices = prices.is_some_and(|prices| prices.load_status().error().is_some());
        self.load_faults.all().len() + usize::from(policy) + usize::from(prices)
    }

    /// How much of its budget each group of the policy has used; of a budget by key the key which used most.
    pub fn budgets(&self, policy: &Policy) -> Vec<(Arc<Group>, Standing)> {
        let now = Timestamp::now();
        let of_group = |group: &Arc<Group>| {
            let rule = group.budget.as_ref()?;
            let fullest = self.budgets.fullest(rule, &group.name, now);
            Some((group.clone(), fullest))
        };
        policy.groups().iter().filter_map(of_group).collect()
    }

    /// Saves what was spent on the fast tier, and learns what other processes spent. It waits for the store.
    pub fn exchange_with_store(&self) {
        let Some(store) = &self.store else { return };
        let exchanged = store.exchange(&self.budgets, &self.background, Timestamp::now());
        let mut fault = self.store_fault.lock();
        match exchanged {
            Ok(()) => {
                if let Some(StoreFault { failures, .. }) = fault.take() {
                    log::info!("`state` is used again, after {failures} failed attempts");
                }
            }
            Err(why) => {
                self.metrics.state_errors.inc();
                let is_restored = matches!(why, StoreError::FileReplaced);
                let why = why.to_string();
                let failures = fault.as_ref().map_or(0, |fault| fault.failures) + 1;
                if is_restored {
                    log::error!("`state` had lost its sums and background responses: {why}");
                } else if failures == 1 {
                    log::error!("`state` cannot be used, the last known sums count on: {why}");
                }
                *fault = Some(StoreFault { why, failures });
            }
        }
    }

    /// What is told of at the end of the process: that no other will know what was spent and made here.
    ///
    /// # Errors
    /// Where there is something that the store does not have.
    pub fn all_is_stored(&self) -> io::Result<()> {
        let unsaved = self.budgets.unsaved();
        let responses = self.background.changes().created.len();
        if self.store.is_none() || (unsaved.is_empty() && responses == 0) {
            return Ok(());
        }
        let usd: Decimal = unsaved.iter().map(|sum| sum.usd).sum();
        let responses = counted(responses as i64, "background response");
        let why = self.store_fault().unwrap_or_default();
        Err(io::Error::other(format!(
            "{usd} USD of budgets and {responses} are lost to `state`: {why}"
        )))
    }

    /// Whether a response that was made in the background is billed here. It may wait for the store.
    pub fn claim(&self, response_id: &str) -> bool {
        let store = self.store.as_ref();
        store.is_none_or(|store| store.claim(&self.background, response_id))
    }

    /// Returns when it is time for the next exchange with the store; never without one.
    pub async fn next_exchange(&self) {
        match &self.store {
            Some(store) => store.next_exchange(self.store_fault().is_some()).await,
            None => std::future::pending().await,
        }
    }

    /// Why sums that are to outlive the process are kept in memory only, if they are.
    pub fn store_fault(&self) -> Option<String> {
        let fault = self.store_fault.lock();
        fault.as_ref().map(|fault| fault.why.clone())
    }

    /// From now on no further request is taken.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// For those who wait for the drain to begin.
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Whether the process has been told to end and takes no further requests.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Returns when a drain has waited long enough for connections that are about to bring a request, or to end.
    pub async fn drain_waits(&self) {
        self.draining.cancelled().await;
        tokio::time::sleep(DRAIN_WAIT).await;
    }

    /// The requests that run have had their time.
    pub fn end_drain(&self) {
        self.drain_over.cancel();
    }

    /// For those who wait for the end of that time.
    pub fn drain_over(&self) -> CancellationToken {
        self.drain_over.clone()
    }

    /// Whether the time for running requests is over.
    pub fn is_drain_over(&self) -> bool {
        self.drain_over.is_cancelled()
    }

    /// Why requests should not be sent here, if so.
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.is_draining() {
            Some("draining")
        } else if self.log.is_stalled() {
            Some("the access log cannot be written")
        } else {
            None
        }
    }
}

fn file_snapshot<T>(file: &HotReloaded<T>, revision: &str) -> FileSnapshot {
    let status = file.load_status();
    let since_epoch = status.loaded_at.duration_since(UNIX_EPOCH);
    let seconds = since_epoch.unwrap_or_default().as_secs();
    FileSnapshot {
        revision: revision.to_owned(),
        loads: vec![
            ("success", status.taken),
            ("failure", status.failed),
            ("held", status.held),
        ],
        loaded_at: i64::try_from(seconds).unwrap_or(i64::MAX),
    }
}
