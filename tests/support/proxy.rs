//! The binary under test, in a folder of its own.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::client::{Answer, Client};
use super::{PATIENCE, eventually, h2, h2_script, record, tls, upstream};

/// One key for each of the groups that most tests need.
pub const POLICY: &str = "\
version: 1
groups:
  fast: {platform: openai, force_fast_mode: true}
  plain: {platform: openai}
  closed: {platform: openai, force_fast_mode: true, enabled: false}
keys:
  sk-fast: {group: fast, name: fiona}
  sk-plain: {group: plain, name: paula}
  sk-closed: {group: closed, name: claus}
  sk-gone: {group: fast, name: gundula, enabled: false}
";

/// A proxy that is yet to run.
pub struct Builder {
    policy: String,
    policy_file: Option<String>,
    upstreams: String,
    settings: String,
    prices: Option<String>,
    tls: bool,
    proxy_protocol: bool,
    trusting: bool,
    listeners: Vec<String>,
    admin: Option<String>,
    log: PathBuf,
    log_format: String,
    program: PathBuf,
    environment: Vec<(String, String)>,
    files: Vec<(String, String)>,
}

pub struct Proxy {
    child: Child,
    folder: TempDir,
    pub address: SocketAddr,
    /// Of the listener with TLS, where there is one.
    pub tls_address: SocketAddr,
    pub admin: SocketAddr,
    log: PathBuf,
}

/// What can stand behind a proxy.
pub trait Target {
    fn url(&self) -> String;
}

impl Target for upstream::Upstream {
    fn url(&self) -> String {
        if self.tls {
            return format!("https://localhost:{}", self.address.port());
        }
        if let Some(path) = &self.path {
            return format!("unix:{}", path.display());
        }
        format!("http://{}", self.address)
    }
}

impl Target for h2::Upstream {
    fn url(&self) -> String {
        // An address would not do: the certificate is for the name.
        format!("https://localhost:{}", self.address.port())
    }
}

