//! An ordinary day, shortened: mixed load at a steady rate, with a new policy each second, rotations and upgrades. Memory,
//! descriptors and threads are to stay as they are. Faults are `main.rs`'s.
//!
//! `TIERGATE_SOAK_MINUTES=n` sets the length, `TIERGATE_SOAK_SVG=path` where the drawing goes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::audit::audit;
use super::chart::{Chart, Curve};
use super::plan::Recipe;
use super::wire::Wire;
use super::{Run, new_seed, number};

const SHORT: Duration = Duration::from_secs(20);
const CLIENTS: usize = 12;
/// Of one client, from visit to visit.
const PACE: Duration = Duration::from_millis(150);
const POLICY_EVERY: Duration = Duration::from_secs(1);
const ROTATION_EVERY: Duration = Duration::from_secs(10);
const UPGRADE_EVERY: Duration = Duration::from_secs(120);
/// Before that a process still fills its pools and caches, and its memory grows.
const WARM_AFTER: Duration = Duration::from_secs(60);
const MOST_SAMPLES: u32 = 600;
const MIB: f64 = 1024.0 * 1024.0;

type Reading = fn(&Sample) -> f64;

/// A reading that is not to grow: how much more the last third of a process's time may show than its first, as a part of
/// it, and beyond that.
struct Flat {
    name: &'static str,
    of: Reading,
    part: f64,
    more: f64,
}

const FLAT: [Flat; 3] = [
    Flat {
        name: "resident MiB",
        of: |sample| sample.resident_mib,
        part: 0.05,
        more: 4.0,
    },
    Flat {
        name: "descriptors",
        of: |sample| sample.descriptors,
        part: 0.1,
        more: 10.0,
    },
    Flat {
        name: "threads",
        of: |sample| sample.threads,
        part: 0.0,
        more: 2.0,
    },
];

/// What one look at the process shows.
#[derive(Clone, Copy)]
struct Sample {
    /// Since the start, in minutes.
    at: f64,
    process: i32,
    resident_mib: f64,
    descriptors: f64,
    threads: f64,
    in_flight: f64,
    connections: f64,
}

/// What happens how often.
struct Timetable {
    length: Duration,
    policy: Duration,
    rotation: Duration,
    upgrade: Duration,
}

impl Timetable {
    fn of(length: Duration) -> Self {
        Self {
            length,
            policy: POLICY_EVERY,
            rotation: ROTATION_EVERY.min(length / 6),
            upgrade: UPGRADE_EVERY.min(length / 6),
        }
    }

    /// In the second half one process is left alone, so that a slow leak has the time to show.
    fn upgrades_at(&self, at: Duration) -> bool {
        at < self.length / 2
    }
}

impl Sample {
    fn take(run: &Run, since: Instant) -> Option<Self> {
        let process = run.operator.process().as_raw();
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let field = |name: &str| -> Option<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse().ok()
        };
        let metrics = metrics(run)?;
        let metric = |name: &str| -> Option<f64> {
            let line = metrics.lines().find(|line| line.starts_with(name))?;
            line.rsplit_once(' ')?.1.parse().ok()
        };
        Some(Self {
            at: since.elapsed().as_secs_f64() / 60.0,
            process,
            resident_mib: field("VmRSS:")? * 1024.0 / MIB,
            descriptors: super::descriptors(&run.operator).len() as f64,
            threads: field("Threads:")?,
            in_flight: metric("tiergate_requests_in_flight ")?,
            connections: metric("tiergate_connections ")?,
        })
    }
}

/// None while one process follows another.
fn metrics(run: &Run) -> Option<String> {
    let mut wire = Wire::connect(run.operator.proxy.admin, false)?;
    wire.within(Duration::from_secs(2));
    wire.send(b"GET /metrics HTTP/1.1\r\nHost: admin.test\r\nConnection: close\r\n\r\n")?;
    let head = wire.head()?;
    let mut body = Vec::new();
    wire.body(&head, &mut body);
    String::from_utf8(body).ok()
}

