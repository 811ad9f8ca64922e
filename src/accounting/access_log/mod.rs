//! The access log: what a line says, and how it gets to the file so that none is lost. It knows nothing of requests;
//! `record.rs` builds the records.

pub mod line;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::StdIoWrite;
use jiff::fmt::temporal::DateTimePrinter;
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::accounting::access_log::line::{Field, Line, Wanted};
use crate::accounting::usage::{Usage, UsageState};
use crate::codec::error::Outcome;
use crate::config::{LogFormat, LogSettings, LogTarget};

/// The version of the schema that [`AccessRecord`] writes.
const SCHEMA: u32 = 1;
/// The fields that a line gets when it is numbered, in their order.
const ADDED: [Field; 3] = [
    Field::named("schema"),
    Field::named("seq"),
    Field::named("instance"),
];
/// Lines that wait for a log that cannot be written, in bytes. Beyond it no further request is taken.
const BACKLOG_BYTES: usize = 64 << 20;
/// How long half a line at the end of the file must stay as it is before it counts as left behind.
const HALF_LINE_TIME: Duration = Duration::from_millis(100);

/// One line. The names of the fields are the names in the log; an event's id is made of those of request and turn.
#[derive(Debug)]
pub struct AccessRecord<'a> {
    /// When the request began.
    pub time: Timestamp,
    pub duration_ms: Millis,
    /// Until the first byte of the upstream's answer.
    pub ttfb_ms: Option<Millis>,
    pub request_id: Uuid,
    pub turn: u64,
    pub client: Option<std::net::IpAddr>,
    pub user_agent: Option<&'a str>,
    /// The key's name, never the key.
    pub key: Option<&'a str>,
    pub group: Option<&'a str>,
    pub platform: Option<&'a str>,
    pub policy: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub endpoint: &'static str,
    pub transport: Transport,
    pub model: Option<&'a str>,
    /// Read from the bytes that went to the upstream.
    pub service_tier: Option<&'a str>,
    pub service_tier_client: Option<&'a str>,
    pub service_tier_served: Option<&'a str>,
    pub service_tier_billed: Option<&'a str>,
    pub tier_reason: Option<&'a str>,
    pub tier_billed_by: Option<&'static str>,
    pub downgraded: bool,
    pub upstream: Option<&'a str>,
    pub upstream_status: Option<u16>,
    pub upstream_request_id: Option<&'a str>,
    pub response_id: Option<&'a str>,
    pub status: Option<u16>,
    pub outcome: Outcome,
    pub error: Option<&'static str>,
    pub usage_state: UsageState,
    pub terminal_event: Option<&'a str>,
    pub usage: Usage,
    /// A decimal in USD.
    pub cost_usd: Option<String>,
    pub request_bytes: u64,
    pub upstream_request_bytes: u64,
    pub response_bytes: u64,
    /// The model that the response names.
    pub model_served: Option<&'a str>,
    /// The upstream refused the tier that it was sent.
    pub tier_refused: bool,
    /// Code of the upstream's error, else its type.
    pub upstream_error: Option<&'a str>,
    /// The request that created the background response whose usage this line has.
    pub of_request: Option<Uuid>,
    /// The protocols that were translated, such as `messages>responses`.
    pub bridge: Option<&'a str>,
    /// What was left out in that, separated by commas.
    pub bridge_dropped: Option<&'a str>,
    /// The first 8 hexadecimal digits of the key's digest, whether the key is known or not.
    pub key_id: Option<&'a str>,
    /// Revision of the price file that `cost_usd` was computed by; none where there is no price file.
    pub prices: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Http,
    Sse,
    WebSocket,
}

impl Transport {
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Http => "http",
            Transport::Sse => "sse",
            Transport::WebSocket => "websocket",
        }
    }
}

/// Milliseconds with three decimals.
#[derive(Clone, Copy, Debug)]
pub struct Millis(pub std::time::Duration);

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.as_micros() as f64 / 1000.0)
    }
}