impl Target for h2_script::Upstream {
    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

impl Target for SocketAddr {
    fn url(&self) -> String {
        format!("http://{self}")
    }
}

pub fn new() -> Builder {
    Builder {
        policy: POLICY.to_owned(),
        policy_file: None,
        upstreams: String::new(),
        settings: String::new(),
        prices: None,
        tls: false,
        proxy_protocol: false,
        trusting: true,
        listeners: Vec::new(),
        admin: None,
        log: PathBuf::from("access.log"),
        log_format: "json".to_owned(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_tiergate")),
        environment: Vec::new(),
        files: Vec::new(),
    }
}

impl Builder {
    pub fn policy(mut self, policy: &str) -> Self {
        self.policy = policy.to_owned();
        self
    }

    /// The policy is in this file, which the test has written.
    pub fn policy_file(mut self, path: &str) -> Self {
        self.policy_file = Some(path.to_owned());
        self
    }

    pub fn upstream(self, target: &impl Target) -> Self {
        self.upstream_with("main", target, "")
    }

    /// `settings` as they stand in a flow mapping: `kind: codex, idle_timeout: 1s`.
    pub fn upstream_with(mut self, name: &str, target: &impl Target, settings: &str) -> Self {
        let (url, settings) = (target.url(), with_credential(settings));
        self.upstreams
            .push_str(&format!("  {name}: {{url: \"{url}\", {settings}}}\n"));
        self
    }

    /// An upstream with several URLs.
    pub fn upstream_at(mut self, name: &str, urls: &[String], settings: &str) -> Self {
        let settings = with_credential(settings);
        self.upstreams
            .push_str(&format!("  {name}: {{url: {urls:?}, {settings}}}\n"));
        self
    }

    /// A file beside the configuration.
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// A line of the configuration's top level: `limits: {body: 1KiB}`.
    pub fn setting(mut self, line: &str) -> Self {
        self.settings.push_str(line);
        self.settings.push('\n');
        self
    }

    pub fn prices(mut self, prices: &str) -> Self {
        self.prices = Some(prices.to_owned());
        self
    }

    /// A second listener, with TLS.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Connections to all listeners begin with the PROXY protocol's header.
    pub fn proxy_protocol(mut self) -> Self {
        self.proxy_protocol = true;
        self
    }

    /// One more listener, as it stands in the list.
    pub fn listener(mut self, entry: &str) -> Self {
        self.listeners.push(entry.to_owned());
        self
    }

    /// The admin listener is elsewhere.
    pub fn admin_at(mut self, address: &str) -> Self {
        self.admin = Some(address.to_owned());
        self
    }

    /// The proxy does not trust the tests' certificates.
    pub fn distrusting(mut self) -> Self {
        self.trusting = false;
        self
    }

    /// The access log, relative to the proxy's folder.
    pub fn log(mut self, path: &str) -> Self {
        self.log = PathBuf::from(path);
        self
    }

    pub fn log_format(mut self, format: &str) -> Self {
        self.log_format = format.to_owned();
        self
    }

    /// What is run in the place of the binary; it ends up in it.
    pub fn program(mut self, path: PathBuf) -> Self {
        self.program = path;
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn run(self) -> Proxy {
        let folder = tempfile::tempdir().unwrap();
        self.run_in(folder)
    }

    /// A port that was free may be taken by the time the proxy binds it, so a start is tried a few times.
    pub fn run_in(self, mut folder: TempDir) -> Proxy {
        for _ in 0..5 {
            match self.start(folder) {
                Ok(proxy) => return proxy,
                Err(back) => folder = back,
            }
        }
        let told = fs::read_to_string(folder.path().join("stderr")).unwrap_or_default();
        panic!("the proxy does not start: {told}")
    }

    fn start(&self, folder: TempDir) -> Result<Proxy, TempDir> {
        let [address, tls_address, admin] = free_addresses();
        self.write_files(&folder, [address, tls_address, admin]);
        let child = Command::new(&self.program)
            .args(["run", "--config", "tiergate.yaml"])
            .current_dir(folder.path())
            .env("SSL_CERT_FILE", folder.path().join("authority.pem"))
            .env_remove("SSL_CERT_DIR")
            .env_remove("RUST_LOG")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdout(fs::File::create(folder.path().join("stdout")).unwrap())
            .stderr(fs::File::create(folder.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut proxy = Proxy {
            child,
            log: folder.path().join(&self.log),
            folder,
            address,
            tls_address,
            admin,
        };
        if proxy.await_start() {
            return Ok(proxy);
        }
        // What it leaves behind is for the next attempt.
        let next = std::mem::replace(&mut proxy.folder, tempfile::tempdir().unwrap());
        Err(next)
    }

    fn write_files(&self, folder: &TempDir, [address, tls_address, admin]: [SocketAddr; 3]) {
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let made = tls::certificates();
        let other = tls::Certificates::new();
        let trusted = if self.trusting { made } else { &other };
        write("authority.pem", &trusted.authority);
        write("cert.pem", &made.certificate);
        write("key.pem", &made.key);
        let proxied = self.proxy_protocol;
        let tls = if self.tls {
            format!(
                ", {{address: \"{tls_address}\", tls: {{cert: cert.pem, key: key.pem}}, \
                 proxy_protocol: {proxied}}}"
            )
        } else {
            String::new()
        };
        let more: String = self
            .listeners
            .iter()
            .map(|entry| format!(", {entry}"))
            .collect();
        let admin = self.admin.clone().unwrap_or_else(|| admin.to_string());
        let mut config = format!(
            "listen: [{{address: \"{address}\", proxy_protocol: {proxied}}}{tls}{more}]\nadmin: \"{admin}\"\npolicy: {}\n\
             access_log: {{path: \"{}\", format: {}}}\nupstreams:\n{}{}",
            self.policy_file.as_deref().unwrap_or("policy.yaml"),
            self.log.display(),
            self.log_format,
            self.upstreams,
            self.settings
        );
        if let Some(prices) = &self.prices {
            write("prices.yaml", prices);
            config.push_str("prices: prices.yaml\n");
        }
        write("tiergate.yaml", &config);
        write("policy.yaml", &self.policy);
        for (name, text) in &self.files {
            write(name, text);
        }
    }
}

/// Addresses that nobody listens on. They are held together, so that they differ.
fn free_addresses() -> [SocketAddr; 3] {
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}

impl Proxy {
    pub fn client(&self, key: &str) -> Client {
        let key = format!("Bearer {key}");
        self.anonymous().header("Authorization", &key)
    }

    pub fn anonymous(&self) -> Client {
        Client::new(self.address)
    }

    pub fn admin(&self, path: &str) -> Answer {
        Client::new(self.admin).get(path)
    }

    pub fn status(&self) -> Value {
        self.admin("/status").json()
    }

    /// The sum of a metric's samples.
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_of(name, "")
    }

    /// The sum of those samples of a metric whose labels contain this text.
    pub fn metric_of(&self, name: &str, label: &str) -> f64 {
        let text = self.admin("/metrics").text().to_owned();
        let samples = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let found = series.split('{').next() == Some(name) && series.contains(label);
            found.then(|| value.parse::<f64>().unwrap())
        });
        samples.sum()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn log_path(&self) -> PathBuf {
        self.log.clone()
    }

    pub fn stderr(&self) -> String {
        // It is gone where a start failed and its folder went to the next attempt.
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    pub fn await_stderr(&self, part: &str) {
        eventually(&format!("`{part}` on stderr"), || {
            self.stderr().contains(part).then_some(())
        });
    }

    /// Drains while a request with this message runs for each of these statuses, which the upstream holds: each of the answers
    /// says that its connection ends.
    pub fn assert_drain_is_told(
        &self,
        upstream: &upstream::Upstream,
        message: &[u8],
        statuses: [u16; 2],
    ) {
        let mut running = [1, 2].map(|number| {
            let mut connection = self.anonymous().connect();
            connection.send(message);
            upstream.await_heads(number);
            connection
        });
        self.signal(libc::SIGTERM);
        self.await_stderr("draining");
        upstream.release();
        for (connection, status) in running.iter_mut().zip(statuses) {
            let answer = connection.answer();
            assert_eq!(answer.status, status);
            assert_eq!(answer.header("connection"), Some("close"), "{status}");
            assert!(connection.try_answer().is_none());
        }
    }

    /// The lines of the log so far, as they stand in the file.
    pub fn log_lines(&self) -> Vec<String> {
        lines_of(&self.log)
    }

    /// Waits for so many lines, and fails if there are more.
    pub fn access_log(&self, count: usize) -> Vec<Value> {
        let lines = self.access_log_lines(count);
        lines.iter().map(|line| record::normalised(line)).collect()
    }

    /// The same as they stand in the file.
    pub fn access_log_lines(&self, count: usize) -> Vec<String> {
        let lines = eventually("lines in the access log", || {
            Some(self.log_lines()).filter(|lines| lines.len() >= count)
        });
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines
    }

    /// The only line there is.
    pub fn record(&self) -> Value {
        self.access_log(1).remove(0)
    }

    pub fn id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    #[allow(unsafe_code)]
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so the id is still its own; sending a signal touches no memory.
        assert_eq!(unsafe { libc::kill(self.id(), signal) }, 0);
    }

    /// Lets no file of the process grow beyond this size, in bytes.
    pub fn limit_files(&self, bytes: u64) {
        limit_files(self.id(), bytes);
    }

    /// Lets the process have no further descriptors than those below this number.
    #[allow(unsafe_code)]
    pub fn limit_descriptors(&self, most: u64) {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        let (id, resource) = (self.id(), libc::RLIMIT_NOFILE);
        // SAFETY: the limit is only written by the first call and only read by the second, within each.
        unsafe {
            libc::prlimit(id, resource, std::ptr::null(), &raw mut limit);
            limit.rlim_cur = most.min(limit.rlim_max);
            libc::prlimit(id, resource, &raw const limit, std::ptr::null_mut());
        }
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the end of the process", || self.child.try_wait().unwrap())
    }

    /// How the process has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Ends the process in good order and gives the whole access log.
    pub fn stop(mut self) -> Vec<Value> {
        self.signal(libc::SIGTERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.stderr());
        let lines = self.log_lines();
        lines.iter().map(|line| record::normalised(line)).collect()
    }

    /// Ends the process at once, as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A line of the process's `/proc/PID/status`, in bytes.
    pub fn memory(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_ascii_whitespace().next());
        1024 * kib.and_then(|kib| kib.parse::<u64>().ok()).expect("a size")
    }

    /// The time that the process has run on a processor so far.
    pub fn cpu_time(&self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name of the program: `utime` and `stime` are the 12th and the 13th field, in ticks.
        let fields = text.rsplit_once(") ").expect("a name in brackets").1;
        let fields = fields.split(' ').skip(11).take(2);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// False where it ended instead.
    fn await_start(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if self.stderr().contains("serves on") {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("the proxy does not say that it serves: {}", self.stderr());
    }
}

/// The same for any process; one that is gone is passed over.
#[allow(unsafe_code)]
pub fn limit_files(process: i32, bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    let (resource, new) = (libc::RLIMIT_FSIZE, &raw const limit);
    // SAFETY: the limit is only read, within the call, and the old one is not asked for.
    unsafe { libc::prlimit(process, resource, new, std::ptr::null_mut()) };
}

pub fn lines_of(path: &std::path::Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    text[..whole].lines().map(str::to_owned).collect()
}

impl Drop for Proxy {
    /// Ends the process. Whatever the test was about, the process has neither panicked nor written a key anywhere.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the proxy's stderr:\n{}", self.stderr());
            return;
        }
        let written = self.stderr() + &self.log_lines().join("\n");
        assert!(!written.contains("panicked"), "{written}");
        assert!(!written.contains("sk-"), "a key is printed: {written}");
    }
}

/// The settings of an upstream that gets the clients' own keys, and is not warned of for it, unless they say otherwise.
fn with_credential(settings: &str) -> String {
    if settings.contains("credential_file") {
        settings.to_owned()
    } else {
        format!("credential_file: null, {settings}")
    }
}
