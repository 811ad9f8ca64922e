//! Faults of all parties at once, chosen by a seed: clients, upstreams, policies, logs and signals. Afterwards the log is
//! held against the upstream's own books. What single faults do, and the exact answers to them, is tested elsewhere.
//!
//! `TIERGATE_SEED=n` runs that seed alone, `TIERGATE_SECONDS=n` goes on with new ones for so long, `TIERGATE_PROGRAM=path`
//! runs another binary than that of this build. `TIERGATE_LOAD_SECONDS=n` is how long clients come in one run, and
//! `TIERGATE_STATE` says where budgets are kept: `memory`, `file`, or `redis`, for which its server has to be installed.

mod audit;
mod bodies;
mod books;
mod budgets;
mod chance;
mod chart;
mod http2;
mod http2_upstream;
mod operator;
mod plan;
mod policies;
mod reading;
mod soak;
mod sockets;
#[path = "../support/mod.rs"]
mod support;
mod upstream;
mod visitors;
mod wire;
mod world;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use audit::{Looked, audit};
use books::Books;
use chance::Chance;
use operator::{Operator, Server, State};
use plan::Recipe;
use policies::{Policies, Policy};
use rust_decimal::Decimal;
use support::redis::redis;
use support::{eventually, proxy};
use upstream::Upstream;
use world::World;

/// Those that are run each time, beside a new one.
const SEEDS: [u64; 3] = [1, 2, 3];
const CLIENTS: usize = 32;
/// Of one client, from visit to visit.
const PACE: Duration = Duration::from_millis(5);
/// How long clients come in one run.
const LOAD: Duration = Duration::from_millis(2500);
const PRICES: &str = "\
version: 1
prices:
  - models: [\"*\"]
    tiers:
      default: {input: 5, output: 30}
      priority: {input: 12.5, output: 75.0000001}
      flex: {input: 2.5, output: 15}
";
/// The most that a request costs by them, in USD.
const DEAREST: Decimal = Decimal::from_parts(21, 0, 0, false, 2);
/// The most findings that are printed.
const MOST_FINDINGS: usize = 12;

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The clients go first.
    Quiet,
    Terminated,
    Killed,
}

/// A proxy between upstreams and clients of the same recipe.
struct Run {
    world: Arc<World>,
    operator: Operator,
    upstreams: Upstreams,
    /// Of the process before anybody came.
    descriptors: Vec<String>,
}

struct Upstreams {
    main: Upstream,
    /// With TLS.
    secure: Upstream,
    /// With HTTP/2.
    modern: http2_upstream::Upstream,
}

impl Run {
    fn begin(recipe: Recipe, pace: Duration) -> Self {
        let mut chance = Chance::of(&[recipe.seed, 14]);
        let books = Arc::new(Books::default());
        let upstreams = Upstreams {
            main: Upstream::run(recipe, &books, false),
            secure: Upstream::run(recipe, &books, true),
            modern: http2_upstream::Upstream::run(recipe, &books),
        };
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("logs")).expect("a folder");
        let policy = Policy::choose(&mut chance, 0);
        let mut policies = Policies::default();
        let _ = policies.written(&policy);
        let state = choose_state(&mut chance);
        let proxy = builder(&mut chance, &upstreams, &state)
            .policy(&policy.text())
            .run_in(folder);
        let world = World::new(recipe, [proxy.address, proxy.tls_address], &books, pace);
        let operator = Operator::of(proxy, recipe, policies, state);
        // It is ready a moment before it has begun to follow its files.
        let descriptors = eventually("the files to be followed", || {
            Some(descriptors(&operator)).filter(|all| all.iter().any(|one| one.contains("inotify")))
        });
        Self {
            world,
            descriptors,
            operator,
            upstreams,
        }
    }

    /// What is kept of each budget is what the log says, once the process has ended; to what was in flight where it was
    /// killed.
    fn check_budgets(&self, end: End) {
        if matches!(self.operator.state, State::Memory) {
            return;
        }
        let spending = audit::spending(&self.operator);
        let in_flight = match end {
            End::Quiet | End::Terminated => Decimal::ZERO,
            End::Killed => DEAREST * Decimal::from(CLIENTS),
        };
        let kept: HashMap<_, _> = self.operator.budgets().into_iter().collect();
        for (account, billed) in spending.totals() {
            if !self.operator.policies.newest_has(account) {
                continue;
            }
            let kept = kept.get(account).copied().unwrap_or_default();
            if (kept - billed).abs() > in_flight {
                let told = self.operator.proxy.stderr();
                let told = told.lines().filter(|line| line.contains("`state`"));
                let told: Vec<&str> = told.collect();
                self.world.find(format!(
                    "{account:?}: {billed} USD by the log, and {kept} by its budget; {told:?}"
                ));
            }
        }
    }

    /// Nobody is left, and it shows.
    fn assert_quiet(&self) {
        self.upstreams.main.rest();
        self.upstreams.secure.rest();
        self.upstreams.modern.rest();
        let proxy = &self.operator.proxy;
        for name in [
            "tiergate_requests_in_flight",
            "tiergate_buffered_bytes",
            "tiergate_connections",
        ] {
            eventually(&format!("no {name}"), || {
                (proxy.metric(name) == 0.0).then_some(())
            });
        }
        assert_eq!(proxy.metric("tiergate_unforced_forwarded_total"), 0.0);
        let deadline = Instant::now() + support::PATIENCE;
        let mut now = descriptors(&self.operator);
        while now.len() > self.descriptors.len() {
            let before = &self.descriptors;
            assert!(
                Instant::now() < deadline,
                "descriptors: {before:?}, and then {now:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
            now = descriptors(&self.operator);
        }
    }
}