/// A member's name as a line has it: made when the program is built, it saves a line some hundred small copies.
macro_rules! quoted {
    ($name:literal) => {
        concat!("\"", $name, "\":")
    };
}

/// Writes a record's members, each with a comma behind it. serde's derive escapes every name anew, and took twice as many
/// instructions: 4 % of those for a small request.
struct Members<'a>(&'a mut Vec<u8>);

impl Members<'_> {
    fn record(&mut self, record: &AccessRecord<'_>) {
        let mut id = Uuid::encode_buffer();
        let id = &*record.request_id.hyphenated().encode_lower(&mut id);
        self.name(quoted!("event_id"));
        self.0.push(b'"');
        self.0.extend_from_slice(id.as_bytes());
        self.0.push(b'#');
        serde_json::to_writer(&mut *self.0, &record.turn).expect("a number is valid JSON");
        self.0.extend_from_slice(b"\",");
        self.time(quoted!("time"), record.time);
        self.value(quoted!("duration_ms"), &record.duration_ms);
        self.value(quoted!("ttfb_ms"), &record.ttfb_ms);
        self.text(quoted!("request_id"), Some(id));
        self.value(quoted!("turn"), &record.turn);
        self.value(quoted!("client"), &record.client);
        self.text(quoted!("user_agent"), record.user_agent);
        self.text(quoted!("key"), record.key);
        self.text(quoted!("group"), record.group);
        self.text(quoted!("platform"), record.platform);
        self.text(quoted!("policy"), Some(record.policy));
        self.text(quoted!("method"), Some(record.method));
        self.text(quoted!("path"), Some(record.path));
        self.text(quoted!("endpoint"), Some(record.endpoint));
        self.text(quoted!("transport"), Some(record.transport.as_str()));
        self.text(quoted!("model"), record.model);
        self.text(quoted!("service_tier"), record.service_tier);
        self.text(quoted!("service_tier_client"), record.service_tier_client);
        self.text(quoted!("service_tier_served"), record.service_tier_served);
        self.text(quoted!("service_tier_billed"), record.service_tier_billed);
        self.text(quoted!("tier_reason"), record.tier_reason);
        self.text(quoted!("tier_billed_by"), record.tier_billed_by);
        self.value(quoted!("downgraded"), &record.downgraded);
        self.text(quoted!("upstream"), record.upstream);
        self.value(quoted!("upstream_status"), &record.upstream_status);
        self.text(quoted!("upstream_request_id"), record.upstream_request_id);
        self.text(quoted!("response_id"), record.response_id);
        self.value(quoted!("status"), &record.status);
        self.text(quoted!("outcome"), Some(record.outcome.as_str()));
        self.text(quoted!("error"), record.error);
        self.text(quoted!("usage_state"), Some(record.usage_state.as_str()));
        self.text(quoted!("terminal_event"), record.terminal_event);
        self.usage(&record.usage);
        self.text(quoted!("cost_usd"), record.cost_usd.as_deref());
        self.value(quoted!("request_bytes"), &record.request_bytes);
        self.value(
            quoted!("upstream_request_bytes"),
            &record.upstream_request_bytes,
        );
        self.value(quoted!("response_bytes"), &record.response_bytes);
        self.text(quoted!("model_served"), record.model_served);
        self.value(quoted!("tier_refused"), &record.tier_refused);
        self.text(quoted!("upstream_error"), record.upstream_error);
        self.value(
            quoted!("cache_write_long_tokens"),
            &record.usage.cache_write_long_tokens,
        );
        self.value(quoted!("of_request"), &record.of_request);
        self.text(quoted!("bridge"), record.bridge);
        self.text(quoted!("bridge_dropped"), record.bridge_dropped);
        self.text(quoted!("key_id"), record.key_id);
        self.text(quoted!("prices"), record.prices);
    }

    fn usage(&mut self, usage: &Usage) {
        self.value(quoted!("input_tokens"), &usage.input_tokens);
        self.value(quoted!("cached_input_tokens"), &usage.cached_input_tokens);
        self.value(quoted!("cache_write_tokens"), &usage.cache_write_tokens);
        self.value(quoted!("output_tokens"), &usage.output_tokens);
        self.value(quoted!("reasoning_tokens"), &usage.reasoning_tokens);
    }

    /// Here and below, names stand in their quotes, a colon behind them.
    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(name.as_bytes());
    }

    /// RFC 3339 UTC with microseconds.
    fn time(&mut self, name: &str, time: Timestamp) {
        const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
        self.name(name);
        self.0.push(b'"');
        let printed = PRINTER.print_timestamp(&time, StdIoWrite(&mut *self.0));
        printed.expect("a Vec takes all");
        self.0.extend_from_slice(b"\",");
    }

    fn text(&mut self, name: &str, text: Option<&str>) {
        let special = |byte: &u8| *byte < b' ' || matches!(byte, b'"' | b'\\');
        let Some(plain) = text.filter(|text| !text.as_bytes().iter().any(special)) else {
            return self.value(name, &text);
        };
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(plain.as_bytes());
        self.0.extend_from_slice(b"\",");
    }

    fn value(&mut self, name: &str, value: &impl Serialize) {
        self.name(name);
        // These are texts, numbers and what stands for none, all of which JSON can say.
        serde_json::to_writer(&mut *self.0, value).expect("a field is valid JSON");
        self.0.push(b',');
    }
}

