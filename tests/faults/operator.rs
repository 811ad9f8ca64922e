//! Whoever runs the proxy: edits its policy well and badly, rotates, loses and fills its log, sends signals, upgrades it,
//! and ends it.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rust_decimal::Decimal;
use serde_json::Value;

use super::budgets::Account;
use super::chance::Chance;
use super::plan::Recipe;
use super::policies::{Policies, Policy};
use super::support::proxy::{Proxy, limit_files};
use super::support::redis::Redis;
use super::support::{command, eventually};

/// What no policy is.
const BROKEN: [&str; 5] = [
    "",
    "version: 1\ngroups:\n  g0: {platform: openai, force_f",
    "version: 1\ngroups: {g0: {platform: openai}}\nkeys: {sk-0-0: {group: g00}}\n",
    "version: 1\ngroups: {g0: {platform: openai}, g0: {platform: other}}\nkeys: {}\n",
    "\0\u{1}",
];
/// How long a new process is looked for at once.
const SEEN_TIME: Duration = Duration::from_millis(200);
/// A new process that is not seen within this time is none.
const START_TIME: Duration = Duration::from_secs(5);
/// A drain, and a start on a busy machine.
const UPGRADE_TIME: Duration = Duration::from_secs(90);

/// Where sums are kept that are to outlive a process.
pub enum State {
    /// They are not.
    Memory,
    File,
    Server(Server),
}

/// A server of Redis, and what was done to it.
pub struct Server {
    redis: Redis,
    fault: Option<Fault>,
    pub faults: usize,
}

/// Why a server does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It was killed and has lost all it had.
    Gone,
    /// It was stopped.
    Silent,
}

pub struct Operator {
    pub proxy: Proxy,
    pub policies: Policies,
    pub state: State,
    chance: Chance,
    /// The process that serves, or did until the newest upgrade.
    current: Pid,
    upgrade: Option<Upgrade>,
    pub upgrades: usize,
    limited: bool,
    log_is_gone: bool,
    set_aside: usize,
    policies_written: u64,
}

/// An upgrade that has not come to its end.
struct Upgrade {
    new: Option<Pid>,
    since: Instant,
}

impl Operator {
    /// `policy` is the one that the proxy was started with.
    pub fn of(proxy: Proxy, recipe: Recipe, policies: Policies, state: State) -> Self {
        // Processes that a former one has started become this one's children, so that it can wait for them.
        nix::sys::prctl::set_child_subreaper(true).expect("Linux 3.4");
        Self {
            current: Pid::from_raw(proxy.id()),
            proxy,
            policies,
            state,
            chance: Chance::of(&[recipe.seed, 12]),
            upgrade: None,
            upgrades: 0,
            limited: false,
            log_is_gone: false,
            set_aside: 0,
            policies_written: 1,
        }
    }

    pub fn process(&self) -> Pid {
        self.current
    }

    /// One deed, whichever comes to mind.
    pub fn act(&mut self) {
        self.follow_upgrade();
        self.disturb_server();
        match self.chance.below(20) {
            0..5 => drop(self.change_policy()),
            5 => self.break_policy(),
            6 => self.lose_policy(),
            7 | 8 => self.signal(Signal::SIGHUP),
            9..11 => self.rotate(),
            11 => self.lose_log(),
            // The limit would be one of the state's file too.
            12 if !matches!(self.state, State::File) => self.fill_log(),
            13 => {
                if self.chance.one_in(2) {
                    self.restore_log();
                    self.change_policy();
                }
                self.upgrade();
            }
            14..17 => self.restore_log(),
            _ => {}
        }
    }

    /// Another good policy, saved in one of the usual ways. Returns its revision.
    pub fn change_policy(&mut self) -> String {
        let policy = Policy::choose(&mut self.chance, self.policies_written);
        self.policies_written += 1;
        let revision = self.policies.written(&policy);
        let (path, text) = (self.proxy.path("policy.yaml"), policy.text());
        match self.chance.below(3) {
            0 => self.write("policy.yaml", &text),
            1 => {
                let new = self.proxy.path("policy.new");
                self.write("policy.new", &text);
                fs::rename(new, path).expect("a rename");
            }
            _ => {
                // Somewhere within a line, so that the half is no policy.
                let half = text.find("fast_mode_beta").expect("a group") + 4;
                self.write("policy.yaml", &text[..half]);
                std::thread::sleep(Duration::from_millis(20));
                self.write("policy.yaml", &text);
            }
        }
        revision
    }

