//! A server of Redis or Valkey, by which a fleet shares what its processes know.
//!
//! A sum is a hash with a field for each process that spent something, which only that process raises. Writing it again changes
//! nothing: what was lost on the way is sent again, and a server that has lost its data gets back what is known here. Each key
//! that is written gets the next number of one sequence in an index; what changed since the last exchange is what has a higher
//! number than was seen then. A process looks each second, and at once when another tells it to.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use redis::io::tcp::TcpSettings;
use redis::{
    Cmd, Connection, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, PubSub,
    RedisConnectionInfo, RedisError, RedisResult,
};
use rust_decimal::Decimal;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::accounting::background::{
    BackgroundChanges, BackgroundCreate, BackgroundResponses, MAX_AGE,
};
use crate::accounting::store::{EXCHANGE_EVERY, KEPT_SECONDS, MAX_SUMS, StoreError};
use crate::config::Redis;
use crate::config::secret_file::{FileBytes, unusable};
use crate::policy::budget::{Account, Budgets, Entry, Window};

/// How long an exchange waits for a connection, and for each answer.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// How long a request may wait, in all.
const REQUEST_WAIT: Duration = Duration::from_millis(20);
/// Between two exchanges of a busy process.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// After so long everything is read again, and keys that have expired leave the index.
const READ_ALL_EVERY: Duration = Duration::from_secs(3600);
/// For so long after its window a sum may still grow by what was spent at its end.
const ENDED_KEPT_SECONDS: i64 = 24 * 3600;
/// Keys that are read or written by one pipeline.
const BATCH: usize = 1000;

/// `tiergate:budget:PERIOD:BEGINS:ENDS:KEY:GROUP`, a hash of processes and what each has spent, in USD. KEY is the digest, or `-`.
const SUM: &str = "tiergate:budget:";
/// `tiergate:background:ID`: who created the response, as JSON; empty once it is billed.
const RESPONSE: &str = "tiergate:background:";
/// A sorted set of all keys by the number of their last change.
const INDEX: &str = "tiergate:index";
/// A hash: `last`, the last number that was given, and `epoch`, which tells whether the sequence has begun anew.
const SEQUENCE: &str = "tiergate:sequence";
/// On this channel a process says its name when it has changed something.
const CHANGED: &str = "tiergate:changed";

/// Gives the key the next number. What it is kept in lives for longer than a month and a week.
macro_rules! numbered {
    ($script:literal) => {
        concat!(
            $script,
            "redis.call('ZADD', KEYS[2], redis.call('HINCRBY', KEYS[3], 'last', 1), KEYS[1])
            redis.call('EXPIRE', KEYS[2], 3456000)
            redis.call('EXPIRE', KEYS[3], 3456000)
            return was"
        )
    };
}

/// Arguments: a process, what it has spent, and when the sum expires. A field never falls: what comes late changes nothing.
const SAVE_SUM: &str = numbered!(
    "local was = redis.call('HGET', KEYS[1], ARGV[1])
    if was == ARGV[2] or was and tonumber(was) > tonumber(ARGV[2]) then return was end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('EXPIREAT', KEYS[1], ARGV[3])
    "
);

/// Arguments: who created the response, and for how many seconds it is kept. One that is billed stays so.
const CREATE: &str = numbered!(
    "local was = redis.call('GET', KEYS[1])
    if was then return was end
    redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
    "
);

/// Argument: for how many seconds it is kept that the response is billed. The answer is what was there before.
const BILL: &str = numbered!(
    "local was = redis.call('GET', KEYS[1])
    redis.call('SET', KEYS[1], '', 'EX', ARGV[1])
    if was == '' then return was end
    "
);

/// A server, and what is known of what it keeps.
pub struct RedisStore {
    server: Redis,
    /// Name of this process's field in each sum.
    process: String,
    /// Told when there is something to exchange.
    changed: Arc<Notify>,
    session: Mutex<Session>,
    /// Asked by requests.
    requests: Mutex<Option<Connection>>,
}

#[derive(Default)]
struct Session {
    link: Option<Link>,
    /// What each process is known to have spent, by the key of the sum.
    sums: HashMap<String, Sum>,
    epoch: String,
    /// The highest number that was seen; none where everything is to be read.
    seen: Option<u64>,
    read_all_at: Option<Instant>,
}

