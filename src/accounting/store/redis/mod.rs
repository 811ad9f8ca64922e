//! A server of Redis or Valkey, by which a fleet shares what its processes know.
//!
//! A sum is a hash with a field for each process that spent something, which only that process raises. Writing it again changes
//! nothing: what was lost on the way is sent again, and a server that has lost its data gets back what is known here. Each key
//! that is written gets the next number of one sequence in an index; what changed since the last exchange is what has a higher
//! number than was seen then. A process looks each second, and at once when another tells it to.

mod commands;
mod counters;

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
    RedisConnectionInfo, RedisError, RedisResult, Value,
};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::accounting::background::{BackgroundCreate, BackgroundResponses};
use crate::accounting::store::redis::commands::{
    CHANGED, INDEX, INDEX_SECONDS, RESPONSE, SEQUENCE, command,
};
use crate::accounting::store::redis::counters::{Counters, Held};
use crate::accounting::store::{EXCHANGE_EVERY, KEPT_SECONDS, StoreError};
use crate::config::Redis;
use crate::config::redis::read_password;
use crate::policy::budget::{BudgetSum, Budgets};

/// How long an exchange waits for a connection, and for each answer.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// How long the line of a request may wait, in all.
const REQUEST_WAIT: Duration = Duration::from_millis(20);
/// Between two exchanges of a busy process.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// After so long everything is read again, and keys that have expired leave the index.
const READ_ALL_EVERY: Duration = Duration::from_secs(3600);
/// Keys that are read or written by one pipeline.
const BATCH: usize = 1000;

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

struct Session {
    link: Option<Link>,
    known: Known,
}

