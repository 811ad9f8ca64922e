//! A redb file of this machine. It is open, and locked, for one exchange only, some milliseconds. So the two processes of a
//! takeover share it: each adds what it spent itself to what stands there, and learns what the other spent. A file that was
//! deleted or replaced meanwhile gets back what is known here.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableTable, Table, TableDefinition, WriteTransaction};
use rust_decimal::Decimal;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::accounting::background::{
    BackgroundChanges, BackgroundCreate, BackgroundResponses, is_forgotten,
};
use crate::accounting::store::{EXCHANGE_EVERY, KEPT_SECONDS, MAX_SUMS, StoreError, decimal};
use crate::policy::budget::{Account, BudgetSum, Budgets, Window};
use crate::policy::group::Period;

/// Name of the group, digest of the key or nothing, period, beginning and end of the window in seconds; USD as a decimal.
const BUDGETS: TableDefinition<'_, BudgetKey<'_>, &str> = TableDefinition::new("budgets-1");
/// Id of the response; who created it, as JSON.
const BACKGROUND: TableDefinition<'_, &str, &str> = TableDefinition::new("background-1");
/// Which file this is: the id that it got when it was made, and how many exchanges it has seen, in one row.
const EDITION: TableDefinition<'_, (), (u128, u64)> = TableDefinition::new("edition-1");
type BudgetKey<'k> = (&'k str, &'k [u8], &'k str, i64, i64);
type Sums<'t> = Table<'t, BudgetKey<'static>, &'static str>;

/// How long another process may hold the file.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// Between two exchanges of a busy process; and so many times as long as the one before took, which reads all that is kept.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const PAUSE_FACTOR: u32 = 10;

/// A file in which sums are kept.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// Told when there is something to exchange.
    changed: Notify,
    /// How long the newest exchange took.
    took: Mutex<Duration>,
    /// What the file was after the newest exchange of this process.
    seen: Mutex<Option<Edition>>,
    /// The file as it was found to be damaged.
    damaged: Mutex<Option<FileId>>,
}

/// What tells a file from the one that is put in its place, or from what it is when somebody has written to it.
type FileId = (u64, SystemTime);

/// A state in which the file was.
#[derive(Clone, Copy, Debug)]
struct Edition {
    id: Uuid,
    /// A copy of earlier has fewer.
    exchanges: u64,
}

/// What became of the file since it was last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It has what it had.
    Intact,
    /// A copy of earlier is in its place: what it has and is not known here was billed since.
    Earlier,
    /// Another is in its place, or it was made anew.
    Another,
}

impl StateFile {
    /// The file at this path, which is made where it is missing, for its owner alone.
    ///
    /// # Errors
    /// Where it cannot be used.
    pub fn open(path: &Path) -> Result<StateFile, StoreError> {
        let store = StateFile {
            path: path.to_owned(),
            changed: Notify::new(),
            took: Mutex::default(),
            seen: Mutex::default(),
            damaged: Mutex::default(),
        };
        store.unless_damaged(|| {
            let database = store.database()?;
            let transaction = database.begin_write().map_err(broken)?;
            transaction.open_table(BUDGETS).map_err(broken)?;
            transaction.open_table(BACKGROUND).map_err(broken)?;
            transaction.commit().map_err(broken)
        })?;
        Ok(store)
    }

    /// Adds what was spent here to the file, and learns what stands there then. It waits for the disk: not for a thread that
    /// serves requests.
    ///
    /// # Errors
    /// Where the file cannot be used; the sums in memory go on without it. Where it was deleted or replaced, though it has by
    /// now what is known here.
    pub fn exchange(
        &self,
        budgets: &Budgets,
        background: &BackgroundResponses,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.unless_damaged(|| self.exchange_with_file(budgets, background, now))
    }