/// The connection for exchanges, and a thread that listens on another.
struct Link {
    connection: Connection,
    listener: JoinHandle<()>,
    /// Tells the listener to end.
    ended: Arc<AtomicBool>,
}

struct Sum {
    account: Account,
    window: Window,
    /// In USD, by process.
    spent: HashMap<String, Decimal>,
}

/// What the server says of keys that have changed.
#[derive(Default)]
struct Changed {
    /// USD by process, as it was written.
    sums: HashMap<String, HashMap<String, String>>,
    created: Vec<(String, BackgroundCreate)>,
    billed: HashSet<String>,
}

impl RedisStore {
    /// A server that is yet to be connected to.
    pub fn new(server: Redis) -> RedisStore {
        RedisStore {
            server,
            process: Uuid::now_v7().simple().to_string(),
            changed: Arc::default(),
            session: Mutex::default(),
            requests: Mutex::default(),
        }
    }

    /// See [`super::Store::exchange`].
    pub fn exchange(
        &self,
        budgets: &Budgets,
        background: &BackgroundResponses,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut session = self.session.lock();
        let done = self
            .connect(&mut session)
            .and_then(|()| self.exchange_over(&mut session, budgets, background, now));
        done.map_err(|why| {
            session.link = None;
            // Nor are requests to wait for it.
            *self.requests.lock() = None;
            self.told(&why)
        })
    }

    /// Returns when there is something to exchange.
    pub async fn next_exchange(&self) {
        tokio::time::sleep(SHORTEST_PAUSE).await;
        let _ = tokio::time::timeout(EXCHANGE_EVERY, self.changed.notified()).await;
    }

    /// There is something to exchange.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// See [`super::Store::remember`]. Where the server is not reached at once, the next exchange tells it.
    pub fn remember(&self, background: &BackgroundResponses, id: &str, create: BackgroundCreate) {
        let command = create_command(id, &create);
        background.remember(id, create);
        self.ask(&command, Instant::now() + REQUEST_WAIT);
        self.wake();
    }

    /// See [`super::Store::settle`]. Where the server is not reached, what is known here is billed here: rather twice than never.
    pub fn settle(
        &self,
        background: &BackgroundResponses,
        id: &str,
        now: Timestamp,
    ) -> Option<BackgroundCreate> {
        let deadline = Instant::now() + REQUEST_WAIT;
        let create = background.take(id, now).or_else(|| {
            let held = self.ask(&command("GET", &[&response_key(id)]), deadline)?;
            created(&held?)
        })?;
        match self.ask(&bill_command(id), deadline) {
            Some(Some(held)) if held.is_empty() => None,
            Some(_) => Some(create),
            None => {
                background.note_settled(id);
                Some(create)
            }
        }
    }

    /// What the server answers to a request's question; none where it does not in time.
    fn ask(&self, command: &Cmd, deadline: Instant) -> Option<Option<String>> {
        let mut connection = self.requests.try_lock_until(deadline)?;
        let asked = connection.as_mut()?;
        let left = deadline.saturating_duration_since(Instant::now());
        // No time at all would be no limit.
        let left = Some(left.max(Duration::from_millis(1)));
        let answer = asked
            .set_read_timeout(left)
            .and_then(|()| asked.set_write_timeout(left))
            .and_then(|()| command.query(asked));
        if answer.is_err() {
            // An answer that comes late must not be taken for that to the next question.
            *connection = None;
        }
        answer.ok()
    }

    fn connect(&self, session: &mut Session) -> RedisResult<()> {
        let is_linked = session.link.as_ref().is_some_and(Link::is_whole);
        if !is_linked {
            session.link = None;
            // It may have been started anew, without what it had.
            session.seen = None;
            session.link = Some(self.link()?);
        }
        if self.requests.lock().is_none() {
            let connection = self.open()?;
            *self.requests.lock() = Some(connection);
        }
        Ok(())
    }

