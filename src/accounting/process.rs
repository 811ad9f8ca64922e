//! What the operating system says of this process, as Prometheus's own clients call it. Their collector for Rust would read
//! `/proc/stat`, which the unit's `ProcSubset=pid` hides.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;

/// What is read at a scrape. A value that cannot be read is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessStats {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// File descriptors that are open.
    pub open_fds: i64,
    /// The soft limit of `RLIMIT_NOFILE`.
    pub max_fds: i64,
    /// In bytes.
    pub resident_memory: i64,
    /// In bytes.
    pub virtual_memory: i64,
    /// Threads of the process.
    pub threads: i64,
}

impl ProcessStats {
    /// Reads them from the kernel.
    pub fn read() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF);
        let (max_fds, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        // The descriptor of the folder itself is none of the process's.
        let open_fds = fs::read_dir("/proc/self/fd").map_or(0, |found| found.count() - 1);
        Self {
            cpu_seconds: usage.map_or(0.0, |usage| {
                seconds(usage.user_time()) + seconds(usage.system_time())
            }),
            open_fds: i64::try_from(open_fds).unwrap_or(i64::MAX),
            max_fds: i64::try_from(max_fds).unwrap_or(i64::MAX),
            resident_memory: number(&status, "VmRSS:") * 1024,
            virtual_memory: number(&status, "VmSize:") * 1024,
            threads: number(&status, "Threads:"),
        }
    }
}

/// The time now, in seconds since 1970.
pub fn now_seconds() -> f64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.unwrap_or_default().as_secs_f64()
}

fn seconds(time: TimeVal) -> f64 {
    // Seconds of a process's life and millionths of one: far below 2^53.
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

/// The number behind a name in a file such as `/proc/self/status`.
fn number(status: &str, name: &str) -> i64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let stats = ProcessStats::read();
        assert!(stats.cpu_seconds > 0.0 && stats.threads > 0, "{stats:?}");
        assert!(
            stats.open_fds > 2 && stats.open_fds <= stats.max_fds,
            "{stats:?}"
        );
        assert!(
            stats.resident_memory > 0 && stats.resident_memory < stats.virtual_memory,
            "{stats:?}"
        );
    }
}