/// The open log. A line goes out in one `write(2)` of its own, before [`AccessLog::append`] returns; what cannot be
/// written waits in order and is tried again by [`AccessLog::retry`].
pub struct AccessLog {
    target: LogTarget,
    format: LogFormat,
    /// What stands before and behind the number of each line.
    around_number: [String; 2],
    writer: Mutex<Writer>,
    errors: AtomicU64,
    waiting_bytes: AtomicU64,
}

struct Writer {
    file: File,
    /// Lines numbered so far.
    seq: u64,
    line: Vec<u8>,
    /// Whole lines that could not be written yet, oldest first.
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// How much of the first waiting line the file has taken and keeps, as a pipe does.
    taken: usize,
}

impl AccessLog {
    /// # Errors
    /// Where the file cannot be opened for appending.
    pub fn open(settings: LogSettings) -> io::Result<Self> {
        let LogSettings { target, format } = settings;
        let file = open(&target)?;
        let instance = Uuid::now_v7();
        let [schema_name, seq_name, instance_name] = ADDED.map(|field| field.name_in(format));
        Ok(Self {
            target,
            format,
            around_number: [
                format!(r#"{{"{schema_name}":{SCHEMA},"{seq_name}":"#),
                format!(r#","{instance_name}":"{instance}","#),
            ],
            writer: Mutex::new(Writer {
                file,
                seq: 0,
                line: Vec::new(),
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                taken: 0,
            }),
            errors: AtomicU64::new(0),
            waiting_bytes: AtomicU64::new(0),
        })
    }

    pub fn append(&self, record: &AccessRecord<'_>) {
        thread_local!(static BODY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        BODY.with_borrow_mut(|body| {
            body.clear();
            body.push(b'{');
            Members(body).record(record);
            // The last comma.
            body.pop();
            body.push(b'}');
            match self.format {
                LogFormat::Json => self.append_line(&body[1..]),
                LogFormat::Otel => self.append_line(&renamed(body)),
            }
        });
    }

    /// Numbers and writes a line, of which `rest` is all behind the members that are added here.
    fn append_line(&self, rest: &[u8]) {
        let mut guard = self.writer();
        let writer = &mut *guard;
        writer.line.clear();
        let [before, behind] = &self.around_number;
        writer.line.extend_from_slice(before.as_bytes());
        write!(writer.line, "{}", writer.seq).expect("a Vec takes all");
        writer.line.extend_from_slice(behind.as_bytes());
        writer.line.extend_from_slice(rest);
        writer.seq += 1;
        writer.line.push(b'\n');
        if let Err(why) = writer.write_line() {
            self.note_failure(&why);
        }
        self.waiting_bytes
            .store(writer.waiting_bytes as u64, Ordering::Relaxed);
    }

    /// Tries to write what waits; to be called a few times a second.
    pub fn retry(&self) {
        if self.waiting_bytes.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut writer = self.writer();
        if let Err(why) = writer.flush_waiting() {
            self.note_failure(&why);
        }
        self.waiting_bytes
            .store(writer.waiting_bytes as u64, Ordering::Relaxed);
    }

    /// Opens the file anew, after it was renamed. What waited goes to the new file.
    ///
    /// # Errors
    /// Where the new file cannot be opened; the old one stays in use.
    pub fn reopen(&self) -> io::Result<()> {
        let file = open(&self.target)?;
        let mut writer = self.writer();
        writer.file = file;
        // A line that the old file got in part is to be whole in the new one.
        writer.taken = 0;
        drop(writer);
        self.retry();
        Ok(())
    }

    /// How often a write failed since the start.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Whether every line so far is in the log.
    pub fn is_written(&self) -> bool {
        self.waiting_bytes.load(Ordering::Relaxed) == 0
    }

    /// Lines that are not in the log.
    pub fn waiting_lines(&self) -> usize {
        self.writer().waiting.len()
    }

    /// Whether so much waits that a further request could not be accounted for.
    pub fn is_full(&self) -> bool {
        self.waiting_bytes.load(Ordering::Relaxed) as usize >= BACKLOG_BYTES
    }

    fn note_failure(&self, why: &io::Error) {
        // Each failure is counted, but only the first of a run is worth a line on stderr.
        if self.errors.fetch_add(1, Ordering::Relaxed) == 0 || self.is_written() {
            log::error!("the access log cannot be written, its lines wait in memory: {why}");
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic while the lock was held cannot leave the writer in a state that matters: its line is rebuilt each time.
        self.writer
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Writer {
    /// Writes `self.line`, behind all that waits.
    fn write_line(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            let (taken, result) = write_all(&self.file, &self.line);
            if result.is_ok() {
                return result;
            }
            self.wait();
            self.keep_taken(taken);
            return result;
        }
        self.wait();
        self.flush_waiting()
    }

    fn wait(&mut self) {
        self.waiting_bytes += self.line.len();
        self.waiting.push_back(self.line.clone());
    }

    fn flush_waiting(&mut self) -> io::Result<()> {
        while let Some(first) = self.waiting.front() {
            let (taken, result) = write_all(&self.file, &first[self.taken..]);
            if result.is_err() {
                self.keep_taken(taken);
                return result;
            }
            self.taken = 0;
            self.waiting_bytes -= first.len();
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// The file has taken so much more of a line, and no more. A full file system may do that.
    fn keep_taken(&mut self, taken: usize) {
        if taken > 0 && take_back(&self.file, taken).is_err() {
            self.taken += taken;
        }
    }
}

/// The members of a record by their names in `format: otel`, as they stand behind those that are added.
fn renamed(record: &[u8]) -> Vec<u8> {
    let wanted = Wanted::without(ADDED);
    // It was written by this process, from a struct that has each field once.
    let line = Line::parse(record, &wanted).expect("an access record is one JSON object");
    let mut members = Vec::with_capacity(2 * record.len());
    for field in wanted.fields() {
        let name = field.name_in(LogFormat::Otel);
        write!(members, r#""{name}":{},"#, line.raw(field)).expect("a Vec takes all");
    }
    members.pop();
    members.push(b'}');
    members
}

/// How much was written, and why not all.
fn write_all(mut file: &File, line: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < line.len() {
        match file.write(&line[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => return (written, Err(why)),
        }
    }
    (written, Ok(()))
}

/// Takes a part of a line from the end of the file again. During an upgrade another process writes to it as well, and the
/// next line of that would be glued to the part.
fn take_back(mut file: &File, part: usize) -> io::Result<()> {
    let end = file.stream_position()?;
    if file.metadata()?.len() != end {
        // Something stands behind it already, or this is no file.
        return Err(io::ErrorKind::Unsupported.into());
    }
    let begin = end - part as u64;
    file.set_len(begin)?;
    file.seek(SeekFrom::Start(begin))?;
    Ok(())
}

fn open(target: &LogTarget) -> io::Result<File> {
    match target {
        LogTarget::Stdout => Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
        LogTarget::File(path) => {
            // Reading is needed to see how the file ends, and a pipe or a device need not allow it.
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            if file.metadata()?.is_file() {
                end_last_line(&file, path, || std::thread::sleep(HALF_LINE_TIME))?;
            }
            Ok(file)
        }
    }
}

/// A process that died while the disk was full may have left half a line; the next one is not to be glued to it. A line that
/// another process writes at this moment, in a takeover, looks like half of one too, for a file grows by pages: so what
/// is no whole line is looked at again after a wait, until it is one or has stayed as it was.
fn end_last_line(mut file: &File, path: &Path, mut wait: impl FnMut()) -> io::Result<()> {
    let mut reader = File::open(path)?;
    let mut found = end_of_half_line(&mut reader)?;
    while let Some(end) = found {
        wait();
        found = end_of_half_line(&mut reader)?;
        if found == Some(end) {
            return file.write_all(b"\n");
        }
    }
    Ok(())
}

/// The length of a file that does not end with a line end.
fn end_of_half_line(file: &mut File) -> io::Result<Option<u64>> {
    let len = file.seek(SeekFrom::End(0))?;
    let mut last = [b'\n'];
    if len > 0 {
        file.seek(SeekFrom::Start(len - 1))?;
        file.read_exact(&mut last)?;
    }
    Ok((last != *b"\n").then_some(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(path: &Path) -> LogSettings {
        LogSettings {
            target: LogTarget::File(path.to_owned()),
            format: LogFormat::Json,
        }
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_line_that_another_process_is_writing_is_let_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        std::fs::write(&path, "{\"a\":").unwrap();
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        let mut pieces = ["1,", "\"b\":2}\n"].iter();
        end_last_line(&file, &path, || {
            let piece = pieces.next().expect("the line has ended");
            (&file).write_all(piece.as_bytes()).unwrap();
        })
        .unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"a\":1,\"b\":2}\n"
        );
    }

    #[test]
    fn lines_are_numbered_and_appended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        std::fs::write(&path, "{\"half\":").unwrap();
        let log = AccessLog::open(plain(&path)).unwrap();
        log.append_line(br#""a":1}"#);
        log.append_line(br#""a":2}"#);
        let text = std::fs::read_to_string(&path).unwrap();
        let own: Vec<serde_json::Value> = text
            .lines()
            .skip(1)
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!((&own[0]["seq"], &own[0]["a"]), (&0.into(), &1.into()));
        assert_eq!((&own[1]["seq"], &own[1]["a"]), (&1.into(), &2.into()));
        assert_eq!(own[0]["instance"], own[1]["instance"]);
    }

    #[test]
    fn what_a_full_device_refuses_waits_in_order_for_the_next_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let log = AccessLog::open(plain(&path)).unwrap();
        for number in 0..3 {
            log.append_line(format!(r#""a":{number}}}"#).as_bytes());
        }
        assert!(!log.is_written());
        assert!(log.errors() >= 1);
        std::fs::remove_file(&path).unwrap();
        log.reopen().unwrap();
        assert!(log.is_written());
        let order: Vec<_> = lines(&path)
            .iter()
            .map(|line| line["a"].as_u64().unwrap())
            .collect();
        assert_eq!(order, [0, 1, 2]);
    }
}