    fn link(&self) -> RedisResult<Link> {
        let connection = self.open()?;
        let mut listening = self.open()?;
        let (process, changed) = (self.process.clone(), self.changed.clone());
        let ended = Arc::new(AtomicBool::new(false));
        let (is_ended, (tell, told)) = (ended.clone(), mpsc::channel());
        let listener = thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || {
                let mut subscription = listening.as_pubsub();
                let subscribed = subscription.subscribe(CHANGED);
                let has_subscribed = subscribed.is_ok();
                let _ = tell.send(subscribed);
                if has_subscribed {
                    listen(&mut subscription, &process, &changed, &is_ended);
                }
            })?;
        // The thread is alive until it has told.
        told.recv().unwrap_or(Ok(()))?;
        Ok(Link {
            connection,
            listener,
            ended,
        })
    }

    /// A connection that is logged in. The password is read each time: it may have been changed.
    fn open(&self) -> RedisResult<Connection> {
        let (host, port) = (self.server.host.clone(), self.server.port);
        let address = if self.server.tls {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let mut login = RedisConnectionInfo::default()
            .set_db(self.server.database.into())
            .set_skip_set_lib_name();
        if let Some(user) = &self.server.user {
            login = login.set_username(user);
        }
        if let Some(file) = &self.server.password_file {
            let bytes = FileBytes::read(file).map_err(|why| unusable(file, &why))?;
            let password = std::str::from_utf8(&bytes).map_err(|why| unusable(file, &why))?;
            login = login.set_password(password.trim_end_matches(['\r', '\n']));
        }
        let to: ConnectionInfo = address.into_connection_info()?;
        let to = to
            .set_redis_settings(login)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let connection = redis::Client::open(to)?.get_connection_with_timeout(ANSWER_WAIT)?;
        connection.set_read_timeout(Some(ANSWER_WAIT))?;
        connection.set_write_timeout(Some(ANSWER_WAIT))?;
        Ok(connection)
    }

    fn exchange_over(
        &self,
        session: &mut Session,
        budgets: &Budgets,
        background: &BackgroundResponses,
        now: Timestamp,
    ) -> RedisResult<()> {
        let Some(link) = &mut session.link else {
            return Ok(());
        };
        let (connection, sums) = (&mut link.connection, &mut session.sums);
        sums.retain(|_, sum| sum.window.ends.as_second() > now.as_second() - ENDED_KEPT_SECONDS);
        let read_all = session.read_all_at;
        let is_due = read_all.is_none_or(|at| at.elapsed() > READ_ALL_EVERY);
        let mut since = session.seen.filter(|_| !is_due);
        let (epoch, mut names) = changed_since(connection, since, &self.process)?;
        if since.is_some() && epoch != session.epoch {
            since = None;
            (_, names) = changed_since(connection, None, &self.process)?;
        }
        let changed = read(connection, &names, now)?;

        let unsaved = budgets.unsaved();
        let mut commands: Vec<Cmd> = Vec::new();
        if since.is_none() {
            background.save_anew();
            let current = sums.iter().filter(|(_, sum)| sum.window.ends > now);
            commands.extend(lost(current, &changed.sums));
        }
        for (key, spent) in &changed.sums {
            merge(sums, key, spent, &self.process);
        }
        let own = self.own(sums, &unsaved);
        for (key, entry) in &own {
            commands.push(save_command(key, &self.process, entry.usd, entry.window));
        }
        let changes = background.changes();
        commands.extend(background_commands(&changes));
        write(connection, &commands, &self.process)?;

        // Only now does the server have them; what was spent in the meantime stays unsaved.
        budgets.saved(&unsaved);
        let mut touched: HashSet<&String> = changed.sums.keys().collect();
        for (key, entry) in &own {
            let sum = sums.entry(key.clone()).or_insert_with(|| Sum {
                account: entry.account.clone(),
                window: entry.window,
                spent: HashMap::new(),
            });
            sum.spent.insert(self.process.clone(), entry.usd);
            touched.insert(key);
        }
        let totals = touched.into_iter().filter_map(|key| sums.get(key));
        let totals = totals.filter(|sum| sum.window.ends > now).map(Sum::total);
        budgets.learn(&totals.collect::<Vec<_>>());
        background.learn(&changes, changed.created, |id| changed.billed.contains(id));
        if since.is_none() {
            session.read_all_at = Some(Instant::now());
        }
        session.epoch = epoch;
        session.seen = names.iter().map(|(_, number)| *number).max().or(since);
        Ok(())
    }

    /// All that this process has spent, of the sums to which it has added something.
    fn own(&self, sums: &HashMap<String, Sum>, unsaved: &[Entry]) -> Vec<(String, Entry)> {
        let own = unsaved.iter().map(|entry| {
            let key = sum_key(entry);
            let sum = sums.get(&key);
            let before = sum.and_then(|sum| sum.spent.get(&self.process));
            let usd = entry
                .usd
                .saturating_add(before.copied().unwrap_or_default());
            (
                key,
                Entry {
                    usd,
                    ..entry.clone()
                },
            )
        });
        own.collect()
    }

    fn told(&self, why: &RedisError) -> StoreError {
        let server = format!("Redis at {}:{}", self.server.host, self.server.port);
        StoreError::Server(if why.is_timeout() {
            format!("{server}: no answer within {} s", ANSWER_WAIT.as_secs())
        } else {
            format!("{server}: {why}")
        })
    }
}

