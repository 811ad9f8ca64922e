//! How the cost of a forced request of 1 KB grows with the keys of the policy and with the connections of clients, and how
//! long requests take while the policy is replaced: `cargo bench --bench growth -- [SECONDS]`. On Linux, with two cores: the
//! proxy has the one, upstream and clients share the other.

mod load;
mod samples;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use load::{Load, Proxy, ROUNDS, quantile};
use samples::{install, request};
use tempfile::TempDir;
use tiergate::policy::hash_key;

const KEYS: [usize; 3] = [10, 10_000, 1_000_000];
const CONNECTIONS: [usize; 4] = [10, 100, 1_000, 5_000];
/// Where it is something else that grows.
const USUAL_CONNECTIONS: usize = 32;
/// Of the policy that is replaced, and the time between two of its editions.
const REPLACED_KEYS: usize = 100_000;
const PACE: Duration = Duration::from_secs(1);
/// How long memory may take to be given back before it is looked at, and a last edition to be read.
const SETTLE: Duration = Duration::from_secs(2);
/// Room for all clients; and for a connection of each to the upstream, for what is to be seen is what clients cost, not what
/// it costs to open connections anew.
const LIMITS: &str = "limits: {connections: 20000, idle_upstream_connections: 20000}\n";

/// What is the same in all of it.
struct Bench {
    upstream: SocketAddr,
    request: Arc<Vec<u8>>,
    time: Duration,
}

/// A proxy and its files, ended before they go.
struct Installed {
    proxy: Proxy,
    folder: TempDir,
}

fn main() -> io::Result<()> {
    let seconds = std::env::args().find_map(|argument| argument.parse().ok());
    load::raise_descriptors();
    load::pin(std::process::id(), 1);
    let bench = Bench {
        upstream: load::start_upstream(load::answer_all)?,
        request: Arc::new(request("agent_1k")),
        time: Duration::from_secs(seconds.unwrap_or(3)),
    };
    println!(
        "CPU per request in µs, median of {ROUNDS} rounds (least to most); ratio to the first"
    );
    bench.add_keys()?;
    bench.add_connections()?;
    bench.replace_policy()
}

impl Bench {
    fn add_keys(&self) -> io::Result<()> {
        let proxies: Vec<_> = KEYS
            .iter()
            .map(|keys| self.start(*keys))
            .collect::<io::Result<_>>()?;
        let costs = load::in_turns(&proxies, |installed| {
            Ok(self.load(&installed.proxy, USUAL_CONNECTIONS)?.cost())
        })?;
        load::print_costs(&KEYS.map(|keys| format!("{keys:>8} keys       ")), costs);
        thread::sleep(SETTLE);
        let (few, many) = (0, KEYS.len() - 1);
        let resident = |of: usize| proxies[of].proxy.resident();
        let each = (resident(many)? - resident(few)?) * 1024.0 / KEYS[many] as f64;
        println!(
            "resident: {} KiB with {} keys, {} KiB with {}: {each:.0} bytes per key",
            resident(few)?,
            KEYS[few],
            resident(many)?,
            KEYS[many]
        );
        Ok(())
    }

    fn add_connections(&self) -> io::Result<()> {
        let installed = self.start(KEYS[0])?;
        let costs = load::in_turns(&CONNECTIONS, |connections| {
            Ok(self.load(&installed.proxy, *connections)?.cost())
        })?;
        let names = CONNECTIONS.map(|connections| format!("{connections:>8} connections"));
        load::print_costs(&names, costs);
        Ok(())
    }