    fn exchange_with_file(
        &self,
        budgets: &Budgets,
        background: &BackgroundResponses,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let database = self.database()?;
        let mut seen = self.seen.lock();
        let transaction = database.begin_write().map_err(broken)?;
        let (edition, found) = next_edition(&transaction, *seen)?;
        let is_replaced = found != Found::Intact;
        if is_replaced {
            background.save_anew();
        }
        let (unsaved, changes) = (budgets.unsaved(), background.changes());
        let known = {
            let mut table = transaction.open_table(BUDGETS).map_err(broken)?;
            let oldest = now.as_second() - KEPT_SECONDS;
            table
                .retain(|(.., ends), _| ends >= oldest)
                .map_err(broken)?;
            if is_replaced {
                let counts = |entry: &&BudgetSum| entry.window.counts(now);
                for entry in budgets.in_store().iter().filter(counts) {
                    raise(&mut table, entry).map_err(broken)?;
                }
            }
            for entry in &unsaved {
                add(&mut table, entry).map_err(broken)?;
            }
            entries(&table).map_err(broken)?
        };
        let responses = {
            let mut table = transaction.open_table(BACKGROUND).map_err(broken)?;
            if found == Found::Earlier {
                table.retain(|_, _| false).map_err(broken)?;
            }
            exchange_background(&mut table, &changes, now).map_err(broken)?
        };
        transaction.commit().map_err(broken)?;
        let ids: HashSet<String> = responses.iter().map(|(id, _)| id.clone()).collect();
        background.learn(&changes, responses, |id| !ids.contains(id));
        // Only now are they in the file; what was spent in the meantime stays unsaved.
        budgets.saved(&unsaved);
        budgets.learn(&known, now);
        *self.took.lock() = began.elapsed();
        *seen = Some(edition);
        if is_replaced {
            return Err(StoreError::FileReplaced);
        }
        Ok(())
    }

    /// See [`super::Store::claim`]; none where the file cannot tell: it cannot be used, or is not the one that it was.
    pub fn claim(&self, background: &BackgroundResponses, id: &str) -> Option<bool> {
        let claimed = self.unless_damaged(|| self.claim_in_file(background, id));
        claimed.ok().flatten()
    }

    fn claim_in_file(
        &self,
        background: &BackgroundResponses,
        id: &str,
    ) -> Result<Option<bool>, StoreError> {
        let database = self.database()?;
        let mut seen = self.seen.lock();
        let transaction = database.begin_write().map_err(broken)?;
        let (edition, found) = next_edition(&transaction, *seen)?;
        if found != Found::Intact {
            return Ok(None);
        }
        let was_there = {
            let mut table = transaction.open_table(BACKGROUND).map_err(broken)?;
            table.remove(id).map_err(broken)?.is_some()
        };
        if was_there {
            transaction.commit().map_err(broken)?;
            *seen = Some(edition);
        }
        // No exchange runs meanwhile: what was saved and is not there any more, another process has taken out.
        Ok(Some(was_there || background.is_unsaved(id)))
    }

    /// Returns when there is something to exchange, or another process may have something.
    pub async fn next_exchange(&self) {
        let pause = (*self.took.lock() * PAUSE_FACTOR).clamp(SHORTEST_PAUSE, EXCHANGE_EVERY);
        tokio::time::sleep(pause).await;
        let _ = tokio::time::timeout(EXCHANGE_EVERY, self.changed.notified()).await;
    }

    /// There is something to exchange.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// What is done with the file. redb 4 panics where a page of it has another content than it wrote; this is told once, and
    /// the file let be until it is another.
    fn unless_damaged<T>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let damaged = *self.damaged.lock();
        if damaged.is_some() && damaged == self.file_id() {
            return Err(StoreError::FileDamaged);
        }
        // What is in memory is changed only once the file was, and no lock is poisoned.
        let done = catch_unwind(AssertUnwindSafe(work));
        *self.damaged.lock() = done.is_err().then(|| self.file_id()).flatten();
        done.unwrap_or(Err(StoreError::FileDamaged))
    }

    fn file_id(&self) -> Option<FileId> {
        let metadata = self.path.metadata().ok()?;
        Some((metadata.ino(), metadata.modified().ok()?))
    }

    fn database(&self) -> Result<Database, StoreError> {
        let give_up = Instant::now() + LOCK_WAIT;
        loop {
            let file = self.file().map_err(broken)?;
            let opened = FileBackend::new(file)
                .and_then(|file| Database::builder().create_with_backend(file));
            match opened {
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < give_up => {
                    thread::sleep(LOCK_RETRY);
                }
                Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::FileLocked),
                opened => return opened.map_err(broken),
            }
        }
    }

    fn file(&self) -> Result<File, redb::Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options
            .mode(0o600)
            .open(&self.path)
            .map_err(redb::Error::Io)
    }
}