/// Where budgets are kept. Without a server in its place: in a file.
fn choose_state(chance: &mut Chance) -> State {
    let ordered = std::env::var("TIERGATE_STATE").ok();
    let chosen = chance.pick(&["memory", "file", "redis"]);
    match ordered.as_deref().unwrap_or(chosen) {
        "memory" => State::Memory,
        "redis" => redis().map_or(State::File, |redis| State::Server(Server::of(redis))),
        _ => State::File,
    }
}

/// A proxy of little patience, so that every limit is met.
fn builder(chance: &mut Chance, upstreams: &Upstreams, state: &State) -> proxy::Builder {
    let settings = format!(
        "connect_timeout: 1s, response_timeout: {}, idle_timeout: {}, on_client_abort: {}, abort_drain: 1s",
        chance.pick(&["1s", "2s"]),
        chance.pick(&["1s", "2s"]),
        chance.pick(&["cancel", "drain"]),
    );
    let program = std::env::var_os("TIERGATE_PROGRAM");
    let builder = proxy::new()
        .upstream_with("main", &upstreams.main, &settings)
        .upstream_with("secure", &upstreams.secure, &settings)
        .upstream_with("modern", &upstreams.modern, &settings)
        .prices(PRICES)
        .log("logs/access.log")
        .tls()
        .setting(
            "limits: {body: 180KB, decoded_body: 400KB, buffered: 2MB, json_depth: 500, websocket_message: 25KB, \
             header_timeout: 1s, body_idle_timeout: 1s, body_timeout: 4s, keepalive_timeout: 2s}",
        )
        .setting(&format!(
            "server: {{drain: 8s, upgrade_socket: upgrade.sock, threads: {}}}",
            chance.between(1, 3)
        ));
    let builder = match state {
        State::Memory => builder,
        State::File => builder.setting("state: state.redb"),
        State::Server(server) => builder.setting(&format!("state: {}", server.url())),
    };
    match program {
        Some(program) => builder.program(program.into()),
        None => builder,
    }
}

/// What each descriptor of the process stands for.
fn descriptors(operator: &Operator) -> Vec<String> {
    let path = format!("/proc/{}/fd", operator.process());
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// One run: some seconds of everything, an end, and the audit.
fn simulate(seed: u64) -> (Looked, Vec<String>) {
    let mut chance = Chance::of(&[seed, 15]);
    let end = chance.pick(&[End::Quiet, End::Quiet, End::Terminated, End::Killed]);
    let recipe = Recipe { seed, calm: false };
    let mut run = Run::begin(recipe, PACE);
    let clients = run.world.populate(CLIENTS);
    let begun = Instant::now();
    let load = number("TIERGATE_LOAD_SECONDS").map_or(LOAD, Duration::from_secs);
    while begun.elapsed() < load {
        std::thread::sleep(chance.millis(10, 120));
        run.operator.act();
    }
    run.operator.settle();
    let mut killed = None;
    match end {
        End::Quiet => run.world.stop(),
        End::Terminated => run.operator.terminate(),
        End::Killed => {
            killed = Some(Instant::now());
            run.operator.kill();
        }
    }
    run.world.stop();
    for client in clients {
        client.join().expect("a client does not panic");
    }
    if end == End::Quiet {
        run.assert_quiet();
        run.operator.terminate();
    }
    run.check_budgets(end);
    let looked = audit(&run.world, &run.operator, killed);
    let findings = std::mem::take(&mut *run.world.findings());
    println!(
        "seed {seed}: {end:?}, {} visits, {} upgrades, {}, {looked:?}",
        run.world.visits(),
        run.operator.upgrades,
        run.operator.state,
    );
    (looked, findings)
}

/// Fails with the seed where anything is wrong.
fn assert_sound(seed: u64) {
    let ran = std::panic::catch_unwind(|| simulate(seed));
    let again = format!("TIERGATE_SEED={seed} cargo test --test faults seed");
    let Ok((looked, findings)) = ran else {
        panic!("again by `{again}`");
    };
    let told = findings.iter().take(MOST_FINDINGS);
    let told: Vec<&str> = told.map(String::as_str).collect();
    assert!(
        findings.is_empty(),
        "{} findings; again by `{again}`\n{}",
        findings.len(),
        told.join("\n")
    );
    assert!(looked.answered > 0, "nothing was looked at: {looked:?}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64 % 1_000_000_000)
}

#[test]
fn whatever_goes_wrong_the_promise_holds_for_these_seeds() {
    if number("TIERGATE_SEED").is_some() || number("TIERGATE_SECONDS").is_some() {
        return;
    }
    SEEDS.into_iter().for_each(assert_sound);
}

#[test]
fn whatever_goes_wrong_the_promise_holds_for_a_new_seed() {
    let deadline = Instant::now() + Duration::from_secs(number("TIERGATE_SECONDS").unwrap_or(0));
    let first = number("TIERGATE_SEED");
    loop {
        assert_sound(first.unwrap_or_else(new_seed));
        if first.is_some() || Instant::now() >= deadline {
            return;
        }
    }
}