    fn break_policy(&mut self) {
        let text = self.chance.pick(&BROKEN);
        self.write("policy.yaml", text);
        self.policies.broken();
    }

    fn lose_policy(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(self.proxy.path("policy.yaml"));
        self.policies.broken();
    }

    pub fn rotate(&mut self) {
        self.set_aside += 1;
        let aside = format!("logs/access.log.{}", self.set_aside);
        if fs::rename(self.proxy.path("logs/access.log"), self.proxy.path(&aside)).is_ok() {
            self.signal(Signal::SIGUSR1);
        }
    }

    /// The log's folder goes elsewhere, so that no log can be opened.
    fn lose_log(&mut self) {
        if self.log_is_gone {
            return;
        }
        self.set_aside += 1;
        let aside = self.proxy.path(&format!("logs.{}", self.set_aside));
        fs::rename(self.proxy.path("logs"), aside).expect("a rename");
        self.log_is_gone = true;
        self.signal(Signal::SIGUSR1);
    }

    /// No file may grow by more than a few lines from now on.
    fn fill_log(&mut self) {
        let size = fs::metadata(self.proxy.path("logs/access.log")).map_or(0, |found| found.size());
        let room = self.chance.below(4_000) as u64;
        self.limited = true;
        self.limit_files(size + room);
    }

    pub fn restore_log(&mut self) {
        if self.limited {
            self.limit_files(libc::RLIM_INFINITY);
            self.limited = false;
        }
        if self.log_is_gone {
            fs::create_dir(self.proxy.path("logs")).expect("a folder");
            self.log_is_gone = false;
            self.signal(Signal::SIGUSR1);
        }
    }

    fn limit_files(&self, bytes: u64) {
        for process in self.processes() {
            limit_files(process.as_raw(), bytes);
        }
    }

    /// Takes the server away, empties it, or brings it back. Not while two processes run: what one of them has spent would end
    /// with it.
    fn disturb_server(&mut self) {
        let State::Server(server) = &mut self.state else {
            return;
        };
        if server.fault.is_some() {
            if self.chance.one_in(5) {
                server.restore();
            }
        } else if self.upgrade.is_none() && self.chance.one_in(6) {
            server.faults += 1;
            match self.chance.below(3) {
                0 => server.silence(),
                1 => server.empty(),
                _ => server.lose(),
            }
        }
    }

    /// Whether the process has told the server all that it has spent, and will again.
    fn has_server(&self) -> bool {
        match &self.state {
            State::Server(server) => {
                let ready = || self.proxy.admin("/readyz");
                server.fault.is_none() && !ready().text().contains("last known sums")
            }
            State::Memory | State::File => true,
        }
    }

    /// What is kept of each account of the newest policy that has spent something.
    pub fn budgets(&self) -> Vec<(Account, Decimal)> {
        let options = ["budget", "--config", "tiergate.yaml", "--format", "json"];
        let told = command::run(self.proxy.path(""), &options);
        let rows: Vec<Value> = serde_json::from_str(&command::stdout(&told)).expect("a table");
        let account = |row: &Value| {
            let text = |name: &str| row[name].as_str().map(str::to_owned);
            let (group, key) = (text("group")?, text("key"));
            Some((Account { group, key }, text("spent_usd")?.parse().ok()?))
        };
        let kept = rows.iter().filter_map(account);
        kept.filter(|(_, usd): &(_, Decimal)| !usd.is_zero())
            .collect()
    }

    pub fn upgrade(&mut self) {
        if self.upgrade.is_none() && self.has_server() {
            let _ = kill(self.current, Signal::SIGUSR2);
            let since = Instant::now();
            // A new process that is not seen beside the old one is a child of nobody's once that has ended.
            let mut new = None;
            while new.is_none() && since.elapsed() < SEEN_TIME {
                std::thread::sleep(Duration::from_millis(1));
                new = child_of(self.current);
            }
            self.upgrade = Some(Upgrade { new, since });
        }
    }

    /// Sees how the upgrade goes. One that fails leaves the old process serving.
    pub fn follow_upgrade(&mut self) {
        let Some(upgrade) = &mut self.upgrade else {
            return;
        };
        upgrade.new = upgrade.new.or_else(|| child_of(self.current));
        let (new, since) = (upgrade.new, upgrade.since);
        if let Some(code) = self.ended(self.current) {
            assert_eq!(code, 0, "the old process: {}", self.proxy.stderr());
            self.current = new.expect("no process ends without one in its place");
            self.upgrades += 1;
            self.upgrade = None;
        } else if new.map_or(since.elapsed() > START_TIME, has_ended) {
            self.upgrade = None;
        }
    }