fn soak(run: &mut Run, timetable: &Timetable) -> Vec<Sample> {
    let begun = Instant::now();
    let sample_every = (timetable.length / MOST_SAMPLES).max(Duration::from_millis(250));
    let (mut sampled, mut rotated, mut upgraded, mut changed) = (begun, begun, begun, begun);
    let mut samples = Vec::new();
    while begun.elapsed() < timetable.length {
        std::thread::sleep(Duration::from_millis(50));
        run.operator.follow_upgrade();
        if is_due(&mut changed, timetable.policy) {
            run.operator.change_policy();
        }
        if is_due(&mut rotated, timetable.rotation) {
            run.operator.rotate();
        }
        if timetable.upgrades_at(begun.elapsed()) && is_due(&mut upgraded, timetable.upgrade) {
            run.operator.upgrade();
        }
        if is_due(&mut sampled, sample_every) {
            samples.extend(Sample::take(run, begun));
        }
    }
    samples
}

fn is_due(last: &mut Instant, every: Duration) -> bool {
    let due = last.elapsed() >= every;
    if due {
        *last = Instant::now();
    }
    due
}

/// Of the last process, the first tenth of the time left out, in which pools and caches fill: the median of the first
/// third of what remains, and that of the last.
fn ends(samples: &[Sample], of: Reading) -> (f64, f64) {
    let last = samples.last().map(|sample| sample.process);
    let own: Vec<f64> = samples
        .iter()
        .filter(|sample| Some(sample.process) == last)
        .map(of)
        .collect();
    let warm = &own[own.len() / 10..];
    let third = warm.len() / 3;
    (median(&warm[..third]), median(&warm[warm.len() - third..]))
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What has grown by more than it may. Of a short run, memory says nothing.
fn grown(samples: &[Sample], length: Duration) -> Vec<String> {
    let mut grown = Vec::new();
    let judged = if length < WARM_AFTER {
        &FLAT[1..]
    } else {
        &FLAT[..]
    };
    for Flat {
        name,
        of,
        part,
        more,
    } in judged
    {
        let (first, last) = ends(samples, *of);
        println!("{name}: {first:.1} in the first third, {last:.1} in the last");
        let flat = last <= first * (1.0 + part) + more;
        if !flat {
            grown.push(format!("{name} grew from {first:.1} to {last:.1}"));
        }
    }
    grown
}

fn draw(samples: &[Sample], title: &str) -> String {
    let curve = |name: &'static str, of: Reading| Curve {
        name,
        points: samples
            .iter()
            .map(|sample| (sample.at, of(sample)))
            .collect(),
    };
    let changes = samples
        .windows(2)
        .filter(|pair| pair[0].process != pair[1].process)
        .map(|pair| pair[1].at);
    let chart = Chart {
        title,
        panels: vec![
            vec![curve("resident memory, MiB", |sample| sample.resident_mib)],
            vec![
                curve("descriptors", |sample| sample.descriptors),
                curve("client connections", |sample| sample.connections),
            ],
            vec![
                curve("threads", |sample| sample.threads),
                curve("requests in flight", |sample| sample.in_flight),
            ],
        ],
        marks: changes.collect(),
    };
    chart.svg()
}

#[test]
fn a_steady_load_with_reloads_rotations_and_upgrades_leaves_nothing_behind() {
    let minutes = number("TIERGATE_SOAK_MINUTES");
    let length = minutes.map_or(SHORT, |minutes| Duration::from_secs(60 * minutes));
    let recipe = Recipe {
        seed: number("TIERGATE_SEED").unwrap_or_else(new_seed),
        calm: true,
    };
    let mut run = Run::begin(recipe, PACE);
    let clients = run.world.populate(CLIENTS);
    let samples = soak(&mut run, &Timetable::of(length));
    run.operator.settle();
    run.world.stop();
    for client in clients {
        client.join().expect("a client does not panic");
    }
    run.assert_quiet();
    run.operator.terminate();
    let looked = audit(&run.world, &run.operator, None);
    let title = format!(
        "{} minutes, {} requests, {} upgrades",
        length.as_secs() / 60,
        looked.lines,
        run.operator.upgrades
    );
    println!("seed {}: {title}; {looked:?}", recipe.seed);
    if let Some(path) = std::env::var_os("TIERGATE_SOAK_SVG").map(PathBuf::from) {
        fs::write(path, draw(&samples, &title)).expect("a drawing");
    }
    let findings = run.world.findings();
    let told: Vec<&str> = findings
        .iter()
        .take(super::MOST_FINDINGS)
        .map(String::as_str)
        .collect();
    assert!(
        findings.is_empty(),
        "{} findings\n{}",
        findings.len(),
        told.join("\n")
    );
    assert!(run.operator.upgrades > 0, "no upgrade");
    assert_eq!(grown(&samples, length), [""; 0]);
}