/// Counts this exchange, and says what became of the file since the edition that was seen.
fn next_edition(
    transaction: &WriteTransaction,
    seen: Option<Edition>,
) -> Result<(Edition, Found), StoreError> {
    let mut table = transaction.open_table(EDITION).map_err(broken)?;
    let held = table.get(()).map_err(broken)?.map(|row| {
        let (id, exchanges) = row.value();
        Edition {
            id: Uuid::from_u128(id),
            exchanges,
        }
    });
    let found = match (seen, held) {
        (None, _) => Found::Intact,
        (Some(seen), Some(held)) if seen.id != held.id => Found::Another,
        (Some(seen), Some(held)) if seen.exchanges > held.exchanges => Found::Earlier,
        (Some(_), Some(_)) => Found::Intact,
        (Some(_), None) => Found::Another,
    };
    // Another process that uses the file is to see that it is not what it was.
    let known = held.filter(|_| found != Found::Earlier);
    let edition = Edition {
        id: known.map_or_else(Uuid::now_v7, |held| held.id),
        exchanges: held.map_or(0, |held| held.exchanges) + 1,
    };
    let row = (edition.id.as_u128(), edition.exchanges);
    table.insert((), row).map_err(broken)?;
    Ok((edition, found))
}

/// Takes the changes, forgets what is too old, and returns what is known then.
fn exchange_background(
    table: &mut Table<'_, &'static str, &'static str>,
    changes: &BackgroundChanges,
    now: Timestamp,
) -> Result<Vec<(String, BackgroundCreate)>, redb::StorageError> {
    for (id, create) in &changes.created {
        // It is made of texts and times, which JSON can always tell.
        let text = serde_json::to_string(create).unwrap_or_default();
        table.insert(id.as_str(), text.as_str())?;
    }
    for id in &changes.settled {
        table.remove(id.as_str())?;
    }
    let mut known = Vec::new();
    let mut unreadable = Vec::new();
    for row in table.iter()? {
        let (id, text) = row?;
        let create: Option<BackgroundCreate> = serde_json::from_str(text.value()).ok();
        match create {
            Some(create) => known.push((id.value().to_owned(), create)),
            None => unreadable.push(id.value().to_owned()),
        }
    }
    known.sort_unstable_by_key(|(_, create)| create.time);
    let count = known.len();
    let oldest = known.iter().enumerate();
    let oldest = oldest.take_while(|(at, (_, create))| is_forgotten(create.time, count - at, now));
    let forgotten = oldest.count();
    let forgotten = known.drain(..forgotten).map(|(id, _)| id);
    for id in forgotten.chain(unreadable) {
        table.remove(id.as_str())?;
    }
    Ok(known)
}

/// Adds to a sum.
fn add(table: &mut Sums<'_>, entry: &BudgetSum) -> Result<(), redb::StorageError> {
    change(table, entry, |held| held.saturating_add(entry.usd))
}

/// Gives a sum back: the file has no less than was known of it.
fn raise(table: &mut Sums<'_>, entry: &BudgetSum) -> Result<(), redb::StorageError> {
    change(table, entry, |held| held.max(entry.usd))
}

/// Changes a sum; one too many is left out, and counts in memory only.
fn change(
    table: &mut Sums<'_>,
    entry: &BudgetSum,
    change: impl FnOnce(Decimal) -> Decimal,
) -> Result<(), redb::StorageError> {
    let key = key_of(entry);
    let before = table.get(key)?.map(|sum| decimal(sum.value()));
    if before.is_none() && redb::ReadableTableMetadata::len(table)? >= MAX_SUMS as u64 {
        return Ok(());
    }
    let sum = change(before.unwrap_or_default());
    table.insert(key, &*sum.to_string())?;
    Ok(())
}