/// What is known of what the server keeps.
struct Known {
    counters: Counters,
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

/// What the server says of keys that have changed.
#[derive(Default)]
struct Changed {
    epoch: String,
    /// The highest number of these keys, or of those that were seen before.
    seen: Option<u64>,
    /// These are all keys, whenever they changed.
    is_all: bool,
    sums: HashMap<String, Held>,
    created: Vec<(String, BackgroundCreate)>,
    billed: HashSet<String>,
}

impl RedisStore {
    /// A server that is yet to be connected to.
    pub fn new(server: Redis) -> RedisStore {
        let process = Uuid::now_v7().simple().to_string();
        let known = Known {
            counters: Counters::new(process.clone()),
            epoch: String::new(),
            seen: None,
            read_all_at: None,
        };
        let session = Session { link: None, known };
        RedisStore {
            server,
            process,
            changed: Arc::default(),
            session: Mutex::new(session),
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
            // Nor is a line to wait for it.
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

    /// See [`super::Store::claim`]; none where the server does not answer in time.
    pub fn claim(&self, id: &str) -> Option<bool> {
        let held = self.ask(&commands::bill(id))?;
        Some(held.is_none_or(|held| !held.is_empty()))
    }

    /// What the server answers to the question of a request; none where it does not in time.
    fn ask(&self, command: &Cmd) -> Option<Option<String>> {
        let deadline = Instant::now() + REQUEST_WAIT;
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
            session.known.seen = None;
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
            login = login.set_password(read_password(file)?.as_str());
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
        let (connection, known) = (&mut link.connection, &mut session.known);
        known.counters.forget(now);
        let changed = known.collect_changes(connection, &self.process, now)?;

        let mut told: Vec<Cmd> = Vec::new();
        if changed.is_all {
            background.save_anew();
            told.extend(known.counters.lost(&changed.sums, now));
        }
        for (key, held) in &changed.sums {
            known.counters.merge(key, held);
        }
        let (unsaved, changes) = (budgets.unsaved(), background.changes());
        let own = known.counters.with(&unsaved);
        let raise = |(key, own): &(String, BudgetSum)| {
            commands::save(key, &self.process, own.usd, own.window)
        };
        told.extend(own.iter().map(raise));
        told.extend(commands::tell(&changes));
        write(connection, &told, &self.process)?;

        // Only now does the server have them; what was spent in the meantime stays unsaved.
        budgets.saved(&unsaved);
        budgets.learn(&known.adopt(&changed, &own), now);
        background.learn(&changes, changed.created, |id| changed.billed.contains(id));
        Ok(())
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

impl Known {
    /// What has changed on the server since the last exchange: everything, where the sequence has begun anew or it is time.
    fn collect_changes(
        &self,
        connection: &mut Connection,
        process: &str,
        now: Timestamp,
    ) -> RedisResult<Changed> {
        let read_all = self.read_all_at;
        let is_due = read_all.is_none_or(|at| at.elapsed() > READ_ALL_EVERY);
        let mut since = self.seen.filter(|_| !is_due);
        let (epoch, mut names) = changed_since(connection, since, process)?;
        if since.is_some() && epoch != self.epoch {
            since = None;
            (_, names) = changed_since(connection, None, process)?;
        }
        Ok(Changed {
            epoch,
            seen: names.iter().map(|(_, number)| *number).max().or(since),
            is_all: since.is_none(),
            ..read(connection, &names, now)?
        })
    }

    /// The server has what this process has spent, and this knows what the server has. Gives the sums that this concerns.
    fn adopt(&mut self, changed: &Changed, own: &[(String, BudgetSum)]) -> Vec<BudgetSum> {
        own.iter()
            .for_each(|(key, own)| self.counters.confirm(key, own));
        if changed.is_all {
            self.read_all_at = Some(Instant::now());
        }
        self.epoch.clone_from(&changed.epoch);
        self.seen = changed.seen;
        let own = own.iter().map(|(key, _)| key);
        let touched: HashSet<&String> = changed.sums.keys().chain(own).collect();
        self.counters.totals(touched)
    }
}

impl Changed {
    /// Takes what a key holds. False where it holds nothing any more.
    fn take(&mut self, name: &str, held: Value) -> RedisResult<bool> {
        let Some(id) = name.strip_prefix(RESPONSE) else {
            self.sums
                .insert(name.to_owned(), redis::from_redis_value(held)?);
            return Ok(true);
        };
        let text: Option<String> = redis::from_redis_value(held)?;
        match text.as_deref().map(commands::created) {
            Some(Some(create)) => self.created.push((id.to_owned(), create)),
            Some(_) => drop(self.billed.insert(id.to_owned())),
            None => return Ok(false),
        }
        Ok(true)
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
        .add_command(command("EXPIRE", &[SEQUENCE, INDEX_SECONDS]))
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
        let asked = names_to_ask(names, now, &mut expired);
        let answers = ask(connection, &asked)?;
        for (name, held) in asked.into_iter().zip(answers) {
            if !changed.take(name, held)? {
                expired.push(name);
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

/// The keys that may hold what still counts. Sums that ended long ago have expired.
fn names_to_ask<'n>(
    names: &'n [(String, u64)],
    now: Timestamp,
    expired: &mut Vec<&'n str>,
) -> Vec<&'n str> {
    let mut asked: Vec<&str> = Vec::new();
    for (name, _) in names {
        let ends = commands::parse_sum_key(name).map(|(_, window)| window.ends);
        match ends.filter(|ends| *ends <= now) {
            None => asked.push(name),
            Some(ends) if ends.as_second() < now.as_second() - KEPT_SECONDS => expired.push(name),
            Some(_) => {}
        }
    }
    asked
}

/// What each of these keys holds: a sum is a hash, a response a text.
fn ask(connection: &mut Connection, names: &[&str]) -> RedisResult<Vec<Value>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = redis::pipe();
    for name in names {
        let is_response = name.starts_with(RESPONSE);
        let get = if is_response { "GET" } else { "HGETALL" };
        pipeline.add_command(command(get, &[name]));
    }
    pipeline.query(connection)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::store::Store;
    use crate::accounting::store::test::{NOW, at};

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
        background.remember("resp_1", create.clone());
        assert_eq!(background.take("resp_1", at(NOW)), Some(create));
        // It is billed all the same, and told to the server later.
        assert!(Store::Redis(Box::new(store)).claim(&background, "resp_1"));
        assert_eq!(background.take("resp_1", at(NOW)), None);
        assert_eq!(background.changes().settled, ["resp_1"]);
    }
}