impl Link {
    fn is_whole(&self) -> bool {
        !self.listener.is_finished()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Sum {
    fn total(&self) -> Entry {
        let add = |sum: Decimal, spent: &Decimal| sum.saturating_add(*spent);
        Entry {
            account: self.account.clone(),
            window: self.window,
            usd: self.spent.values().fold(Decimal::ZERO, add),
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisStore").field(&self.server).finish()
    }
}

/// Wakes this process whenever another has changed something, until the connection or the link ends.
fn listen(subscription: &mut PubSub<'_>, process: &str, changed: &Notify, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        match subscription.get_message() {
            Ok(message) if message.get_payload_bytes() == process.as_bytes() => {}
            Ok(_) => changed.notify_one(),
            Err(why) if why.is_timeout() => {}
            Err(_) => return,
        }
    }
}

/// The epoch of the sequence, and the keys that have changed since that number, each with its own.
fn changed_since(
    connection: &mut Connection,
    since: Option<u64>,
    process: &str,
) -> RedisResult<(String, Vec<(String, u64)>)> {
    let above = since.map_or("-inf".to_owned(), |number| format!("({number}"));
    let mut pipeline = redis::pipe();
    // The name of a process and a moment are not used twice.
    let epoch = format!("{process}-{}", Timestamp::now().as_microsecond());
    pipeline
        .atomic()
        .add_command(command("HSETNX", &[SEQUENCE, "epoch", &epoch]))
        .ignore()
        .add_command(command("HGET", &[SEQUENCE, "epoch"]))
        .add_command(command(
            "ZRANGEBYSCORE",
            &[INDEX, &above, "+inf", "WITHSCORES"],
        ));
    pipeline.query(connection)
}

/// What these keys hold. Those that hold nothing any more leave the index.
fn read(
    connection: &mut Connection,
    names: &[(String, u64)],
    now: Timestamp,
) -> RedisResult<Changed> {
    let mut changed = Changed::default();
    let mut expired: Vec<&str> = Vec::new();
    for names in names.chunks(BATCH) {
        let mut pipeline = redis::pipe();
        let mut asked: Vec<&str> = Vec::new();
        for (name, _) in names {
            let window = parse_sum_key(name).map(|(_, window)| window);
            let get = match window {
                Some(window) if window.ends <= now => {
                    if window.ends.as_second() < now.as_second() - KEPT_SECONDS {
                        expired.push(name);
                    }
                    continue;
                }
                Some(_) => "HGETALL",
                None => "GET",
            };
            pipeline.add_command(command(get, &[name]));
            asked.push(name);
        }
        let held: Vec<redis::Value> = pipeline.query(connection)?;
        for (name, held) in asked.into_iter().zip(held) {
            if let Some(id) = name.strip_prefix(RESPONSE) {
                let text: Option<String> = redis::from_redis_value(held)?;
                match text.as_deref().map(created) {
                    Some(Some(create)) if now.duration_since(create.time) <= MAX_AGE => {
                        changed.created.push((id.to_owned(), create));
                    }
                    Some(_) => drop(changed.billed.insert(id.to_owned())),
                    None => expired.push(name),
                }
            } else {
                let spent = redis::from_redis_value(held)?;
                changed.sums.insert(name.to_owned(), spent);
            }
        }
    }
    for expired in expired.chunks(BATCH) {
        let _: () = command("ZREM", &[INDEX]).arg(expired).query(connection)?;
    }
    changed
        .created
        .sort_unstable_by_key(|(_, create)| create.time);
    Ok(changed)
}

/// Gives back what is known here and the server does not have, or has only in part: it came back without it, or with a copy of
/// earlier.
fn lost<'s>(
    sums: impl Iterator<Item = (&'s String, &'s Sum)>,
    held: &HashMap<String, HashMap<String, String>>,
) -> Vec<Cmd> {
    let mut commands = Vec::new();
    for (key, sum) in sums {
        for (process, usd) in &sum.spent {
            let held = held.get(key).and_then(|spent| spent.get(process));
            if held.is_none_or(|held| decimal(held) < *usd) {
                commands.push(save_command(key, process, *usd, sum.window));
            }
        }
    }
    commands
}

