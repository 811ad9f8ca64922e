//! What is said on stderr: a line for each event, with the time where no journal adds it, and one line for a failure that
//! happens again and again, with a count.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::HashMap;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::{Duration, Instant};

use env_logger::fmt::Formatter;
use env_logger::{Logger, Target};
use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

use crate::server::stderr::{LogLines, Stderr};
use crate::server::systemd;

/// A warning or an error that is said again within this time is counted instead.
const REPEAT_TIME: Duration = Duration::from_secs(10);
/// Different messages that are watched for repeats at once; further ones are said each time.
const MAX_WATCHED: usize = 64;
/// What is said where nobody asks for more or less.
const DEFAULT_LEVEL: LevelFilter = LevelFilter::Info;

/// Sets the process's logger up, at the level of `RUST_LOG` where it names one for tiergate, and returns where commands may
/// write between its lines.
pub fn init() -> Box<dyn Write> {
    let asked = std::env::var("RUST_LOG").ok();
    let level = asked.as_deref().and_then(level_of).unwrap_or(DEFAULT_LEVEL);
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(LevelFilter::Warn)
        .filter_module("tiergate", LevelFilter::Trace)
        // Pingora's own lines below errors quote request heads, and with them keys: no setting brings them here.
        .filter_module("pingora", LevelFilter::Off)
        // Any peer could fill the log with what it does in a handshake.
        .filter_module("rustls", LevelFilter::Off);
    if systemd::keeps_journal_of_stderr() {
        builder.format(journal_line);
    } else {
        builder.format(line);
    }
    let stderr = Stderr::start(io::stderr()).ok();
    if let Some(stderr) = &stderr {
        builder.target(Target::Pipe(Box::new(LogLines(stderr.clone()))));
    }
    let lines = Lines {
        inner: builder.build(),
        stderr: stderr.clone(),
    };
    if log::set_boxed_logger(Box::new(Counting::new(lines))).is_ok() {
        log::set_max_level(level);
        std::panic::set_hook(Box::new(tell_panic));
    }
    match stderr {
        Some(stderr) => Box::new(stderr),
        None => Box::new(io::stderr()),
    }
}

/// Says that a thread panics, as a line of the log: the default hook would wait for the reader of stderr, for ever.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let trace = Backtrace::capture();
    match trace.status() {
        BacktraceStatus::Captured => log::error!("{panic}\n{trace}"),
        _ => log::error!("{panic}"),
    }
    log::logger().flush();
}

/// Says more or less from now on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// The level that a text in the manner of `RUST_LOG` has for tiergate: `debug`, `tiergate=debug`, or one of these in a comma
/// list. What it says of other crates is passed over.
pub fn level_of(text: &str) -> Option<LevelFilter> {
    let mut general = None;
    for directive in text.split(',').map(str::trim) {
        match directive.split_once('=') {
            Some(("tiergate", level)) => return level.trim().parse().ok(),
            Some(_) => {}
            None => general = directive.parse().ok().or(general),
        }
    }
    general
}

fn line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let now = Timestamp::now();
    writeln!(out, "{now:.3} {:<5} {}", record.level(), record.args())
}

/// The journal takes the level from the front of the line (`sd-daemon(3)`), so that `journalctl -p warning` finds it.
fn journal_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    writeln!(out, "<{priority}>{}", record.args())
}

/// A logger whose lines are written when it was flushed.
struct Lines {
    inner: Logger,
    /// None where there is no thread for it: every line then waits for its reader.
    stderr: Option<Stderr>,
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.inner.log(record);
    }

    fn flush(&self) {
        if let Some(stderr) = &self.stderr {
            stderr.wait();
        }
    }
}

/// A logger that says a warning or an error once and counts its repeats.
struct Counting<L> {
    shared: Arc<Shared<L>>,
}

struct Shared<L> {
    inner: L,
    repeats: Mutex<Repeats>,
}

#[derive(Default)]
struct Repeats {
    watched: HashMap<String, Repeat>,
    /// Somebody waits for the end of a message's time.
    is_swept: bool,
}

struct Repeat {
    level: Level,
    until: Instant,
    /// How often it came since it was last said.
    count: u64,
}

impl<L: Log + 'static> Counting<L> {
    fn new(inner: L) -> Self {
        Self {
            shared: Arc::new(Shared {
                inner,
                repeats: Mutex::default(),
            }),
        }
    }

    /// Has the repeats told of when their time is over.
    fn sweep_later(&self) {
        let shared = self.shared.clone();
        let sweeper = std::thread::Builder::new().name("log-repeats".to_owned());
        let swept = sweeper.spawn(move || shared.sweep());
        if swept.is_err() {
            // They are told of when the process ends, or by the thread of a later one.
            self.shared.repeats.lock().is_swept = false;
        }
    }
}

impl<L: Log + 'static> Log for Counting<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.shared.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() > Level::Warn || !self.enabled(record.metadata()) {
            return self.shared.inner.log(record);
        }
        let message = record.args().to_string();
        let mut repeats = self.shared.repeats.lock();
        let is_repeat = repeats.note(message, record.level(), Instant::now());
        let is_first_repeat = is_repeat && !std::mem::replace(&mut repeats.is_swept, is_repeat);
        drop(repeats);
        if !is_repeat {
            self.shared.inner.log(record);
        } else if is_first_repeat {
            self.sweep_later();
        }
    }

    fn flush(&self) {
        self.shared.tell_repeats(Instant::now() + REPEAT_TIME);
        self.shared.inner.flush();
    }
}