    fn replace_policy(&self) -> io::Result<()> {
        let installed = self.start(REPLACED_KEYS)?;
        let mut editions = Editions::new(installed.folder.path());
        let loads = load::in_turns(&[false, true], |replaced| {
            if *replaced {
                self.load_and_replace(&installed.proxy, &mut editions)
            } else {
                self.load(&installed.proxy, USUAL_CONNECTIONS)
            }
        })?;
        println!(
            "duration of a request in µs, {REPLACED_KEYS} keys, {USUAL_CONNECTIONS} connections, medians of {ROUNDS} rounds"
        );
        println!("{:30} {:>8} {:>8} {:>8}", "policy", "p50", "p99", "longest");
        for (name, loads) in ["as it is", "replaced every second"].iter().zip(&loads) {
            let [median, high, longest] = [0.5, 0.99, 1.0].map(|share| over_rounds(loads, share));
            println!("{name:30} {median:8.0} {high:8.0} {longest:8.0}");
        }
        println!(
            "of {} editions, the first one included, {} decided requests",
            editions.count,
            count_revisions(&installed.folder.path().join("access.log"))?
        );
        Ok(())
    }

    fn start(&self, keys: usize) -> io::Result<Installed> {
        let folder = tempfile::tempdir()?;
        let address = install(folder.path(), &format!("http://{}", self.upstream))?;
        let config = folder.path().join("tiergate.yaml");
        fs::write(&config, fs::read_to_string(&config)? + LIMITS)?;
        fs::write(folder.path().join("policy.yaml"), policy(keys))?;
        let proxy = load::start_tiergate(folder.path(), address)?;
        Ok(Installed { proxy, folder })
    }

    fn load(&self, proxy: &Proxy, connections: usize) -> io::Result<Load> {
        load::load(proxy, &self.request, connections, self.time)
    }

    fn load_and_replace(&self, proxy: &Proxy, editions: &mut Editions) -> io::Result<Load> {
        // Before the load: clients share their core with whoever writes.
        let files = editions.write(self.time.div_duration_f64(PACE).ceil() as usize)?;
        let policy = &editions.policy;
        let load = thread::scope(|scope| {
            let replacing = scope.spawn(move || {
                for file in files {
                    fs::rename(file, policy)?;
                    thread::sleep(PACE);
                }
                Ok::<_, io::Error>(())
            });
            let load = self.load(proxy, USUAL_CONNECTIONS);
            replacing.join().expect("it does not panic")?;
            load
        });
        thread::sleep(SETTLE);
        load
    }
}

/// The one that is used, and others.
fn policy(keys: usize) -> String {
    let mut text = String::from(
        "version: 1\ngroups: {fast: {platform: openai, force_fast_mode: true}}\nkeys:\n  sk-fast: fast\n",
    );
    for number in 1..keys {
        let digest = hash_key(format!("sk-{number}").as_bytes());
        writeln!(text, "  \"{digest}\": {{group: fast, name: k{number}}}").unwrap();
    }
    text
}

/// Files to replace the policy by, which differ from it and from each other in one line.
struct Editions {
    policy: PathBuf,
    count: usize,
}

impl Editions {
    fn new(folder: &Path) -> Editions {
        Editions {
            policy: folder.join("policy.yaml"),
            count: 1,
        }
    }

    fn write(&mut self, count: usize) -> io::Result<Vec<PathBuf>> {
        let text = policy(REPLACED_KEYS);
        let files = (0..count).map(|_| {
            self.count += 1;
            let file = self.policy.with_extension(self.count.to_string());
            fs::write(&file, format!("# edition {}\n{text}", self.count))?;
            Ok(file)
        });
        files.collect()
    }
}

/// The median over all rounds of what this share of requests does not exceed, in µs.
fn over_rounds(loads: &[Load], share: f64) -> f64 {
    let mut found: Vec<Duration> = loads
        .iter()
        .map(|load| quantile(&load.durations, share))
        .collect();
    found.sort_unstable();
    quantile(&found, 0.5).as_secs_f64() * 1e6
}

/// The revisions of the policy that the lines of a log name.
fn count_revisions(log: &Path) -> io::Result<usize> {
    let mut revisions = BTreeSet::new();
    for line in BufReader::new(File::open(log)?).lines() {
        let line = line?;
        let revision = line
            .split_once("\"policy\":\"")
            .and_then(|(_, rest)| rest.split('"').next());
        let revision = revision.ok_or_else(|| io::Error::other(line.clone()))?;
        if !revisions.contains(revision) {
            revisions.insert(revision.to_owned());
        }
    }
    Ok(revisions.len())
}