    /// Waits until one process serves by a good policy, and nothing is in the way of its log.
    pub fn settle(&mut self) {
        self.restore_log();
        let begun = Instant::now();
        while self.upgrade.is_some() {
            assert!(begun.elapsed() < UPGRADE_TIME, "no end of an upgrade");
            std::thread::sleep(Duration::from_millis(10));
            self.follow_upgrade();
        }
        if let State::Server(server) = &mut self.state {
            server.restore();
        }
        // A process that was started meanwhile has inherited the limit.
        self.limit_files(libc::RLIM_INFINITY);
        self.signal(Signal::SIGUSR1);
        eventually("a log that is written", || {
            (self.proxy.admin("/readyz").status == 200).then_some(())
        });
        eventually("the server of the budgets", || {
            self.has_server().then_some(())
        });
        let revision = self.change_policy();
        eventually("the newest policy", || {
            (self.proxy.status()["policy"]["revision"] == *revision).then_some(())
        });
    }

    /// Ends the process in good order.
    pub fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
        let begun = Instant::now();
        let code = loop {
            if let Some(code) = self.ended(self.current) {
                break code;
            }
            assert!(begun.elapsed() < UPGRADE_TIME, "no end of the process");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(code, 0, "{}", self.proxy.stderr());
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        eventually("the end of the process", || self.ended(self.current));
    }

    pub fn signal(&self, signal: Signal) {
        for process in self.processes() {
            // It may have ended.
            let _ = kill(process, signal);
        }
    }

    fn processes(&self) -> Vec<Pid> {
        let new = self.upgrade.as_ref().and_then(|upgrade| upgrade.new);
        [self.current].into_iter().chain(new).collect()
    }

    /// The code with which a process has ended, once it has; 1000 and more for a signal.
    fn ended(&mut self, process: Pid) -> Option<i32> {
        if process.as_raw() == self.proxy.id() {
            let status = self.proxy.ended()?;
            return status.code().or_else(|| Some(1000 + status.signal()?));
        }
        match waitpid(process, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Some(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(1000 + signal as i32),
            _ => None,
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.proxy.path(name), text).expect("a file");
    }

    /// All files of the log, by whatever name they go now.
    pub fn log_files(&self) -> Vec<PathBuf> {
        let entries = |path: PathBuf| {
            let entries = fs::read_dir(path).into_iter().flatten();
            entries.map_while(Result::ok).map(|entry| entry.path())
        };
        let named = |path: &PathBuf, start: &str| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with(start)
        };
        entries(self.proxy.path(""))
            .filter(|path| named(path, "logs"))
            .flat_map(entries)
            .filter(|path| named(path, "access.log"))
            .collect()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Memory => f.write_str("budgets in memory"),
            State::File => f.write_str("budgets in a file"),
            State::Server(server) => write!(f, "budgets in Redis with {} faults", server.faults),
        }
    }
}

impl Server {
    pub fn of(redis: Redis) -> Server {
        Server {
            redis,
            fault: None,
            faults: 0,
        }
    }

    pub fn url(&self) -> String {
        self.redis.url()
    }

    fn silence(&mut self) {
        self.redis.signal(libc::SIGSTOP);
        self.fault = Some(Fault::Silent);
    }

    fn lose(&mut self) {
        self.redis.kill();
        self.fault = Some(Fault::Gone);
    }

    fn empty(&mut self) {
        let _: () = redis::cmd("FLUSHALL")
            .query(&mut self.redis.client())
            .expect("a server that answers");
    }

    fn restore(&mut self) {
        match self.fault.take() {
            Some(Fault::Gone) => self.redis.start_again(),
            Some(Fault::Silent) => self.redis.signal(libc::SIGCONT),
            None => {}
        }
    }
}

impl Drop for Operator {
    /// The first process is the proxy's to end; those that came after it are not known there.
    fn drop(&mut self) {
        for process in self.processes() {
            if process.as_raw() != self.proxy.id() {
                let _ = kill(process, Signal::SIGKILL);
                let _ = waitpid(process, None);
            }
        }
    }
}

/// The process that this one has started.
fn child_of(parent: Pid) -> Option<Pid> {
    fs::read_dir("/proc").ok()?.find_map(|entry| {
        let id: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let of: i32 = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
        (of == parent.as_raw()).then(|| Pid::from_raw(id))
    })
}

/// Whether there is no such process, or only what is left of it until somebody asks.
fn has_ended(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_none_or(|state| state.starts_with('Z'))
}