/// Takes over what the server says that each other process has spent; it is never taken for less than what is known here. What
/// this one has spent it knows itself: the server may have more of it than it has confirmed.
fn merge(sums: &mut HashMap<String, Sum>, key: &str, held: &HashMap<String, String>, own: &str) {
    if sums.len() >= MAX_SUMS && !sums.contains_key(key) {
        return;
    }
    let Some((account, window)) = parse_sum_key(key) else {
        return;
    };
    let sum = sums.entry(key.to_owned()).or_insert_with(|| Sum {
        account,
        window,
        spent: HashMap::new(),
    });
    for (process, usd) in held.iter().filter(|(process, _)| *process != own) {
        let known = sum.spent.entry(process.clone()).or_default();
        *known = decimal(usd).max(*known);
    }
}

/// What this program wrote; anything else is nothing.
fn decimal(text: &str) -> Decimal {
    text.parse().unwrap_or_default()
}

/// Writes all, and tells the others.
fn write(connection: &mut Connection, commands: &[Cmd], process: &str) -> RedisResult<()> {
    for commands in commands.chunks(BATCH) {
        let mut pipeline: Pipeline = redis::pipe();
        for command in commands {
            pipeline.add_command(command.clone()).ignore();
        }
        pipeline
            .add_command(command("PUBLISH", &[CHANGED, process]))
            .ignore();
        pipeline.exec(connection)?;
    }
    Ok(())
}

fn command(name: &str, arguments: &[&str]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(arguments);
    command
}

/// A script for this key.
fn script(script: &str, key: &str) -> Cmd {
    command("EVAL", &[script, "3", key, INDEX, SEQUENCE])
}

fn save_command(key: &str, process: &str, usd: Decimal, window: Window) -> Cmd {
    let mut command = script(SAVE_SUM, key);
    command
        .arg(process)
        .arg(usd.to_string())
        .arg(window.ends.as_second() + KEPT_SECONDS);
    command
}

fn create_command(id: &str, create: &BackgroundCreate) -> Cmd {
    let mut command = script(CREATE, &response_key(id));
    // It is made of texts and times, which JSON can always tell.
    command
        .arg(serde_json::to_string(create).unwrap_or_default())
        .arg(MAX_AGE.as_secs());
    command
}

fn bill_command(id: &str) -> Cmd {
    let mut command = script(BILL, &response_key(id));
    command.arg(MAX_AGE.as_secs());
    command
}

fn background_commands(changes: &BackgroundChanges) -> impl Iterator<Item = Cmd> {
    let created = changes.created.iter();
    let created = created.map(|(id, create)| create_command(id, create));
    created.chain(changes.settled.iter().map(|id| bill_command(id)))
}

/// What was written of a response that is not billed yet.
fn created(text: &str) -> Option<BackgroundCreate> {
    serde_json::from_str(text).ok()
}

fn response_key(id: &str) -> String {
    [RESPONSE, id].concat()
}

fn sum_key(entry: &Entry) -> String {
    let Entry {
        account, window, ..
    } = entry;
    let key = account.key.map_or("-".to_owned(), hex::encode);
    let (begins, ends) = (window.begins.as_second(), window.ends.as_second());
    format!(
        "{SUM}{}:{begins}:{ends}:{key}:{}",
        account.per.as_str(),
        account.group
    )
}

