//! What all requests of the process share. It holds and hands out; it decides nothing.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rust_decimal::Decimal;
use tokio_util::sync::CancellationToken;

use crate::accounting::access_log::AccessLog;
use crate::accounting::metrics::Metrics;
use crate::accounting::prices::Prices;
use crate::accounting::usage::{Observed, UsageState};
use crate::codec::body_budget::Budget;
use crate::config::secret_file::FileBytes;
use crate::config::watch::{Follower, Live, Watch};
use crate::config::{Config, Limits, Mistake};
use crate::policy::Policy;
use crate::policy::in_flight::InFlight;
use crate::upstream::Upstream;

/// How long a drain waits for the handshakes and the first heads of connections that were accepted before it.
pub(crate) const DRAIN_WAIT: Duration = Duration::from_secs(1);

pub struct State {
    pub config: Config,
    pub limits: Arc<Limits>,
    pub policy: Arc<Live<Policy>>,
    pub prices: Option<Arc<Live<Prices>>>,
    pub log: AccessLog,
    pub metrics: Metrics,
    pub budget: Arc<Budget>,
    pub in_flight: InFlight,
    pub started: Instant,
    upstreams: HashMap<String, Arc<Upstream>>,
    /// Cancelled when no further request is to be taken.
    draining: CancellationToken,
    /// Cancelled when those that run have had their time.
    drain_over: CancellationToken,
}

/// Why a process cannot start.
#[derive(Debug)]
pub enum StartError {
    /// Of any configuration file.
    Mistakes(Vec<Mistake>),
    /// What could not be done, and why.
    Io(String, io::Error),
}

impl State {
    /// Loads all that a configuration names. The followers are to be run by [`crate::config::watch::follow`].
    ///
    /// # Errors
    /// Every mistake of the files, or what else is in the way.
    pub fn load(config: Config) -> Result<(Arc<Self>, Vec<Follower>), StartError> {
        let mut followers = Vec::new();
        let upstreams = load_upstreams(&config, &mut followers)?;
        let policy = load_policy(&config, &mut followers)?;
        let prices = load_prices(&config, &mut followers)?;
        let log = AccessLog::open(config.access_log.clone())
            .map_err(|why| StartError::Io("access log".to_owned(), why))?;
        let state = Self {
            limits: Arc::new(config.limits.clone()),
            policy,
            prices,
            log,
            metrics: Metrics::default(),
            budget: Budget::new(config.limits.buffered),
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

    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.config
            .upstreams
            .iter()
            .filter_map(|settings| self.upstreams.get(&settings.name))
    }

    /// What the usage of a response costs in USD; none without a price for each class of tokens that was used.
    pub fn cost(
        &self,
        at: Timestamp,
        model: Option<&str>,
        tier: Option<&str>,
        observed: &Observed,
    ) -> Option<Decimal> {
        if observed.usage_state == UsageState::None {
            return None;
        }
        self.prices
            .as_ref()?
            .current()
            .cost(at, model?, tier, &observed.usage)
    }

    /// From now on no further request is taken.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// For those who wait for the drain to begin.
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Returns when a drain has waited long enough for connections that are about to bring a request.
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

    pub fn is_drain_over(&self) -> bool {
        self.drain_over.is_cancelled()
    }

    /// Why requests should not be sent here, if so.
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.is_draining() {
            Some("draining")
        } else if !self.log.is_written() {
            Some("the access log cannot be written")
        } else {
            None
        }
    }
}

fn load_policy(
    config: &Config,
    followers: &mut Vec<Follower>,
) -> Result<Arc<Live<Policy>>, StartError> {
    let watch = Watch::new(&config.policy);
    let (policy, warnings) = Policy::load(&config.policy, config).map_err(StartError::Mistakes)?;
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    let live = Live::new(policy);
    let (follows, config) = (live.clone(), config.clone());
    followers.push(Follower::new(watch, move |content| {
        let parsed = match content {
            Ok(bytes) => Policy::parse(&config.policy, &bytes, &config),
            Err(why) => Err(vec![Mistake::unreadable(&config.policy, &why)]),
        };
        follows.offer("policy", parsed);
    }));
    Ok(live)
}

fn load_prices(
    config: &Config,
    followers: &mut Vec<Follower>,
) -> Result<Option<Arc<Live<Prices>>>, StartError> {
    let Some(path) = config.prices.clone() else {
        return Ok(None);
    };
    let watch = Watch::new(&path);
    let live = Live::new(Prices::load(&path).map_err(StartError::Mistakes)?);
    let follows = live.clone();
    followers.push(Follower::new(watch, move |content| {
        let parsed = match content {
            Ok(bytes) => Prices::parse(&path, &bytes),
            Err(why) => Err(vec![Mistake::unreadable(&path, &why)]),
        };
        follows.offer("prices", parsed.map(|prices| (prices, Vec::new())));
    }));
    Ok(Some(live))
}

type Upstreams = HashMap<String, Arc<Upstream>>;

fn load_upstreams(config: &Config, followers: &mut Vec<Follower>) -> Result<Upstreams, StartError> {
    let mut upstreams = HashMap::new();
    for settings in &config.upstreams {
        let upstream = Upstream::new(settings.clone()).map_err(|why| {
            StartError::Io(
                format!("upstream `{}`", settings.name),
                io::Error::new(io::ErrorKind::InvalidInput, why),
            )
        })?;
        let upstream = Arc::new(upstream);
        followers.extend(follow_tls(&upstream)?);
        if let Some(file) = &settings.credential_file {
            followers.push(follow_credential(&upstream, file)?);
        }
        upstreams.insert(settings.name.clone(), upstream);
    }
    Ok(upstreams)
}

/// The upstream's authorities and certificate, read now and whenever one of their files changes.
fn follow_tls(upstream: &Arc<Upstream>) -> Result<Vec<Follower>, StartError> {
    let watches: Vec<Watch> = upstream.config.tls.files().map(Watch::new).collect();
    let name = &upstream.config.name;
    upstream
        .load_tls()
        .map_err(|why| StartError::Io(format!("tls of upstream `{name}`"), why))?;
    let followers = watches.into_iter().map(|watch| {
        let upstream = upstream.clone();
        Follower::new(watch, move |_| match upstream.load_tls() {
            Ok(()) => log::info!("upstream `{}`: tls loaded", upstream.config.name),
            // Certificate and key are two files: between the first and the second they do not fit.
            Err(why) => log::warn!(
                "upstream `{}`: tls not loaded, the last good one stays: {why}",
                upstream.config.name
            ),
        })
    });
    Ok(followers.collect())
}

/// The upstream's key, read now and whenever its file changes.
fn follow_credential(upstream: &Arc<Upstream>, file: &Path) -> Result<Follower, StartError> {
    let watch = Watch::new(file);
    upstream
        .load_credential(FileBytes::read(file))
        .map_err(|why| StartError::Io(format!("credential_file {}", file.display()), why))?;
    let (upstream, file) = (upstream.clone(), file.to_owned());
    Ok(Follower::new(watch, move |content| {
        match upstream.load_credential(content) {
            Ok(()) => log::info!("upstream `{}`: key loaded", upstream.config.name),
            Err(why) => log::error!(
                "upstream `{}`: credential_file {}: {why}",
                upstream.config.name,
                file.display()
            ),
        }
    }))
}