impl<L: Log> Shared<L> {
    /// Tells of repeats when their time is over, until there are none.
    fn sweep(&self) {
        loop {
            // Not in the head of the loop: the lock would be held until its end.
            let next = self.repeats.lock().next_end();
            let Some(until) = next else {
                return;
            };
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            self.tell_repeats(Instant::now());
        }
    }

    /// Says those whose time is over by `now`, with their counts.
    fn tell_repeats(&self, now: Instant) {
        let told = self.repeats.lock().take_ended(now);
        for (message, level, count) in told {
            let times = if count == 1 { "time" } else { "times" };
            let record = |args| {
                self.inner.log(
                    &Record::builder()
                        .level(level)
                        .target("tiergate")
                        .args(args)
                        .build(),
                )
            };
            record(format_args!(
                "{message} ({count} more {times} within {REPEAT_TIME:?})"
            ));
        }
    }
}

impl Repeats {
    /// Whether the message has been said a short time ago, in which case it is counted.
    fn note(&mut self, message: String, level: Level, now: Instant) -> bool {
        if let Some(repeat) = self.watched.get_mut(&message) {
            if now < repeat.until || repeat.count > 0 {
                repeat.count += 1;
                return true;
            }
            repeat.until = now + REPEAT_TIME;
            return false;
        }
        if self.watched.len() >= MAX_WATCHED {
            self.watched
                .retain(|_, repeat| now < repeat.until || repeat.count > 0);
        }
        if self.watched.len() < MAX_WATCHED {
            let repeat = Repeat {
                level,
                until: now + REPEAT_TIME,
                count: 0,
            };
            self.watched.insert(message, repeat);
        }
        false
    }

    /// When the next of those with repeats is to be told of; none where there are none.
    fn next_end(&mut self) -> Option<Instant> {
        let repeated = self.watched.values().filter(|repeat| repeat.count > 0);
        let next = repeated.map(|repeat| repeat.until).min();
        self.is_swept = next.is_some();
        next
    }

    /// Those with repeats whose time is over by `now`. Their time begins again.
    fn take_ended(&mut self, now: Instant) -> Vec<(String, Level, u64)> {
        let ended = self.watched.iter_mut();
        let ended = ended.filter(|(_, repeat)| repeat.count > 0 && repeat.until <= now);
        let told = ended.map(|(message, repeat)| {
            repeat.until = now + REPEAT_TIME;
            (
                message.clone(),
                repeat.level,
                std::mem::take(&mut repeat.count),
            )
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_once_and_then_with_a_count() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let note = |repeats: &mut Repeats, seconds| {
            repeats.note("refused".to_owned(), Level::Error, at(seconds))
        };
        assert!(!note(&mut repeats, 0));
        assert!(repeats.next_end().is_none());
        assert!(note(&mut repeats, 1) && note(&mut repeats, 9));
        assert!(!repeats.note("reset".to_owned(), Level::Error, at(9)));
        assert_eq!(repeats.next_end(), Some(at(10)));
        assert!(repeats.take_ended(at(9)).is_empty());
        let told = repeats.take_ended(at(10));
        assert_eq!(told, [("refused".to_owned(), Level::Error, 2)]);
        // Its time has begun again, and is over when nothing came in it.
        assert!(note(&mut repeats, 15));
        repeats.take_ended(at(20));
        assert!(!note(&mut repeats, 31));
    }

    /// Keeps what is said.
    #[derive(Default)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl Log for Kept {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &Record<'_>) {
            self.0.lock().push(record.args().to_string());
        }

        fn flush(&self) {}
    }

    #[test]
    fn repeats_hold_nobody_up_and_are_told_of_at_the_end() {
        let kept = Kept::default();
        let said = kept.0.clone();
        let logger = Counting::new(kept);
        let log = |level, text: &str| {
            logger.log(
                &Record::builder()
                    .level(level)
                    .args(format_args!("{text}"))
                    .build(),
            );
        };
        for number in 0..3 {
            log(Level::Error, "refused");
            // Time for whoever tells of repeats to begin.
            std::thread::sleep(Duration::from_millis(20));
            log(Level::Info, &format!("round {number}"));
            log(Level::Warn, &format!("reset {number}"));
        }
        logger.flush();
        let said = said.lock();
        let told = ["round", "reset"]
            .map(|word| said.iter().filter(|line| line.starts_with(word)).count());
        assert_eq!(told, [3, 3]);
        let refused: Vec<_> = said
            .iter()
            .filter(|line| line.starts_with("refused"))
            .collect();
        assert_eq!(refused, ["refused", "refused (2 more times within 10s)"]);
    }

    #[test]
    fn messages_that_all_differ_are_all_said() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        for number in 0..1000 {
            assert!(!repeats.note(number.to_string(), Level::Warn, now));
        }
        assert_eq!(repeats.watched.len(), MAX_WATCHED);
    }

    #[test]
    fn a_level_is_taken_for_tiergate_only() {
        for (text, level) in [
            ("debug", Some(LevelFilter::Debug)),
            ("tiergate=trace,info", Some(LevelFilter::Trace)),
            ("warn,pingora=debug", Some(LevelFilter::Warn)),
            ("pingora_core=debug", None),
            ("loud", None),
            ("", None),
        ] {
            assert_eq!(level_of(text), level, "{text}");
        }
    }
}