fn parse_sum_key(name: &str) -> Option<(Account, Window)> {
    let mut parts = name.strip_prefix(SUM)?.splitn(5, ':');
    let mut part = || parts.next();
    let (per, begins, ends, key, group) = (part()?, part()?, part()?, part()?, part()?);
    let key = match key {
        "-" => None,
        digest => {
            let mut bytes = [0; 32];
            hex::decode_to_slice(digest, &mut bytes).ok()?;
            Some(bytes)
        }
    };
    let account = Account {
        group: group.into(),
        key,
        per: per.parse().ok()?,
    };
    let second = |text: &str| Timestamp::from_second(text.parse().ok()?).ok();
    let window = Window {
        begins: second(begins)?,
        ends: second(ends)?,
    };
    Some((account, window))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::store::test::{NOW, at, rule, usd};
    use crate::policy::group::{Period, Scope};

    fn entry(scope: Scope, spent: &str) -> Entry {
        let rule = rule(Period::Month, scope);
        Entry {
            account: rule.account(&"a:group - with: all".into(), &[7; 32]),
            window: rule.window(at(NOW)),
            usd: usd(spent),
        }
    }

    fn held(spent: &[(&str, &str)]) -> HashMap<String, String> {
        let spent = spent.iter();
        let owned = spent.map(|(process, usd)| ((*process).to_owned(), (*usd).to_owned()));
        owned.collect()
    }

    #[test]
    fn the_name_of_a_sum_tells_whose_it_is() {
        for scope in [Scope::Group, Scope::Key] {
            let entry = entry(scope, "1");
            let name = sum_key(&entry);
            assert!(name.starts_with("tiergate:budget:month:1793491200:1796083200:"));
            let told = parse_sum_key(&name);
            assert_eq!(told, Some((entry.account, entry.window)), "{name}");
        }
        for other in ["tiergate:budget:month:1:2:-", "tiergate:background:r", "x"] {
            assert_eq!(parse_sum_key(other), None);
        }
    }

    #[test]
    fn a_sum_is_what_all_processes_have_spent_and_never_falls() {
        let name = sum_key(&entry(Scope::Group, "0"));
        let mut sums = HashMap::new();
        for (spent, total) in [
            (held(&[("own", "9")]), "0"),
            (
                held(&[("a", "0.1"), ("b", "0.000000000000002")]),
                "0.100000000000002",
            ),
            (held(&[("a", "0.05"), ("c", "3")]), "3.100000000000002"),
            (held(&[]), "3.100000000000002"),
            (
                held(&[("a", "0.2"), ("b", "nonsense")]),
                "3.200000000000002",
            ),
        ] {
            merge(&mut sums, &name, &spent, "own");
            assert_eq!(sums[&name].total(), entry(Scope::Group, total));
        }
    }

    #[test]
    fn a_server_gets_back_what_it_has_lost_and_nothing_else() {
        let name = sum_key(&entry(Scope::Group, "0"));
        let mut sums = HashMap::new();
        merge(
            &mut sums,
            &name,
            &held(&[("a", "1"), ("b", "2"), ("c", "3")]),
            "own",
        );
        let lost = |spent: Option<HashMap<String, String>>| {
            let held = spent.map(|spent| (name.clone(), spent));
            lost(sums.iter(), &held.into_iter().collect()).len()
        };
        assert_eq!(lost(None), 3);
        assert_eq!(lost(Some(held(&[("a", "1.0"), ("b", "1"), ("c", "4")]))), 1);
        assert_eq!(lost(Some(held(&[("a", "1"), ("b", "2"), ("c", "3")]))), 0);
    }

    #[test]
    fn without_a_server_nothing_waits_and_what_is_known_is_billed() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = nobody.local_addr().unwrap().port();
        drop(nobody);
        let store = RedisStore::new(Redis {
            tls: false,
            host: "127.0.0.1".to_owned(),
            port,
            database: 0,
            user: None,
            password_file: None,
        });
        let (budgets, background) = (Budgets::default(), BackgroundResponses::with_store());
        let failed = store.exchange(&budgets, &background, at(NOW)).unwrap_err();
        assert!(
            failed
                .to_string()
                .starts_with(&format!("Redis at 127.0.0.1:{port}: "))
        );
        let create: BackgroundCreate = serde_json::from_value(serde_json::json!({
            "request_id": Uuid::nil(), "time": NOW,
        }))
        .unwrap();
        store.remember(&background, "resp_1", create.clone());
        let known = |id: &str| store.settle(&background, id, at(NOW));
        assert_eq!(known("resp_1"), Some(create));
        assert_eq!(known("resp_1"), None);
        assert_eq!(background.changes().settled, ["resp_1"]);
    }
}