fn entries(table: &Sums<'_>) -> Result<Vec<BudgetSum>, redb::StorageError> {
    let read = |(key, sum): (
        redb::AccessGuard<'_, BudgetKey<'static>>,
        redb::AccessGuard<'_, &str>,
    )| {
        let (group, key, per, begins, ends) = key.value();
        Some(BudgetSum {
            account: Account {
                group: Arc::from(group),
                key: key.try_into().ok(),
                per: per.parse::<Period>().ok()?,
            },
            window: Window {
                begins: Timestamp::from_second(begins).ok()?,
                ends: Timestamp::from_second(ends).ok()?,
            },
            usd: decimal(sum.value()),
        })
    };
    let mut entries = Vec::new();
    for row in table.iter()? {
        entries.extend(read(row?));
    }
    Ok(entries)
}

fn key_of(entry: &BudgetSum) -> BudgetKey<'_> {
    let key = entry.account.key.as_ref();
    (
        &entry.account.group,
        key.map_or(&[][..], |key| &key[..]),
        entry.account.per.as_str(),
        entry.window.begins.as_second(),
        entry.window.ends.as_second(),
    )
}

fn broken(error: impl Into<redb::Error>) -> StoreError {
    StoreError::File(Box::new(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::store::test::{NOW, at, rule, usd};
    use crate::policy::group::{BudgetRule, Scope};
    use std::os::unix::fs::PermissionsExt;

    /// Exchanges budgets alone.
    fn exchange(store: &StateFile, budgets: &Budgets, now: Timestamp) {
        let background = BackgroundResponses::default();
        store.exchange(budgets, &background, now).unwrap();
    }

    #[test]
    fn sums_are_there_after_a_restart_by_group_and_by_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let now = at(NOW);
        for round in 1..=3 {
            for scope in [Scope::Group, Scope::Key] {
                let rule = rule(Period::Month, scope);
                let budgets = Budgets::default();
                let store = StateFile::open(&path).unwrap();
                exchange(&store, &budgets, now);
                let account = rule.account(&"fast".into(), &[7; 32]);
                budgets.charge(&rule, &account, usd("0.000000000000001"), now);
                exchange(&store, &budgets, now);
                exchange(&store, &budgets, now);
                let expected = usd("0.000000000000001") * Decimal::from(round);
                assert_eq!(budgets.standing(&rule, &account, now).spent, expected);
            }
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_two_processes_spend_comes_together_in_both() {
        const ROUNDS: u32 = 20;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let (rule, now) = (rule(Period::Day, Scope::Group), at(NOW));
        let account = rule.account(&"fast".into(), &[7; 32]);
        let process = || {
            let (store, budgets) = (StateFile::open(&path).unwrap(), Budgets::default());
            for _ in 0..ROUNDS {
                budgets.charge(&rule, &account, usd("0.01"), now);
                exchange(&store, &budgets, now);
            }
            (store, budgets)
        };
        let both = thread::scope(|scope| {
            [scope.spawn(process), scope.spawn(process)].map(|process| process.join().unwrap())
        });
        for (store, budgets) in both {
            exchange(&store, &budgets, now);
            let spent = budgets.standing(&rule, &account, now).spent;
            assert_eq!(spent, usd("0.01") * Decimal::from(2 * ROUNDS));
        }
    }

    #[test]
    fn a_window_that_is_over_is_not_taken_up_and_goes_after_a_week() {
        let folder = tempfile::tempdir().unwrap();
        let store = StateFile::open(&folder.path().join("state.redb")).unwrap();
        let rule = rule(Period::Day, Scope::Group);
        let account = rule.account(&"fast".into(), &[7; 32]);
        let budgets = Budgets::default();
        budgets.charge(&rule, &account, usd("3"), at(NOW));
        exchange(&store, &budgets, at(NOW));
        let count = || {
            let database = store.database().unwrap();
            let transaction = database.begin_write().unwrap();
            let table = transaction.open_table(BUDGETS).unwrap();
            entries(&table).unwrap().len()
        };
        for (now, kept) in [("2026-12-01T00:00:00Z", 1), ("2026-12-09T00:00:00Z", 0)] {
            let fresh = Budgets::default();
            exchange(&store, &fresh, at(now));
            assert_eq!(fresh.standing(&rule, &account, at(now)).spent, usd("0"));
            assert_eq!(count(), kept, "{now}");
        }
    }

    #[test]
    fn a_damaged_file_is_told_of_and_let_be_until_it_is_moved_away() {
        const PAGE: usize = 4096;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let (rule, now) = (rule(Period::Day, Scope::Group), at(NOW));
        let account = rule.account(&"fast".into(), &[7; 32]);
        let budgets = Budgets::default();
        let try_exchange =
            |store: &StateFile| store.exchange(&budgets, &BackgroundResponses::default(), now);
        budgets.charge(&rule, &account, usd("1"), now);
        try_exchange(&StateFile::open(&path).unwrap()).unwrap();
        let good = std::fs::read(&path).unwrap();
        let mut damaged = 0;
        for page in 1..good.len() / PAGE {
            let store = StateFile::open(&path).unwrap();
            try_exchange(&store).unwrap();
            let mut bad = std::fs::read(&path).unwrap();
            if let Some(page) = bad.chunks_exact_mut(PAGE).nth(page) {
                page.fill(0);
            }
            std::fs::write(&path, bad).unwrap();
            for _ in 0..2 {
                if let Err(why) = try_exchange(&store) {
                    damaged += usize::from(matches!(why, StoreError::FileDamaged));
                }
            }
            std::fs::remove_file(&path).unwrap();
            // What is known here is given back, unless the file told that it had been replaced before.
            let _ = try_exchange(&store);
            try_exchange(&store).unwrap();
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, &good).unwrap();
        }
        assert!(damaged >= 2);
        assert_eq!(budgets.standing(&rule, &account, now).spent, usd("1"));
    }

    #[test]
    fn without_its_file_a_budget_goes_on_and_is_saved_once_it_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let store = StateFile::open(&path).unwrap();
        let (rule, now) = (rule(Period::Day, Scope::Group), at(NOW));
        let account = rule.account(&"fast".into(), &[7; 32]);
        let budgets = Budgets::default();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        budgets.charge(&rule, &account, usd("1"), now);
        assert!(matches!(
            store.exchange(&budgets, &BackgroundResponses::default(), now),
            Err(StoreError::File(_))
        ));
        budgets.charge(&rule, &account, usd("1"), now);
        assert_eq!(budgets.standing(&rule, &account, now).spent, usd("2"));
        std::fs::remove_dir(&path).unwrap();
        exchange(&store, &budgets, now);
        let restarted = Budgets::default();
        exchange(&store, &restarted, now);
        assert_eq!(restarted.standing(&rule, &account, now).spent, usd("2"));
    }

    /// What a process knows that starts with the file as it is.
    fn restarted(path: &Path, rule: &BudgetRule, now: Timestamp) -> (Decimal, BackgroundResponses) {
        let (budgets, background) = (Budgets::default(), BackgroundResponses::with_store());
        let store = StateFile::open(path).unwrap();
        store.exchange(&budgets, &background, now).unwrap();
        let account = rule.account(&"fast".into(), &[7; 32]);
        (budgets.standing(rule, &account, now).spent, background)
    }

    #[test]
    fn a_file_that_was_deleted_or_replaced_gets_back_what_is_known_here_and_no_more() {
        let (rule, now) = (rule(Period::Month, Scope::Group), Timestamp::now());
        let account = rule.account(&"fast".into(), &[7; 32]);
        let create = BackgroundCreate::sample(now);
        type Loss = fn(&Path, &Path);
        let losses: [(&str, Loss); 5] = [
            ("deleted", |file, _| std::fs::remove_file(file).unwrap()),
            ("emptied", |file, _| std::fs::write(file, "").unwrap()),
            ("a copy of earlier", |file, copy| {
                std::fs::rename(copy, file).unwrap();
            }),
            ("written over", |file, copy| {
                let held = std::fs::read(copy).unwrap();
                std::fs::write(file, held).unwrap();
            }),
            ("another", |file, copy| {
                std::fs::remove_file(copy).unwrap();
                StateFile::open(copy).unwrap();
                restarted(copy, &self::rule(Period::Day, Scope::Key), Timestamp::now());
                std::fs::rename(copy, file).unwrap();
            }),
        ];
        for (what, lose) in losses {
            let folder = tempfile::tempdir().unwrap();
            let (path, copy) = (folder.path().join("state"), folder.path().join("copy"));
            // The two processes of a takeover.
            let process = || {
                let background = BackgroundResponses::with_store();
                let store = StateFile::open(&path).unwrap();
                (store, Budgets::default(), background)
            };
            let processes = [process(), process()];
            let exchange = |index: usize| {
                let (store, budgets, background) = &processes[index];
                store.exchange(budgets, background, now)
            };
            let charge = |index: usize| processes[index].1.charge(&rule, &account, usd("1"), now);
            processes[0].2.remember("billed", create.clone());
            charge(0);
            exchange(0).unwrap();
            exchange(1).unwrap();
            std::fs::copy(&path, &copy).unwrap();
            assert!(processes[0].2.take("billed", now).is_some());
            processes[0].2.note_settled("billed");
            processes[0].2.remember("late", create.clone());
            charge(0);
            exchange(0).unwrap();
            charge(1);
            processes[1].2.remember("new", create.clone());
            exchange(1).unwrap();
            exchange(0).unwrap();
            lose(&path, &copy);
            charge(0);
            charge(1);
            for index in [1, 0] {
                let told = exchange(index);
                assert!(matches!(told, Err(StoreError::FileReplaced)), "{what}");
            }
            for index in [1, 0, 1] {
                exchange(index).unwrap();
                let spent = processes[index].1.standing(&rule, &account, now).spent;
                assert_eq!(spent, usd("5"), "{what}");
            }
            let (spent, background) = restarted(&path, &rule, now);
            assert_eq!(spent, usd("5"), "{what}");
            for (id, is_known) in [("billed", false), ("late", true), ("new", true)] {
                let known = background.take(id, now).is_some();
                assert_eq!(known, is_known, "{what}: {id}");
            }
        }
    }

    #[test]
    fn a_file_of_another_kind_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        std::fs::write(&path, "version: 1\n").unwrap();
        assert!(matches!(StateFile::open(&path), Err(StoreError::File(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"version: 1\n");
    }

    #[test]
    fn a_background_response_is_billed_once_by_whichever_process_sees_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let [old_file, new_file] = [(); 2].map(|()| StateFile::open(&path).unwrap());
        let (budgets, now) = (Budgets::default(), Timestamp::now());
        let create = BackgroundCreate::sample(now);
        let (old, new) = (
            BackgroundResponses::with_store(),
            BackgroundResponses::with_store(),
        );
        let exchange = |with: &BackgroundResponses| {
            let file = [&old_file, &new_file][usize::from(std::ptr::eq(with, &new))];
            file.exchange(&budgets, with, now).unwrap();
        };
        exchange(&old);
        exchange(&new);
        old.remember("resp_1", create.clone());
        old.remember("resp_2", create.clone());
        exchange(&old);
        exchange(&new);
        assert_eq!(new.take("resp_1", now), Some(create.clone()));
        assert_eq!(new_file.claim(&new, "resp_1"), Some(true));
        // The old one has not heard of it yet, and has it no more once it has.
        assert_eq!(old.take("resp_1", now), Some(create.clone()));
        assert_eq!(old_file.claim(&old, "resp_1"), Some(false));
        exchange(&old);
        assert_eq!(old.take("resp_1", now), None);
        // Of this one the file has never heard.
        old.remember("resp_3", create.clone());
        assert_eq!(old.take("resp_3", now), Some(create.clone()));
        assert_eq!(old_file.claim(&old, "resp_3"), Some(true));
        // The next start knows what is left.
        let next = BackgroundResponses::default();
        exchange(&next);
        assert_eq!((next.len(), next.take("resp_2", now)), (1, Some(create)));
    }
}
